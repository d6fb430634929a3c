"Figures of training, of a search and of batches say what happened, and can be read"
import itertools, math
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd, pytest, torch
from fastai.callback.schedule import SchedLin
from fastai.vision.core import TensorImage
from PIL import Image

from caption_fastai.callbacks import BleuMetric
from caption_fastai.captioner import Captioner
from caption_fastai.data import CaptionDataLoaders, show_captions
from caption_fastai.images import ImagePipeline
from caption_fastai.interpret import _arrange, _BoardPictures, _Watch, plot_beam_tree
from caption_fastai.learner import Stage, caption_learner
from caption_fastai.model import caption_model
from caption_fastai.search import caption_images
from caption_fastai.text import SPECIALS, Vocab
from helpers import changed, fails, tensors, tiny_learner

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

WORDS = 'a dog runs beside incomprehensible red rectangles on water while two small birds fly'.split()

def babbler(end=0., **kw):
    "A captioner that says anything, and ends the more often the higher `end`"
    model = caption_model(len(SPECIALS) + len(WORDS), 'shapes_cnn', weights=None, emb_sz=6, attn_sz=3, n_hid=7, **kw).eval()
    for p in model.decoder.parameters(): torch.nn.init.normal_(p, std=0.7)
    model.decoder.out.bias.data[Vocab.eos_idx] = end
    return Captioner(model, Vocab(WORDS), ImagePipeline(32))

def grey(size=(60, 40)): return Image.new('RGB', size, 'teal')

def texts(fig):
    "Boxes of all texts, after drawing"
    fig.canvas.draw()
    return [t.get_window_extent() for t in [*fig.texts, *(t for ax in fig.axes for t in ax.texts), *(t for l in fig.legends for t in l.get_texts())] if t.get_text()]

def check_texts(fig):
    boxes = texts(fig)
    page = fig.bbox
    assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in boxes)
    assert not [(a, b) for a,b in itertools.combinations(boxes, 2) if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1]

def watched(captioner, n_dropped=3, **kw):
    watch = _Watch(n_dropped)
    [(_,hyps)] = caption_images(captioner.model, captioner.pipeline, [grey()], watch=watch, **kw)
    return watch.result(),hyps

@pytest.mark.parametrize('beam_sz,penalty', [(1, 0.), (2, 0.), (3, 0.7), (5, 1.)])
def test_a_tree_is_what_the_search_did(beam_sz, penalty):
    for end in (-1., 1., 3.):
        captioner = babbler(end)
        kw = dict(beam_sz=beam_sz, length_penalty=penalty, max_len=9, n_best=beam_sz)
        nodes,hyps = watched(captioner, **kw)
        ends = {tuple(o.tok for o in n.path()): n for n in nodes if n.fate in ('best', 'kept to the end')}
        for h in hyps: assert ends[tuple(h.ids)].score == pytest.approx(h.score, abs=1e-5)
        assert [n.tok for n in nodes if n.fate == 'best'] == hyps[0].ids
        assert all(n.up is None or n.up.fate != 'dropped at once' and n.up.tok != Vocab.eos_idx for n in nodes)
        for t in range(max(n.t for n in nodes) + 1):
            kept,dropped = ([n.score for n in nodes if n.t == t and (n.fate == 'dropped at once') == off] for off in (False, True))
            assert len(kept) <= beam_sz and len(dropped) == 3 and min(kept, default=math.inf) >= max(dropped)
        fig = plot_beam_tree(captioner, grey(), **{**kw, 'n_best': 1})
        assert fig.get_suptitle() == captioner.caption(grey(), **{**kw, 'n_best': 1}).text

def test_lines_of_a_tree_do_not_cross():
    for beam_sz in (2, 5):
        columns,n_rows = _arrange(watched(babbler(1.), beam_sz=beam_sz, max_len=9)[0])
        for col in columns:
            ups = [n.up.y if n.up else 0 for n in col]
            assert ups == sorted(ups) and all(b.y - a.y >= 1 for a,b in zip(col, col[1:])) and col[-1].y < n_rows <= beam_sz + 3

@pytest.mark.parametrize('n_words,beam_sz', [(1, 5), (5, 2), pytest.param(15, 5, marks=pytest.mark.long), (30, 3)])
def test_a_tree_can_be_read(n_words, beam_sz):
    fig = plot_beam_tree(babbler(-99.), grey(), beam_sz, max_len=n_words)
    check_texts(fig)
    assert fig.get_figwidth() <= 12.01

