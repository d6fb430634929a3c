"Inside encoder, words and decoder: against computations made by hand, and errors"
import copy, warnings

import matplotlib.pyplot as plt
import numpy as np, pandas as pd
import pytest, torch
from helpers import fails, tiny_learner
from matplotlib.colors import to_rgb
from PIL import Image
from torch import nn

from caption_fastai.captioner import Caption, Captioner
from caption_fastai.encoder import Encoder
from caption_fastai.images import ImagePipeline
from caption_fastai.inside import *
from caption_fastai.inside import _kind_colors
from caption_fastai.mistakes import CaptionInterpretation, word_kind

PLAIN = ImagePipeline(size=32, mean=(0, 0, 0), std=(1, 1, 1))

def red_finder():
    "A network whose unit 1 responds to red and to nothing else"
    conv = nn.Conv2d(3, 2, 1, bias=False)
    conv.weight.data = torch.tensor([[0., 0, 1], [1, -1, -1]])[...,None,None]
    return nn.Sequential(conv, nn.Flatten())

def square(color, x, y, size=4):
    img = Image.new('RGB', (32, 32), 'white')
    img.paste(color, (x, y, x + size, y + size))
    return img

@pytest.fixture(scope='module')
def captioner(trained): return trained.captioner()

@pytest.fixture(scope='module')
def pictures(trained): return list(trained.dls.refs('valid'))

def test_names_of_layers_and_units_that_are_not_there(trained, pictures):
    encoder,pipeline = trained.model.encoder,trained.dls.pipeline
    first = layer_names(encoder)[0]
    fails(ValueError, lambda: feature_maps(encoder, pictures[0], pipeline, [first + 'x']), f"layer '{first}x'", f'did you mean {first}')
    fails(ValueError, lambda: feature_maps(red_finder(), square('red', 0, 0), PLAIN, ['1']), "layer '1'", 'not maps')
    fails(ValueError, lambda: top_patches(red_finder(), '0', 2, [square('red', 0, 0)], PLAIN, 1), 'unit 2', 'has 2 units')
    fails(ValueError, lambda: visualize_unit(red_finder(), '0', -1, PLAIN), 'unit -1')
    fails(ValueError, lambda: top_patches(red_finder(), '0', 0, [square('red', 0, 0)], PLAIN, 2), 'k=2', '1 pictures')
    fails(ValueError, lambda: plot_filters(nn.Sequential(nn.Linear(2, 2))), 'no convolutions')

class Odd(nn.Module):
    "A layer that is never run, and one that puts out a tuple"
    def __init__(self):
        super().__init__()
        self.conv,self.idle,self.rnn = nn.Conv2d(3, 2, 1),nn.Conv2d(3, 2, 1),nn.GRU(2, 2, batch_first=True)
    def forward(self, x): return self.rnn(self.conv(x).flatten(2).mT)[0]

@pytest.mark.parametrize('layer,says', [('idle', 'never calls it'), ('rnn', 'puts out a tuple')])
def test_layers_that_make_no_maps(layer, says):
    for f in (lambda: feature_maps(Odd(), square('red', 0, 0), PLAIN, ['conv', layer]), lambda: top_patches(Odd(), layer, 0, [square('red', 0, 0)], PLAIN, 1), lambda: visualize_unit(Odd(), layer, 0, PLAIN)):
        fails(ValueError, f, f"layer '{layer}'", says)

def test_no_units():
    before = plt.get_fignums()
    patches = lambda *args: plot_top_patches(*args[:3], [square('red', 0, 0)], PLAIN, 1)
    for f in (plot_units, patches):
        fails(ValueError, lambda: f(red_finder(), '0', [], PLAIN), 'units')
        fails(ValueError, lambda: f(red_finder(), '0', [1, 9], PLAIN), 'unit 9', 'has 2 units')
    fails(ValueError, lambda: plot_word_vectors({}), 'both')
    assert plt.get_fignums() == before   # nor a figure half drawn
    assert len(patches(red_finder(), '0', 1).axes) == 1
    plt.close('all')

