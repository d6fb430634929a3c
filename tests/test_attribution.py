"Maps lie where they belong, figures fit, and the pointing game counts right"
import builtins, math

import matplotlib.pyplot as plt
import numpy as np, pytest, torch
from PIL import Image

from caption_fastai.attribution import METHODS, attribute, forced_caption, plot_attributions, pointing_game, pointing_table
from caption_fastai.captioner import Caption
from caption_fastai.images import ImagePipeline
from caption_fastai.interpret import plot_beams
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

def test_cropped_edges_are_not_lit():
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
    assert fig.get_figwidth() == 12 and fig.get_figheight() < 16

def test_a_strip_is_one_row():
    fig = fake(5).plot_attention(strip=True)
    fig.canvas.draw()
    assert len({round(ax.get_window_extent().y0) for ax in fig.axes}) == 1

def test_a_figure_has_the_pictures_proportions():
    for size in ((300, 120), (120, 300)):
        ax = fake(3, size, 49).plot_attention().axes[1]
        assert [im.get_array().shape[:2] for im in ax.images] == [size[::-1]]*2

@pytest.mark.parametrize('n', [1, 12])
def test_animation_has_a_frame_a_word(tmp_path, n):
    c = fake(n, (120, 60))
    c.words[:] = ['word']*n; c.alphas[:] = c.alphas[0]   # even where nothing changes
    with Image.open(c.save_attention_gif(tmp_path/'a.gif', width=200)) as gif:
        assert gif.n_frames == n and gif.width == 200
        if n > 1: gif.seek(1); assert gif.info['duration'] == 800

def test_attention_of_a_system_without_it(dls, pictures, tmp_path):
    c = caption_learner(dls, 'shapes_cnn', 'SHAPES', system='show_and_tell', emb_sz=16, n_hid=32, path=tmp_path, metrics=[]).captioner()
    cap = c.caption(list(pictures)[0], max_len=4)
    for f in (cap.plot_attention, lambda: cap.save_attention_gif(tmp_path/'a.gif'), lambda: plot_beams([cap]), lambda: attribute(c, cap, 0)):
        fails(ValueError, f, 'no attention', 'show_attend_tell', "plot_attributions(captioner, caption, word, ['occlusion'])")
    assert attribute(c, cap, 0, 'occlusion').shape == attribute(c, cap, 0, 'grad_cam').shape == (6, 6)
    assert len(plot_attributions(c, cap, 0, ['occlusion', 'grad_cam']).axes) == 3

def test_nothing_to_show(tmp_path):
    fails(ValueError, lambda: fake(0).save_attention_gif(tmp_path/'a.gif'), 'words')
    fails(ValueError, lambda: plot_beams([]), 'captions')

@pytest.mark.parametrize('method', METHODS)
def test_every_method_makes_a_map(captioner, caption, method):
    m = attribute(captioner, caption, 1, method)
    assert m.shape in ((6, 6), (96, 96)) and np.isfinite(m).all() and m.max() > m.min()

def test_words_that_are_not_there(captioner, caption, pictures):
    n = len(caption.words)
    for word in ('zebra', n, -1): fails(ValueError, lambda: attribute(captioner, caption, word), f'word={word!r}')
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

def test_captions_that_speak_of_nothing(captioner, pictures):
    caps = [forced_caption(captioner, p, 'there is a') for p in pictures]
    fails(ValueError, lambda: pointing_game(captioner, pictures, ['alpha'], caps), 'scenes')
