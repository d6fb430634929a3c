"Maps lie where they belong, figures fit, and the pointing game counts right"
import builtins, math, os, re, subprocess, sys, warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np, pytest, torch
from PIL import Image

import caption_fastai
from caption_fastai import app
from caption_fastai.attribution import METHODS, _Word, attribute, forced_caption, plot_attributions, pointing_game, pointing_table
from caption_fastai.captioner import Caption, Captioner
from caption_fastai.images import ImagePipeline
from caption_fastai.interpret import _heat, plot_beam_tree, plot_beams
from caption_fastai.learner import caption_learner
from caption_fastai.shapes import Obj, Scene, draw_scene, read_scenes
from helpers import fails

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

@pytest.fixture(scope='module')
def captioner(trained): return trained.captioner()

@pytest.fixture(scope='module')
def pictures(scenes): return {scenes/'Images'/k: v for k,v in list(read_scenes(scenes).items())[-6:]}

@pytest.fixture(scope='module')
def caption(captioner, pictures): return captioner.caption(list(pictures)[0])

def true_captions(captioner, pictures):
    return [forced_caption(captioner, p, ' and '.join(f'a {o}' for o in s.objs)) for p,s in pictures.items()]

def fake(n, size=(300, 200), n_loc=36, resize='squash'):
    words = [('a', 'rectangle', 'on', 'incomprehensible')[i%4] for i in range(n)]
    return Caption(' '.join(words), words, 0., (3*torch.randn(n, n_loc)).softmax(-1), Image.new('RGB', size, 'orange'), ImagePipeline(96, resize))