def test_no_more_maps_and_filters_than_there_are():
    fig = plot_feature_maps(red_finder(), square('red', 8, 8), PLAIN, '0', n=99)
    assert len(fig.axes) == 1 + 2 and sorted(ax.get_title() for ax in fig.axes) == ['', '0', '1']
    assert len(plot_filters(red_finder(), ncols=8).axes) == 2
    plt.close('all')

@pytest.mark.parametrize('n,width', [(1, 4), (7, 12), (16, 8)])
def test_names_of_layers_do_not_overlap(n, width):
    encoder = Encoder('vgg16', None)
    fig = plot_feature_maps(encoder, square('red', 8, 8), ImagePipeline(size=64), n=n, width=width)
    fig.draw_without_rendering()
    boxes = [ax.yaxis.label.get_window_extent() for ax in fig.axes if ax.get_ylabel()]
    assert len(boxes) == 5 and not any(a.overlaps(b) for a,b in zip(boxes, boxes[1:])) and fig.get_figwidth() <= width
    assert all(fig.bbox.x0 <= b.x0 and b.y1 <= fig.bbox.y1 for b in boxes)
    plt.close(fig)

@pytest.mark.parametrize('n', [1, 30])
def test_figures_of_units_are_no_larger_than_a_page(n):
    fig = plot_units(red_finder(), '0', [1]*n, PLAIN, size=8, steps=1)
    w,h = fig.get_size_inches()
    assert w <= (3 if n == 1 else 10) and h <= (3 if n == 1 else 11)
    plt.close(fig)

def test_maps_of_one_cell():
    cnn = nn.Sequential(nn.Conv2d(3, 4, 32))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        plt.close(plot_feature_maps(cnn, square('red', 8, 8), PLAIN, n=2))
        made = np.asarray(visualize_unit(cnn, '0', 1, PLAIN, size=32, steps=3))
    assert made.std() > 0   # all black where its numbers are none

def test_a_captioner_of_half_the_numbers(trained, captioner, pictures):
    half = Captioner(copy.deepcopy(trained.model).bfloat16(), captioner.vocab, captioner.pipeline)
    cap = half.caption(pictures[0], beam_sz=1, max_len=4)
    for fig in (plot_gates(half, cap), plot_feature_maps(half.model.encoder, pictures[0], half.pipeline, ['body.0'], n=2)): plt.close(fig)
    assert (true_word_probs(half, pictures[0], 'a red circle').forced <= 1).all()

def test_kinds_of_words_are_told_apart():
    "Contrast with white, and distance for those who see no green (Machado et al. 2009)"
    rgb = np.array([to_rgb(c) for c in _kind_colors.values()])
    light = np.where(rgb <= 0.04045, rgb/12.92, ((rgb + 0.055)/1.055)**2.4)
    assert (1.05/(light @ [0.2126, 0.7152, 0.0722] + 0.05)).min() > 3
    seen = (light @ np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]).T).clip(0, 1)**(1/2.4)
    for colours in (rgb, seen): assert min(np.linalg.norm(a - b) for i,a in enumerate(colours) for b in colours[:i]) > 0.15

def test_feature_maps_are_what_the_layers_put_out_and_leave_no_trace(trained, pictures):
    encoder,pipeline = trained.model.encoder,trained.dls.pipeline
    encoder.train()
    modes,grads = [m.training for m in encoder.modules()],[p.requires_grad for p in encoder.parameters()]
    maps = feature_maps(encoder, pictures[0], pipeline, ['body.0', 'body.3'])
    assert modes == [m.training for m in encoder.modules()] and grads == [p.requires_grad for p in encoder.parameters()]
    encoder.eval()
    with torch.no_grad(): first = encoder.body[0](pipeline(pictures[0])[None])
    torch.testing.assert_close(maps['body.0'], first[0], rtol=1e-4, atol=1e-5)
    assert maps['body.3'].ndim == 3 and not any(m._forward_hooks for m in encoder.modules())