def test_lines_of_a_tree_end_before_words():
    c = babbler(1.)
    c.vocab = Vocab([w*n for n in (1, 7) for w in 'mWijgaw'])
    fig = plot_beam_tree(c, grey(), 3, max_len=3)
    fig.canvas.draw()
    for ax in fig.axes:
        ends = [ax.transData.transform((x, y)) for l in ax.lines for x,y in zip(l.get_xdata()[[0, -1]], l.get_ydata()[[0, -1]])]
        for b in (t.get_window_extent() for t in ax.texts): assert not [x for x,y in ends if b.x0 < x < b.x1 and b.y0 - 5 < y < b.y1 + 5]

@pytest.mark.parametrize('size', [(300, 60), (60, 300), (9, 7)])
def test_a_tree_beside_any_picture(size):
    for n_dropped in (0, 3): check_texts(plot_beam_tree(babbler(1.), grey(size), 2, n_dropped, max_len=4))

@pytest.mark.parametrize('size', [(600, 200), (200, 600), (300, 5), (5, 300)])
def test_the_picture_of_a_tree_has_its_proportions(size):
    fig = plot_beam_tree(babbler(1.), grey(size), 2, max_len=4)
    fig.canvas.draw()
    shown = fig.axes[0].images[0]
    box,(left,right,bottom,top) = shown.get_window_extent(),shown.get_extent()
    assert left < right and top < bottom   # the axis goes down
    assert abs(box.width/box.height) == pytest.approx(size[0]/size[1], rel=0.02)

def test_dollars_are_no_mathematics():
    c = babbler(1.)
    c.vocab = Vocab([f'$\\x{i}$' for i in range(len(WORDS))])   # as TeX an error
    plot_beam_tree(c, grey(), 2, max_len=3).canvas.draw()
    show_captions([TensorImage(torch.zeros(3, 9, 9))], ['$\\x$'])[0].figure.canvas.draw()

def test_bad_arguments_of_a_tree(tmp_path):
    c = babbler()
    fails(ValueError, lambda: plot_beam_tree(c, grey(), n_dropped=-1), 'n_dropped=-1')
    fails(ValueError, lambda: plot_beam_tree(c, grey(), beam_sz=0), 'beam_sz=0')
    fails(ValueError, lambda: plot_beam_tree(c, grey(), beam_sz=99), 'beam_sz=99', 'vocabulary')
    fails(FileNotFoundError, lambda: plot_beam_tree(c, tmp_path/'no.jpg'), 'no.jpg')

def test_a_tree_of_other_systems():
    for kw in (dict(cell='gru'), dict(system='spatial_attention')): check_texts(plot_beam_tree(babbler(**kw), grey(), max_len=5))

def labels(fig): return [ax.get_ylabel().split()[0] for ax in fig.axes]

def train(dls, stages, **kw):
    learn = tiny_learner(dls, **kw)
    with learn.no_bar(), learn.no_logging(): learn.fit_stages(stages)
    return learn

@pytest.fixture(scope='module')
def few(dls):
    "Two batches an epoch, of 12 pictures"
    df = dls.captions
    df = pd.concat([df[df.split == s][:5*n] for s,n in (('train', 12), ('valid', 4))], ignore_index=True)
    return CaptionDataLoaders.from_captions(df, min_freq=1, size=96, grouped=True, bs=6, num_workers=0, seed=1)

def test_curves_of_three_stages(few):
    learn = train(few, [Stage(2, 1e-2, freeze=True), Stage(1, 1e-3, freeze=1), Stage(3, slice(1e-5, 1e-4), one_cycle=False)], pr_force=SchedLin(1, 0.5), metrics=[BleuMetric()])
    assert learn.history.prs == pytest.approx([1, 0.875, 0.75, 0.625, 1, 0.75] + [1 - 0.5*i/6 for i in range(6)])
    fig = learn.plot_training()
    check_texts(fig)
    assert labels(fig) == ['loss', 'BLEU-4,', "decoder's", 'probability']   # not cross-entropy: it may be smoothed, or of rewards
    for ax in fig.axes: assert sorted({l.get_xdata()[0] for l in ax.lines if l.get_linestyle() == '--'}) == [4, 6]
    assert [l.get_xdata().tolist() for l in fig.axes[1].lines[:1]] == [[2, 4, 6, 8, 10, 12]]
    assert fig.axes[2].lines[0].get_ydata().tolist() == pytest.approx(learn.history.lrs) and learn.history.lrs[6:] == pytest.approx([1e-4]*6)

def test_curves_of_one_stage_without_scores(few):
    fig = train(few, [Stage(1, 1e-2, freeze=True)]).plot_training()
    check_texts(fig)
    assert labels(fig) == ['loss', "decoder's"]

def test_curves_of_self_criticism_alone(few):
    fig = train(few, [Stage(1, 1e-3, freeze=True, self_critical=True)]).plot_training()
    check_texts(fig)
    assert labels(fig) == ['loss', 'CIDEr', "decoder's"]
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == ['validation']   # no training loss