@pytest.mark.parametrize('size', [(120, 60), (60, 120), (90, 90), (13, 40)])
@pytest.mark.parametrize('resize', ['squash', 'crop', 'pad'])
@pytest.mark.parametrize('g', [7, 8])
def test_a_hot_cell_lies_where_the_encoder_saw_it(size, resize, g):
    "A spot is drawn on the picture; the cell of the pipeline's square that holds it, made hot, is put back on the spot"
    pipeline,hit = ImagePipeline(224, resize),0
    w,h = size
    for x,y in ((w//2, h//2), (w//3, h//2), (w//2, 2*h//3), (3*w//4, h//4)):
        img = np.zeros((h, w, 3), np.uint8)
        img[max(0, y-2):y+3, max(0, x-2):x+3] = 255
        square = np.asarray(pipeline.open(img), float)[..., 0]
        square[square < 200] = 0   # not the grey around, with pad
        if not square.any(): continue   # cropped away
        ys,xs = np.nonzero(square)
        grid = np.zeros((g, g)); grid[int(ys.mean()*g/224), int(xs.mean()*g/224)] = 1
        hot = pipeline.on_picture(grid, size)
        assert hot.shape == (h, w)
        py,px = np.unravel_index(hot.argmax(), hot.shape)
        x0,y0,x1,y1 = pipeline.region(size)
        assert abs(px - x) <= 0.5*(x1 - x0)/g + 2.5 and abs(py - y) <= 0.5*(y1 - y0)/g + 2.5
        hit += 1
    assert hit >= 2

def test_cropped_edges_are_not_looked_at():
    hot = ImagePipeline(96, 'crop').on_picture(np.ones((7, 7)), (120, 60))
    assert (hot[:, :30] == 0).all() and (hot[:, 90:] == 0).all() and np.allclose(hot[:, 30:90], 1)
    assert np.allclose(ImagePipeline(96, 'pad').on_picture(np.ones((7, 7)), (120, 60)), 1)

@pytest.mark.parametrize('resize', ['squash', 'crop', 'pad'])
def test_a_caption_knows_its_pipeline(captioner, pictures, resize):
    pipeline,captioner.pipeline = captioner.pipeline,ImagePipeline(96, resize)
    try: assert captioner.caption(list(pictures)[0], max_len=3).pipeline.resize == resize
    finally: captioner.pipeline = pipeline

def overlaps(fig):
    "Pairs of titles and pictures that lie over each other"
    fig.canvas.draw()
    boxes = [ax.title.get_window_extent() for ax in fig.axes if ax.get_title()] + [ax.get_window_extent() for ax in fig.axes if ax.images] + [fig._suptitle.get_window_extent()]
    return [(i, j) for i,a in enumerate(boxes) for j,b in enumerate(boxes[:i])
            if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1]

@pytest.mark.parametrize('n,size', [(1, (300, 120)), (2, (120, 300)), (1, (20, 14))])
def test_figures_of_few_words(n, size):
    c = fake(n, size, 49)
    for fig in (c.plot_attention(), c.plot_attention(strip=True), plot_beams([c, fake(4, size, 49)])): assert not overlaps(fig)

@pytest.mark.parametrize('size', [(300, 120), (120, 300)])
def test_a_figure_of_thirty_words(size):
    c = fake(30, size, 9)
    fig = c.plot_attention()
    assert not overlaps(fig)
    assert [ax.get_title() for ax in fig.axes if ax.get_title()] == c.words
    assert fig.get_figwidth() <= 12 and fig.get_figheight() < 12

def flat(captioner, caption, word): return np.ones((6, 6))

@pytest.mark.parametrize('n,size', [(1, (300, 120)), (1, (120, 300)), (1, (60, 400)), (1, (4000, 40)), (1, (9, 7)), (30, (300, 120)), (30, (60, 400))])
def test_no_figure_is_larger_than_a_page(captioner, n, size):
    c = fake(n, size)
    for fig,widest in ((c.plot_attention(), 12), (plot_beams([c]), 12), (plot_attributions(captioner, c, 0, [flat]), 12), (c.plot_attention(strip=True), max(3, 1.4*(n + 1)))):
        w,h = fig.get_size_inches()
        assert w <= widest + 0.01 and h <= (4 if n == 1 else 12)
        if n == 1: assert not overlaps(fig)

def test_beams_of_long_captions_go_on_below():
    cs = [fake(30), fake(2)]
    fig = plot_beams(cs)
    titles = [ax.get_title() for ax in fig.axes]
    assert [t for t in titles if t] == [t for c in cs for t in (f'{c.score:.2f}', *c.words)]
    assert len(titles) == (3 + 1)*13   # rows of 13 pictures, no more than each needs
    assert [ax.get_title() for ax in plot_beams(cs[1]).axes] == ['0.00', *cs[1].words]   # a caption alone

@pytest.mark.parametrize('size', [(4, 1), (1920, 3), (3, 1920)])
@pytest.mark.parametrize('resize', ['squash', 'crop', 'pad'])
def test_maps_over_thin_pictures(size, resize):
    "However thin, a pixel of it is seen"
    assert ImagePipeline(96, resize).on_picture(np.ones((7, 7)), size).max() == pytest.approx(1)
    fake(2, size, 9, resize).plot_attention()

def said(*words, **kw):
    c = fake(len(words), **kw)
    c.text,c.words = ' '.join(words),list(words)
    return c

@pytest.mark.parametrize('size', [(300, 120), (120, 300)])
def test_words_of_any_width_can_be_read(size):
    long = 'Donaudampfschifffahrtsgesellschaftskapitän'
    c = said('WWWWWWWW', 'mmmmmmmm', long, 'WWWWWWWW', 'WWWWWWWW', size=size)
    for fig in (c.plot_attention(), c.plot_attention(strip=True), plot_beams([c, c])):
        assert not overlaps(fig)
        titles = [ax.title for ax in fig.axes if ax.get_title()]
        assert min(t.get_fontsize() for t in titles) >= 6
        for t in titles: assert t.get_text() in ('0.00', *c.words) or t.get_text()[-1] == '…' and long.startswith(t.get_text()[:-1])

def test_words_of_an_animation_in_other_letters(tmp_path):
    "What the font of figures has is no row of boxes"
    c = said('собака', 'κύκλος', size=(120, 60))
    c.alphas[:] = c.alphas[0]
    with Image.open(c.save_attention_gif(tmp_path/'a.gif', width=200)) as gif:
        frames = [gif.seek(i) or np.asarray(gif.convert('L'))[104:] for i in (0, 1)]   # below the picture and the bar
        assert (abs(frames[0].astype(int) - frames[1]) > 100).any()

@pytest.mark.parametrize('full,lit', [(0., 0.1), (0.01, 1.)])
def test_a_map_is_not_dark_for_the_sake_of_one_pixel(full, lit):
    m = np.full((50, 50), 0.1); m[0,0] = 1
    assert _heat(m, ImagePipeline(96), (50, 50), full)[20,20] == pytest.approx(lit, abs=1e-3)
    few = np.random.rand(6, 6)   # too few for a hundredth
    assert (_heat(few, ImagePipeline(96), (6, 6), full) == _heat(few, ImagePipeline(96), (6, 6))).all()
    assert not _heat(np.zeros((3, 3)), ImagePipeline(96), (6, 6), full).any()

@pytest.mark.parametrize('color', ['black', 'grey', 'white'])
def test_maps_can_be_read_on_dark_and_bright_pictures(color):
    "Where it looked is lighter and yellow, the rest violet, whatever the picture is like"
    c = fake(1, (60, 60), 9)
    c.image,c.alphas = Image.new('RGB', (60, 60), color),torch.eye(9)[4:5]   # looked at the middle
    shown = np.asarray(c.plot_attention().axes[1].images[0].get_array())
    hot,cold = shown[30,30],shown[2,2]
    assert hot.mean() > cold.mean() + 0.1 and hot[1] > hot[2] + 0.2 and cold[2] > cold[1] + 0.1

def test_one_method(captioner, caption):
    for methods in ('occlusion', flat): assert len(plot_attributions(captioner, caption, 0, methods).axes) == 2
    empty = forced_caption(captioner, caption.image, '')
    fails(ValueError, lambda: plot_attributions(captioner, empty, 0), 'word=0', 'has no words')
    assert len(plot_beams([empty]).axes) == len(empty.plot_attention().axes) == 1

def test_dollars_are_no_mathematics(captioner):
    c = fake(2)
    c.text,c.words = '$\\a$ b',['$\\a$', 'b']   # as TeX an error
    for fig in (c.plot_attention(), plot_beams([c]), plot_attributions(captioner, c, 0, [flat])): fig.canvas.draw()

@pytest.mark.long
def test_figures_without_a_display(tmp_path):
    "On a server, where nothing says how to draw"
    code = ("import torch; from PIL import Image; from caption_fastai.captioner import Caption; import caption_fastai.interpret; "
            "Caption('a b', ['a', 'b'], 0., torch.rand(2, 9), Image.new('RGB', (9, 7))).plot_attention().savefig('a.png')")
    env = {k: v for k,v in os.environ.items() if k not in ('DISPLAY', 'WAYLAND_DISPLAY', 'MPLBACKEND')}
    env['PYTHONPATH'] = str(Path(caption_fastai.__file__).parents[1])
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, check=True, timeout=300)
    assert Image.open(tmp_path/'a.png').width > 100

def test_a_strip_is_one_row():
    fig = fake(5).plot_attention(strip=True)
    fig.canvas.draw()
    assert len({round(ax.get_window_extent().y0) for ax in fig.axes}) == 1

def test_a_figure_has_the_pictures_proportions():
    for size in ((300, 120), (120, 300)):
        ax = fake(3, size, 49).plot_attention().axes[1]
        assert [im.get_array().shape[:2] for im in ax.images] == [size[::-1]]

@pytest.mark.parametrize('n', [1, 12])
def test_animation_has_a_frame_a_word(tmp_path, n):
    c = fake(n, (120, 60))
    c.words[:] = ['word']*n; c.alphas[:] = c.alphas[0]   # even where nothing changes
    with Image.open(c.save_attention_gif(tmp_path/'a.gif', width=200)) as gif:
        assert gif.n_frames == n and gif.width == 200
        if n > 1: gif.seek(1); assert gif.info['duration'] == 800

@pytest.mark.parametrize('size', [(40, 4000), (4000, 40)])
def test_an_animation_of_any_picture_is_of_bounded_size(tmp_path, size):
    with Image.open(fake(2, size).save_attention_gif(tmp_path/'a.gif', width=200)) as gif: assert gif.width == 200 and gif.height <= 440

def test_attention_of_a_system_without_it(dls, pictures, tmp_path):
    c = caption_learner(dls, 'shapes_cnn', 'SHAPES', system='show_and_tell', emb_sz=16, n_hid=32, path=tmp_path, metrics=[]).captioner()
    cap = c.caption(list(pictures)[0], max_len=4)
    for f in (cap.plot_attention, lambda: cap.save_attention_gif(tmp_path/'a.gif'), lambda: plot_beams([cap]), lambda: attribute(c, cap, 0)):
        fails(ValueError, f, 'no attention', 'show_attend_tell and spatial_attention', 'plot_attributions(captioner, caption, word)')
    assert attribute(c, cap, 0, 'occlusion').shape == attribute(c, cap, 0, 'grad_cam').shape == (6, 6)
    assert len(plot_attributions(c, cap, 0, ['occlusion', 'grad_cam']).axes) == 3

def test_nothing_to_show(tmp_path):
    fails(ValueError, lambda: fake(0).save_attention_gif(tmp_path/'a.gif'), 'words')
    fails(ValueError, lambda: plot_beams([]), 'captions')

@pytest.mark.parametrize('kw', [dict(ncols=-1), dict(ncols=0), dict(width=0), dict(width=-3.)])
def test_a_figure_of_no_size(captioner, kw):
    c,says = fake(2),'{}={}: expected more than 0'.format(*next(iter(kw.items())))
    fails(ValueError, lambda: c.plot_attention(**kw), says)
    if 'width' in kw:
        for f in (lambda: c.save_attention_gif('a.gif', **kw), lambda: plot_beams(c, **kw), lambda: plot_attributions(captioner, c, 0, [flat], **kw), lambda: plot_beam_tree(captioner, c.image, **kw)):
            fails(ValueError, f, says)

def test_an_animation_is_a_gif(tmp_path):
    fails(ValueError, lambda: fake(2).save_attention_gif(tmp_path/'x.notype'), 'x.notype', '.gif')
    fails(ValueError, lambda: fake(2).save_attention_gif(tmp_path/'a.gif', seconds=0), 'seconds=0')
    assert fake(2).save_attention_gif(tmp_path/'A.GIF').exists()

def test_a_title_says_which_word_and_which_method(captioner, caption):
    c = forced_caption(captioner, caption.image, 'a red cross and a blue cross')
    fig = plot_attributions(captioner, c, 6, ['alpha', 'grad_cam', flat])
    assert fig.get_suptitle() == 'a red cross and a blue [cross]' and [ax.get_title() for ax in fig.axes] == ['', 'attention', 'Grad-CAM', 'flat']
    assert plot_attributions(captioner, c, 'cross', [flat]).get_suptitle() == 'a red [cross] and a blue cross'

@pytest.mark.parametrize('method', METHODS)
def test_every_method_makes_a_map(captioner, caption, method):
    m = attribute(captioner, caption, 1, method)
    assert m.shape in ((6, 6), (96, 96)) and np.isfinite(m).all() and m.max() > m.min()

def test_words_that_are_not_there(captioner, caption, pictures):
    n = len(caption.words)
    for word in ('zebra', n, -1, None, 0.5): fails(ValueError, lambda: attribute(captioner, caption, word), f'word={word!r}')
    assert attribute(captioner, caption, np.int64(n - 1)).shape == (6, 6)
    c = Caption('a zebra', ['a', 'zebra'], 0., caption.alphas[:2], caption.image, caption.pipeline)
    fails(ValueError, lambda: attribute(captioner, c, 'zebra', 'occlusion'), "word='zebra'", 'vocabulary')
    fails(ValueError, lambda: attribute(captioner, caption, 0, 'gradcam'), "method='gradcam'", 'grad_cam')

def test_without_captum(captioner, caption, monkeypatch):
    real = builtins.__import__
    def no_captum(name, *args, **kw):
        if name.startswith('captum'): raise ImportError(name)
        return real(name, *args, **kw)
    monkeypatch.setattr(builtins, '__import__', no_captum)
    for m in ('integrated_gradients', 'gradient_shap', 'lime'): fails(ImportError, lambda: attribute(captioner, caption, 0, m), 'caption_fastai[interpret]')
    for m in ('alpha', 'grad_cam', 'occlusion'): attribute(captioner, caption, 0, m)

def test_a_given_caption_is_scored_as_a_found_one(captioner, pictures):
    for c in captioner.caption(list(pictures), beam_sz=1):
        again = forced_caption(captioner, c.image, c.text)
        assert again.words == c.words and math.isclose(again.score, c.score, abs_tol=1e-3)
        torch.testing.assert_close(again.alphas, c.alphas, atol=1e-5, rtol=1e-4)

def test_unknown_words_of_a_given_caption(captioner, pictures):
    with pytest.warns(UserWarning, match='does not have zebra, quagga; xxunk'): c = forced_caption(captioner, list(pictures)[0], 'a zebra and a zebra and a quagga')
    assert c.words.count('xxunk') == 3
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        forced_caption(captioner, list(pictures)[0], 'a red circle')

def test_an_ensemble(captioner, caption):
    "Reads a caption, by the mean of its models, and has no attribution"
    two = Captioner.ensemble([captioner, captioner])
    one,both = (forced_caption(c, caption.image, caption.text) for c in (captioner, two))
    assert both.score == pytest.approx(one.score, abs=1e-4)
    torch.testing.assert_close(both.alphas, one.alphas)
    for f in (lambda: attribute(two, caption, 0), lambda: plot_attributions(two, caption, 0)): fails(ValueError, f, 'ensemble', 'pass one of its captioners')

def test_the_model_stays_in_its_mode(captioner, caption):
    "Whatever mode that is, dropout and batch normalisation are those of evaluation"
    asks = [lambda: forced_caption(captioner, caption.image, caption.text).score, *(lambda m=m: attribute(captioner, caption, 1, m).sum() for m in ('grad_cam', 'occlusion'))]
    model = captioner.model
    want = [f() for f in asks]
    model.train()
    modes = [m.training for m in model.modules()]
    try:
        assert [f() for f in asks] == pytest.approx(want, rel=1e-3)
        assert [m.training for m in model.modules()] == modes and any(modes)
    finally: model.eval()

def test_windows_are_blanked_a_few_pictures_at_a_time(monkeypatch):
    class Sums(_Word):
        def __init__(self): self.g,self.img,self.blank = 12,torch.arange(3*24*24.).view(1, 3, 24, 24),torch.zeros(1, 3, 1, 1)
        def __call__(self, imgs): return imgs.sum((1, 2, 3))
    sizes,repeat,w = [],torch.Tensor.repeat,Sums()
    monkeypatch.setattr(torch.Tensor, 'repeat', lambda self, n, *ns: sizes.append(n) or repeat(self, n, *ns))
    found = w.blanked()
    assert found.shape == (11, 11) and sizes == [64, 57]
    for y,x in ((0, 0), (5, 10), (10, 3)): assert found[y,x].item() == pytest.approx((w.img.sum() - w.img[...,2*y:2*y+4,2*x:2*x+4].sum()).item(), rel=1e-4)

def spot(at):
    "A method that points at a place of a picture of 96 by 96"
    def point(captioner, caption, word):
        m = np.zeros((96, 96)); x,y = at(caption, word); m[y, x] = 1
        return m
    return point

def test_pointing_right_and_wrong(captioner, pictures):
    "Points in the boxes always hit, one where no object is never does"
    caps = true_captions(captioner, pictures)
    def middle(c, i):
        o = next(o for o in pictures[c.image].objs if f'{o.color} {o.shape}' in (' '.join(c.words[i:i+2]), ' '.join(c.words[max(i-1, 0):i+1])))
        return [next(v for v in range(8, 96, 16) if o.box[i] <= v < o.box[i+2]) for i in (0, 1)]   # the middle of a cell
    def empty(c, i):
        far = lambda x, y: min(max(abs(x - (o.box[0] + o.box[2])/2), abs(y - (o.box[1] + o.box[3])/2)) for o in pictures[c.image].objs)
        return max(((x, y) for x in range(8, 96, 16) for y in range(8, 96, 16)), key=lambda at: far(*at))
    right,wrong = spot(middle),spot(empty)
    right.__name__,wrong.__name__ = 'right','wrong'
    def flat(captioner, caption, word): return np.ones((6, 6))
    game = pointing_game(captioner, pictures, [right, wrong, flat], caps)
    mean = game.groupby('method')[['hit', 'near', 'other']].mean()
    assert mean.loc['right'].tolist() == [1, 1, 0]
    assert mean.loc['wrong'].tolist() == [0, 0, 0] and mean.loc['flat'].tolist() == [0, 0, 0]
    assert set(game.word[game.kind == 'noun']) == {o.shape for s in pictures.values() for o in s.objs}
    assert len(game[game.method == 'right']) == 2*sum(len(s.objs) for s in pictures.values())
    assert 0 < mean.hit['chance'] < mean.near['chance'] < 0.5

def test_pointing_at_the_right_cell_of_a_scene(captioner, tmp_path):
    "By hand: a box of 16 to 48 pixels holds the centres of four of the 36 cells"
    scene = Scene([Obj('circle', 'red', 'big', (16, 16, 48, 48)), Obj('star', 'blue', 'big', (64, 64, 94, 94))], 'white', 1)
    img = tmp_path/'scene.png'; draw_scene(scene).save(img)
    cap = forced_caption(captioner, img, 'a red circle above a blue star')
    def cell(y, x):
        def f(captioner, caption, word): m = np.zeros((6, 6)); m[y, x] = 1; return m
        f.__name__ = f'{y}{x}'
        return f
    game = pointing_game(captioner, {img: scene}, [cell(1, 1), cell(0, 0), cell(4, 4), cell(0, 5)], [cap])
    t = game.set_index(['method', 'word'])[['hit', 'near', 'other']]
    for at,word,want in (('11', 'circle', [1, 1, 0]), ('00', 'circle', [0, 0, 0]), ('44', 'circle', [0, 0, 1]), ('44', 'star', [1, 1, 0]),
                         ('11', 'above', [1, 1, 0]), ('44', 'above', [1, 1, 0]), ('05', 'above', [0, 0, 0])):
        assert t.loc[(at, word)].tolist() == want, (at, word)
    assert math.isclose(t.hit['chance', 'circle'], 4/36)
    assert pointing_table(game).loc[('44', 'noun'), 'hit'] == 0.5

def test_captions_of_other_pictures(captioner, pictures):
    caps = true_captions(captioner, pictures)
    fails(ValueError, lambda: pointing_game(captioner, pictures, ['alpha'], caps[:-1]), 'captions: 5 for 6 scenes')
    fails(ValueError, lambda: pointing_game(captioner, pictures, ['alpha'], caps[::-1]), caps[-1].image, 'in the order of the scenes')

def test_a_report_of_pointing(trained, pictures, capsys, monkeypatch):
    "Of how many words it is, or why there are none"
    monkeypatch.setattr(app, 'pointing_game', lambda c, scenes, methods, **kw: pointing_game(c, scenes, methods, true_captions(c, scenes), **kw))
    report = app._Report('test', read_scenes(next(iter(pictures)).parent.parent))
    report.learn = trained
    for scenes,says in ((report.scenes, r'nouns \d+% of \d+, \d+% no further from its middle than one place \(chance \d+%, \d+%\)'), ({k: Scene([], 'white', 1) for k in report.scenes}, 'not known: scenes: no word')):
        report.scenes = scenes
        report._point()
        assert re.search(says, capsys.readouterr().out)

def test_captions_that_speak_of_nothing(captioner, pictures):
    caps = [forced_caption(captioner, p, 'there is a') for p in pictures]
    fails(ValueError, lambda: pointing_game(captioner, pictures, ['alpha'], caps), 'scenes')