def test_vgg16_layer_by_layer():
    "The thirteen convolutions of configuration D (Simonyan and Zisserman 2015, table 1), a picture of 64 pixels halved four times"
    encoder,pipeline,picture = Encoder('vgg16', None),ImagePipeline(size=64),square('red', 8, 8)
    maps = feature_maps(encoder, picture, pipeline, layer_names(encoder))
    assert [m.shape[0] for m in maps.values()] == [64]*2 + [128]*2 + [256]*3 + [512]*6
    assert [m.shape[1] for m in maps.values()] == [64]*2 + [32]*2 + [16]*3 + [8]*3 + [4]*3
    fig = plot_feature_maps(encoder, picture, pipeline, n=3)
    assert [ax.get_ylabel().split('\n')[0] for ax in fig.axes[::4]] == [list(maps)[i] for i in (0, 3, 6, 9, 12)]
    assert len(plot_filters(encoder, ncols=8).axes) == 64
    fails(ValueError, lambda: feature_maps(encoder, picture, pipeline, ['body.31']), "layer 'body.31'", 'did you mean body.')
    plt.close('all')

def test_top_patches_find_the_red_square():
    pics = [square('lime', 3, 3), square('red', 20, 8), square('blue', 8, 20), square((150, 0, 0), 5, 25)]
    found = top_patches(red_finder(), '0', 1, pics, PLAIN, k=2)
    assert [pics.index(p) for _,p,_ in found] == [1, 3] and found[0][0] == pytest.approx(1)
    x0,y0,x1,y1 = [32*v for v in found[0][2]]
    assert 20 <= x0 < x1 <= 24 and 8 <= y0 < y1 <= 12

def test_a_picture_made_for_the_red_unit_is_red():
    r,g,b = np.asarray(visualize_unit(red_finder(), '0', 1, PLAIN, size=16, lr=0.3)).mean((0, 1))
    assert r > 150 and g < 50 and b < 50
    one,two = (np.asarray(visualize_unit(red_finder(), '0', 0, PLAIN, size=16, steps=5, seed=s)) for s in (1, 1))
    assert (one == two).all()

def test_a_picture_made_for_a_unit_is_not_noise():
    "Less than a twentieth of its variance in the upper half of frequencies, also for a unit that is silent where a picture is grey"
    for layer,unit in (('body.2', 0), ('body.3', 1), ('body.4', 2)):
        made = np.asarray(visualize_unit(Encoder('shapes_cnn'), layer, unit, ImagePipeline()))/255
        power = np.abs(np.fft.fft2(made - made.mean((0, 1)), axes=(0, 1)))**2
        freq = np.hypot(np.fft.fftfreq(96)[:,None], np.fft.fftfreq(96))
        assert made.std() > 0.15 and power[freq > 0.25].sum() < 0.05*power.sum()

def test_neighbours_and_words_that_are_not_there():
    v = WordVectors(['dog', 'dogs', 'cat', 'red'], [[1., 0, 0], [0.9, 0.1, 0], [0.5, 0.5, 0], [0, 0, 1]])
    near = v.neighbours('dog', 2)
    assert list(near.index) == ['dogs', 'cat'] and near['cat'] == pytest.approx(0.5**0.5)
    fails(ValueError, lambda: v.neighbours('dogz'), "word='dogz'", 'did you mean dog')
    other = WordVectors(['red', 'cat', 'dog'], [[1., 0], [0.9, 0.1], [0, 1]])
    t = v.compare(other, ['red'], k=1)
    assert t.there['red'] == 'cat' and t.shared['red'] in (0, 1)
    fails(ValueError, lambda: v.compare(other, ['dogs']), "word='dogs'")
    fails(ValueError, lambda: WordVectors(['a'], [[1.], [2.]]), 'vectors', '1 words')
    fails(ValueError, lambda: v.flat(5), 'n=5', '4 words')
    fails(ValueError, lambda: v.flat(3, 'umap'), "method='umap'", 'tsne')
    fails(ValueError, lambda: v.plot(color='size'), "color='size'")

def test_words_of_a_vocabulary_without_special_tokens(trained):
    vocab = trained.dls.vocab
    words = WordVectors.of(vocab, trained.model.decoder.embedding.weight)
    assert words.words == vocab.itos[4:] and torch.equal(words.vectors[0], trained.model.decoder.embedding.weight[4].detach().cpu())
    assert WordVectors.of(vocab, dict(red=torch.ones(3), nonsense=torch.ones(3))).words == ['red']
    fails(ValueError, lambda: WordVectors.of(vocab, dict(nonsense=torch.ones(3))), 'no word of the vocabulary')