def test_rates_below_the_axis_have_an_arrow(few):
    learn = tiny_learner(few)
    learn.history.rows = [dict(stage=1, valid_loss=3., batches=7)]
    learn.history.losses,learn.history.lrs,learn.history.prs = [3.]*7,[1e-9, 1e-9, 1e-3, 1e-3, 1e-9, 1e-3, 1e-9],[1.]*7
    fig = learn.plot_training()
    [arrows] = [l for l in fig.axes[1].lines if l.get_marker() == 'v']
    assert arrows.get_xdata().tolist() == [0, 4, 6] and arrows.get_ydata()[0] == fig.axes[1].get_ylim()[0]
    assert all(x == int(x) for x in fig.axes[1].get_xticks())   # of batches

def test_curves_without_validation(few):
    df = few.captions[few.captions.split == 'train'].reset_index(drop=True)
    learn = train(CaptionDataLoaders.from_captions(df, min_freq=1, size=96, grouped=True, bs=6, num_workers=0, seed=1), [Stage(1, 1e-2, freeze=True)], metrics=[BleuMetric()])
    fig = learn.plot_training()
    assert labels(fig) == ['loss', "decoder's"]
    assert [l.get_label() for l in fig.axes[0].lines] == ['training, smoothed']

def test_curves_of_a_run_begun_before_probabilities_were_kept(few):
    learn = train(few, [Stage(2, 1e-2, freeze=True)], pr_force=0.5)
    learn.history.prs = learn.history.prs[2:]
    assert learn.plot_training().axes[-1].lines[0].get_xdata().tolist() == [2, 3]

def test_a_short_stage_has_its_number(few):
    learn = tiny_learner(few)
    learn.history.rows = [dict(stage=s, valid_loss=3., batches=b) for s,b in ((1, 10), (2, 40), (3, 1000))]
    learn.history.losses,learn.history.lrs,learn.history.prs = [3.]*1000,[1e-3]*1000,[1.]*1000
    fig = learn.plot_training()
    assert [t.get_text() for t in fig.axes[0].texts] == ['', '2', 'stage 3']
    check_texts(fig)

STAGES = [Stage(1, freeze=True), Stage(1, freeze=1), Stage(1)]

def learner(dls, arch='shapes_cnn', weights='SHAPES', **kw): return caption_learner(dls, arch, weights, emb_sz=16, n_hid=32, metrics=[], **kw)

@pytest.mark.parametrize('more,kw', [([], dict()), ([], dict(train_vectors=False)), ([], dict(arch='mobilenet_v2', weights=None)), ([Stage(1, freeze=True, only=('image', 'out'))], dict(system='merge'))])
def test_parameters_of_stages_are_those_that_train(few, more, kw):
    learn,stages = learner(few, **kw),STAGES + more
    now = [p.requires_grad for p in learn.model.parameters()]
    t = learn.parameter_table(stages)
    assert [p.requires_grad for p in learn.model.parameters()] == now
    assert t.parameters['all'] == sum(p.numel() for p in learn.model.parameters())
    for i,s in enumerate(stages, 1):
        learn._begin_stage(s)
        trained = t[f'stage {i}']
        assert trained['all'] == sum(p.numel() for p in learn.model.parameters() if p.requires_grad) == trained[:-1].sum()
        assert trained['decoder'] == sum(p.numel() for p in learn.model.decoder.parameters() if p.requires_grad)
        assert learn.parameter_table()['train now'].tolist() == trained.tolist()
    fails(ValueError, lambda: learn.parameter_table([Stage(1, only=('rnm',))]), "no part 'rnm'")

@pytest.mark.parametrize('system,grouped', [('show_attend_tell', True), ('show_and_tell', True), ('merge_bidirectional', False)])
def test_summary_of_pictures_and_of_features(few, system, grouped, tmp_path):
    data = few if grouped else CaptionDataLoaders.from_captions(few.captions, min_freq=1, size=96, bs=30, num_workers=0)
    learn = learner(data, system=system, path=tmp_path)
    all_of_it,decoder = (sum(p.numel() for p in m.parameters()) for m in (learn.model, learn.model.decoder))
    says = learn.summary()   # before any fit
    assert 'Conv2d' in says and f'{all_of_it:,}' in says and f'{decoder:,}' in says and 'Total' not in says
    before,learn.stages = tensors(learn.model),STAGES
    learn.cache_features()
    says = learn.summary()
    assert 'Conv2d' not in says and 'Embedding' in says and f'{decoder:,}' in says and 'stage 3' in says
    assert not changed(before, tensors(learn.model)) and learn.history.stage == 0
    alone = learner(learn.dls, 'features', system=system, path=tmp_path)
    assert alone.parameter_table()['parameters'].tolist() == [0, 0, decoder, decoder] and 'Embedding' in alone.summary()