def test_no_word_lies_on_another():
    v = WordVectors([f'word{i}' for i in range(60)], torch.randn(60, 8))
    assert v.flat(20, 'pca').shape == (20, 2)
    fig = v.plot(color='rank', width=5)
    fig.draw_without_rendering()
    boxes = [t.get_window_extent() for t in fig.axes[0].texts]
    assert len(boxes) > 10 and not any(a.overlaps(b) for i,a in enumerate(boxes) for b in boxes[:i])
    plt.close(fig)

@pytest.mark.parametrize('n', [1, 3])
def test_words_stay_in_their_axes_and_off_dots(n):
    v = WordVectors([f'incomprehensible{i}' for i in range(20)] + 'red two dog running above the big'.split()*5, torch.randn(55, 8))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)   # of a layout that is not to be had
        fig = plot_word_vectors({str(i): v for i in range(n)}, n=55, method='pca', width=4*n)
        fig.draw_without_rendering()
    for ax in fig.axes:
        (dots,) = [c for c in ax.collections if c.get_sizes()[0]]
        dots,(x0,y0,x1,y1) = ax.transData.transform(dots.get_offsets()),ax.bbox.extents
        for b in (t.get_window_extent() for t in ax.texts): assert x0 <= b.x0 and b.x1 <= x1 and y0 <= b.y0 and b.y1 <= y1 and not b.count_contains(dots)
        legend = ax.get_legend().get_window_extent()
        assert x0 <= legend.x0 and legend.x1 <= x1 and legend.y0 >= 0
    assert len({round(ax.get_legend().get_window_extent().height) for ax in fig.axes}) == 1   # as many rows in each
    plt.close(fig)

def test_rare_words_can_be_read_on_white():
    fig = WordVectors(['dog', 'cat', 'red'], torch.randn(3, 8)).plot(method='pca', color='rank')
    rgb = np.array([to_rgb(t.get_color()) for t in fig.axes[0].texts])
    light = np.where(rgb <= 0.04045, rgb/12.92, ((rgb + 0.055)/1.055)**2.4)
    assert (1.05/(light @ [0.2126, 0.7152, 0.0722] + 0.05)).min() > 2.99
    plt.close(fig)

@pytest.mark.parametrize('cell', ['lstm', 'gru'])
def test_gates_are_those_of_the_decoder(dls, pictures, cell):
    learn = tiny_learner(dls, cell=cell)
    captioner,vocab = learn.captioner(),dls.vocab
    words = ['a', 'red', 'circle']
    g = gates(captioner, Caption('a red circle', words, 0., torch.zeros(3, 0), pictures[0]))
    model = learn.model.eval()
    with torch.no_grad():
        state,h = model(dls.pipeline(pictures[0])[None]),[]
        first = state.rows[0]
        for w in ['xxbos', 'a', 'red']:
            _,state,_ = model.decoder.step(torch.tensor([vocab.bos_idx if w == 'xxbos' else vocab.stoi[w]]), state)
            h.append(state.rows[0])
    torch.testing.assert_close(g['state'], torch.cat(h))
    if cell == 'lstm': torch.testing.assert_close(g['state'], g['output gate']*g['cell'].tanh())
    else:
        z,before = g['update gate'],torch.cat([first, *h[:-1]])
        torch.testing.assert_close(g['state'], (1 - z)*g['new state'] + z*before)

def test_gates_of_a_system_without_them(trained, pictures):
    other = copy.deepcopy(trained.model); other.decoder = nn.Linear(1, 1)
    cap = Caption('a', ['a'], 0., torch.zeros(1, 0), pictures[0])
    fails(ValueError, lambda: gates(Captioner(other, trained.dls.vocab, trained.dls.pipeline), cap), 'gates', 'Linear')
    fails(ValueError, lambda: plot_gates(trained.captioner(), Caption('', [], 0., torch.zeros(0, 0), pictures[0])), 'empty')