@pytest.mark.parametrize('grouped,bs', [(True, 3), pytest.param(False, 5, marks=pytest.mark.long), (False, 1000)])
def test_padding_is_that_of_the_batches(few, grouped, bs):
    dls = CaptionDataLoaders.from_captions(few.captions, min_freq=1, size=32, grouped=grouped, bs=bs, num_workers=0)
    fig = dls.plot_padding(10)
    tokens,places = (sum(map(f, (c for _,c in dls.train))) for f in (lambda c: int(c.lens.sum()), torch.numel))
    assert fig.axes[0].get_title() == f'sortish: {1 - tokens/places:.1%} padding'
    assert all(x == int(x) for ax in fig.axes for x in ax.get_xticks())
    heights = [b.get_height() for b in fig.axes[0].containers[0]]
    assert heights == [c.shape[-1] for _,c in dls.train][:10]
    check_texts(fig)

@pytest.mark.parametrize('n,size', [(1, (90, 40)), (30, (40, 90)), (2, (9, 7))])
def test_attention_of_a_gru(n, size):
    cap = babbler(-99., cell='gru', grid=3).caption(grey(size), max_len=n)
    fig = cap.plot_attention()
    assert cap.maps.shape == (n, 3, 3) and [ax.get_title() for ax in fig.axes if ax.get_title()] == cap.words
    assert [im.get_array().shape[:2] for im in fig.axes[1].images] == [size[::-1]]

@pytest.mark.parametrize('n', [1, 2, 4])
@pytest.mark.parametrize('lines', [1, 5, 25])
@pytest.mark.parametrize('size', [(96, 96), (30, 90), (90, 30)])
def test_captions_are_not_cut(n, lines, size):
    fig = show_captions([TensorImage(torch.zeros(3, *size))]*n, ['\n'.join(['a big red square']*lines), 'a dog']*n)[0].figure
    fig.canvas.draw()   # once, as `savefig` does
    boxes = [ax.title.get_window_extent() for ax in fig.axes if ax.get_title()]
    assert len(boxes) == n and all(0 <= b.x0 and b.x1 <= fig.bbox.x1 and b.y1 <= fig.bbox.y1 for b in boxes)
    assert not any(b.overlaps(ax.get_window_extent()) for b in boxes for ax in fig.axes if ax.images)

@pytest.mark.parametrize('grouped', [True, False])
def test_results_show_one_true_caption(few, grouped):
    "Of a picture's captions the first, however many there are"
    dls = few if grouped else CaptionDataLoaders.from_captions(few.captions, min_freq=1, size=96, bs=6, num_workers=0)
    tiny_learner(dls).show_results(max_n=2, width=1000)
    known = {few.vocab.decode(few.vocab.encode(c)) for c in few.captions.caption}
    for ax in plt.gcf().axes[:2]:
        true = ax.get_title().split('\n')[1]
        assert true.startswith('(true: ') and true.endswith(')') and true[7:-1] in known

class Board:
    "A writer of TensorBoard that notes what it is given"
    run,train_iter = True,1
    def __init__(self): self.writer,self.tags = self,[]
    def note(self, tag, *args): self.tags.append(tag)
    add_text = add_figure = note
    def add_embedding(self, *args, tag, **kw): self.note(tag)

def two_epochs(dls, model):
    "What the board gets in two epochs"
    cb = _BoardPictures(Board(), 2)
    cb.learn = SimpleNamespace(dls=dls, model=model, n_epoch=2)
    cb.before_fit()
    for cb.learn.epoch in range(2): cb.after_epoch()
    return cb.board.tags

def test_a_board_of_features_alone(few, tmp_path):
    learn = learner(few, path=tmp_path)
    learn.cache_features()
    alone = learner(learn.dls, 'features', path=tmp_path)
    assert two_epochs(alone.dls, alone.model) == ['captions/0', 'attention/0', 'captions/1', 'attention/1']*2 + ['words']

def test_a_board_without_a_picture_that_cannot_be_read(few, tmp_path):
    good = next(iter(few.refs('valid')))
    dls = SimpleNamespace(refs=lambda split: {str(tmp_path/'no.jpg'): ['a dog'], good: ['a cat']}, vocab=few.vocab, source=few.source, pipeline=few.pipeline)
    with pytest.warns(UserWarning) as found: tags = two_epochs(dls, learner(few).model)
    assert [str(w.message) for w in found if 'TensorBoard' in str(w.message)] == [f'left out of TensorBoard: {tmp_path/"no.jpg"}: there is no such picture']
    assert tags == ['captions/1', 'attention/1']*2 + ['words']