def test_probabilities_of_true_words_step_by_step(trained, captioner, pictures):
    text = trained.dls.refs('valid')[pictures[1]][0]
    t,model,vocab = true_word_probs(captioner, pictures[1], text),trained.model.eval(),trained.dls.vocab
    true = vocab.encode(text)
    own = [vocab.bos_idx, *(vocab.stoi[w] for w in t.own if w in vocab.stoi)]
    for column,said in (('forced', true), ('free', own)):
        with torch.no_grad():
            state,probs = model(trained.dls.pipeline(pictures[1])[None]),[]
            for last,target in zip(said, true[1:]):
                logits,state,_ = model.decoder.step(torch.tensor([last]), state)
                probs.append(logits.softmax(-1)[0,target].item())
        assert t[column].dropna().tolist() == pytest.approx(probs, abs=1e-5)
    assert captioner.caption(pictures[1], beam_sz=1).words[:len(own) - 1] == [vocab.itos[i] for i in own[1:]]
    fails(ValueError, lambda: true_word_probs(captioner, pictures[1], ' '), 'no words')
    with pytest.warns(UserWarning, match='does not have zebra'): true_word_probs(captioner, pictures[1], 'a zebra')

def check_labels(fig):
    "None lies on its neighbour or is cut, nor is a legend"
    fig.draw_without_rendering()
    for ax in fig.axes:
        labels = [l.get_window_extent() for l in ax.get_xticklabels()]
        assert not any(a.overlaps(b) for a,b in zip(labels, labels[1:])) and all(b.y0 >= 0 for b in labels)
    for l in fig.legends: assert 0 <= l.get_window_extent().x0 and l.get_window_extent().x1 <= fig.bbox.x1
    plt.close(fig)

@pytest.mark.parametrize('text', ['red', 'a big red rectangle is above a purple triangle', pytest.param(' '.join(['a red circle']*10), marks=pytest.mark.long)], ids=['one', 'nine', 'thirty'])
@pytest.mark.parametrize('width', [None, 5])
def test_figures_of_one_word_and_of_thirty(captioner, pictures, text, width):
    words,kw = text.split(),dict(width=width) if width else {}
    check_labels(plot_teacher_forcing(captioner, pictures[0], text, **kw))
    check_labels(plot_gates(captioner, Caption(text, words, 0., torch.zeros(len(words), 0), pictures[0]), n=10, **kw))

@pytest.mark.parametrize('width', [11, 9, 8.5, 6, 4])
def test_language_bias_in_any_width(width):
    kinds = ['colour', 'count', 'action', 'object', 'relation', 'function', 'other', 'all words']
    t = pd.DataFrame(dict(words=[12345]*8 + [None]*2, own=30., mean=20., another=10.), [*kinds, 'BLEU-4', 'CIDEr']).astype(dict(words='Int64'))
    check_labels(CaptionInterpretation(None, None, None, None).plot_language_bias(t, width))

def test_language_bias_by_hand(trained):
    interp,vocab,model = CaptionInterpretation.from_learner(trained, n=3, beam_sz=1),trained.dls.vocab,trained.model.eval()
    t = interp.language_bias(bs=2)
    probs = {}
    with torch.no_grad():
        for image,refs in zip(interp.table.image, interp.refs):
            for r in refs:
                ids = vocab.encode(r)
                p = model(trained.dls.pipeline(image)[None], torch.tensor([ids]))[0].softmax(-1)
                for w,row in zip(ids[1:-1], p):
                    if w != vocab.unk_idx: probs.setdefault(word_kind(vocab.itos[w]), []).append(100*row[w].item())
    for kind,ps in probs.items(): assert t.own[kind] == pytest.approx(np.mean(ps), rel=1e-3) and t.words[kind] == len(ps)
    assert t.words['all words'] == sum(map(len, probs.values())) and t.words.isna()['CIDEr']
    assert t.attrs['caption'] and np.allclose(t.another, interp.language_bias(bs=4).another)

def test_a_model_that_sees_nothing_is_all_language(trained, monkeypatch):
    features = trained.model.features
    monkeypatch.setattr(trained.model, 'features', lambda x: torch.zeros_like(features(x)))
    t = CaptionInterpretation.from_learner(trained, n=4, beam_sz=1).language_bias()
    assert np.allclose(t['mean'], t.own) and np.allclose(t.another, t.own)
    fails(ValueError, lambda: CaptionInterpretation.from_learner(trained, n=1).language_bias(), 'another picture')
