"Every system and every recipe goes the whole way, and new ones are added from outside"
import sys
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.torch_core import set_seed
from torch import nn
from torchvision.models import get_model

from caption_fastai import encoder, metrics
from caption_fastai.callbacks import BleuMetric
from caption_fastai.captioner import Captioner
from caption_fastai.captions import read_captions
from caption_fastai.classic import ShowAndTell
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.decoder import Decoder, State
from caption_fastai.encoder import CNNS, Encoder, arch_name
from caption_fastai.grid import plot_grid, run_grid
from caption_fastai.learner import caption_learner
from caption_fastai.metrics import evaluate
from caption_fastai.model import SYSTEMS, caption_model
from caption_fastai.recipes import Stage, recipe_data, recipe_learner, recipes
from caption_fastai.shapes import write_shapes
from caption_fastai.text import Vocab
from helpers import changed, fails, fit, load_dls, tensors, tiny_learner

SIZES = dict(emb_sz=16, n_hid=32, p=0.)

@pytest.fixture(scope='module')
def few(tmp_path_factory): return write_shapes(tmp_path_factory.mktemp('few')/'scenes', n_train=12, n_valid=4, n_test=4)

_large = 'sat_resnet101', 'xu2015', 'tanti2017', 'sat_gru'

@pytest.mark.parametrize('name', [pytest.param(n, marks=pytest.mark.long) if n in _large else n for n in recipes])
def test_recipe_goes_the_whole_way(name, few, tmp_path):
    "Each recipe's encoder (random, on small pictures), system and stages: train, save, load, caption with beams 1 to 7, evaluate"
    dls = load_dls(few, **{**recipe_data(name), 'size': 96, 'min_freq': 1, 'bs': 6})
    learn = caption_learner(dls, recipe=name, weights=None, path=tmp_path)
    stages = [replace(s, epochs=1, bs=6) for s in learn.stages]
    with learn.no_bar(), learn.no_logging(): learn.fit_stages(stages)
    c = Captioner.load(learn.captioner().save(tmp_path/'captioner'))
    refs = learn.dls.refs('test')
    for beam_sz in (1, 3, 5, 7):
        mine,theirs = (evaluate(o.model, o.vocab, o.pipeline, refs, beam_sz=beam_sz, max_len=8)[1] for o in (c, learn.captioner()))
        assert mine == theirs and len(mine) == 4

@pytest.mark.parametrize('system', SYSTEMS)
@pytest.mark.parametrize('recipe', ['scenes', 'flickr8k'])
def test_recipe_with_another_system(recipe, system, dls, tmp_path):
    "What a recipe says of another system is left out, the rest counts"
    learn = caption_learner(dls, recipe=recipe, system=system, weights=None, metrics=[], path=tmp_path)
    config = learn.model.config
    assert config['system'] == system and config.get('p') == recipes[recipe].get('p') and learn.stages == recipes[recipe]['stages']

def test_what_is_given_beside_a_recipe(dls, tmp_path):
    "It is taken by place and by name, and refused where the system has no such argument; a learner's stages are its own"
    for recipe,system in ('xu2015', 'merge'), ('tanti2017', 'show_and_tell'), ('sat_gru', 'spatial_attention'):
        config = caption_learner(dls, 'shapes_cnn', None, recipe=recipe, system=system, path=tmp_path).model.config
        assert config['grid'] is None and config['emb_sz'] == recipes[recipe]['emb_sz'] and not {'deep_output', 'join', 'cell'} & config.keys()
    fails(ValueError, lambda: caption_learner(dls, recipe='scenes', system='merge', attn_sz=8), 'attn_sz=8', 'merge has no such argument')
    fails(ValueError, lambda: caption_learner(dls, recipe='scenes', system='merge', grid=2), 'grid=2')
    learn = caption_learner(dls, 'shapes_cnn', None, 0.25, recipe='scenes', path=tmp_path)
    assert learn.attention_penalty.lambda_attn == 0.25
    with pytest.raises(TypeError): caption_learner(dls, 'shapes_cnn', None, recipe='scenes', arch='resnet18')
    learn.stages[0].epochs = 99
    assert recipes['scenes']['stages'][0].epochs == 2

class Told(BleuMetric):
    "A score of 50 without pictures and of 10 with them"
    @property
    def value(self): return 50. if self.learn.model.decoder.blind else 10.

def test_best_without_pictures_is_not_kept(few, tmp_path):
    "The score of a blind stage does not count in the next one"
    learn = caption_learner(load_dls(few), 'shapes_cnn', system='merge', **SIZES, metrics=[Told()], path=tmp_path)
    stages = [replace(s, epochs=1) for s in recipes['merge_two_steps']['stages']]
    before = tensors(learn.model.decoder.image)
    with learn.no_bar(), learn.no_logging(): learn.fit_stages(stages)
    assert changed(before, tensors(learn.model.decoder.image)) == {'weight', 'bias'}

@pytest.mark.parametrize('name', [pytest.param(s, marks=pytest.mark.long if s == 'spatial_attention' else ()) for s in SYSTEMS])
def test_system_overfits_twenty_pictures(name, scenes, tmp_path):
    "Until the captions are theirs: BLEU-4 is 100"
    table = read_captions(scenes).groupby('image', sort=False).first().head(20).reset_index()
    dls = CaptionDataLoaders.from_captions(table.assign(split='train'), min_freq=1, size=96, bs=20, num_workers=0)
    dls = dls.cache_features(Encoder('shapes_cnn', 'SHAPES', pool=SYSTEMS[name].pooled), tmp_path/'features')
    learn = caption_learner(dls, 'features', system=name, emb_sz=64, n_hid=128, p=0., lambda_attn=0., metrics=[], path=tmp_path)
    lr = 4e-3 if name == 'merge_bidirectional' else 1e-2
    for n,rate in ((150, lr), (60, lr/2), (60, lr/4)): fit(learn, n, rate)
    assert learn.evaluate('train')['bleu4'] == pytest.approx(100, abs=1e-9)

def test_size_limit():
    "The recipe for 25 million parameters and 100 MB keeps to that"
    kw = {k: v for k,v in recipe_learner('sat_25m').items() if k in ('arch', 'emb_sz', 'attn_sz', 'n_hid')}
    model = caption_model(3000, weights=None, **kw)
    assert sum(p.numel() for p in model.parameters()) <= 25e6
    assert sum(v.numel()*v.element_size() for v in model.state_dict().values()) <= 100e6

# Adding a system: these lines, and its name

class GRUTell(Decoder):
    "The picture is where a GRU begins"
    pooled = True
    def __init__(self, vocab_sz, nf, n_hid=32):
        super().__init__()
        self.start,self.embedding = nn.Linear(nf, n_hid),nn.Embedding(vocab_sz, n_hid)
        self.cell,self.out = nn.GRUCell(n_hid, n_hid),nn.Linear(n_hid, vocab_sz)
    def init_state(self, feats): return State((torch.tanh(self.start(feats)),), (feats,))
    def step(self, ids, state):
        h = self.cell(self.embedding(ids), state.rows[0])
        return self.out(h), State((h,), state.image), h.new_zeros(len(h), 0)

def test_add_a_system(dls, tmp_path, monkeypatch):
    learn = fit(caption_learner(dls, 'shapes_cnn', system=GRUTell, n_hid=16, metrics=[], path=tmp_path), 3, 1e-2)
    assert learn.history.losses[-1] < learn.history.losses[0]/2
    learn.evaluate('test', beam_sz=3)
    hyps = learn.hyps
    folder = learn.captioner().save(tmp_path/'captioner')
    fails(ValueError, lambda: Captioner.load(folder), 'GRUTell', 'SYSTEMS')
    monkeypatch.setitem(SYSTEMS, 'GRUTell', GRUTell)
    assert [str(c) for c in Captioner.load(folder).caption(list(hyps))] == list(hyps.values())

def test_a_system_that_hands_its_arguments_on():
    class Narrow(ShowAndTell):
        def __init__(self, *args, width=8, **kwargs): super().__init__(*args, emb_sz=width, **kwargs)
    assert caption_model(10, 'shapes_cnn', None, Narrow, width=6, n_hid=5).decoder.rnn.weight_ih_l0.shape == (20, 6)
    fails(ValueError, lambda: caption_model(10, 'shapes_cnn', None, Narrow, widht=6), 'widht=6', 'width', 'n_layers')

# Adding an encoder: its network, and its name

def my_net(weights): return nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Conv2d(8, 16, 3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))

@pytest.mark.parametrize('system', ['show_attend_tell', 'merge'])
def test_add_an_encoder(system, dls, tmp_path, monkeypatch):
    monkeypatch.setitem(CNNS, 'my_net', my_net)
    learn = fit(caption_learner(dls, 'my_net', None, system=system, emb_sz=16, n_hid=16, metrics=[], path=tmp_path), 1, 1e-2)
    assert learn.model.encoder.nf == 16
    c = Captioner.load(learn.captioner().save(tmp_path/'captioner'))
    image = next(iter(dls.refs('test')))
    assert str(c.caption(image)) == str(learn.captioner().caption(image))

# Grids

class Untrained:
    "Stands for a learner, where no training is needed"
    stages,history,model = [Stage(1)],SimpleNamespace(table=pd.DataFrame(dict(time=['00:02']))),SimpleNamespace(decoder=nn.Linear(1, 1))
    def fit_stages(self, stages, resume): self.path.mkdir(parents=True)
    def evaluate(self, split, took, beam_sz, **kw):
        took.append(2.)
        return {**dict.fromkeys('bleu1 bleu2 bleu3 bleu4 cider rouge_l distinct'.split(), 10.*beam_sz), 'n': 100, 'signature': split}

def test_grid_knows_what_is_done(tmp_path):
    "Values of all kinds are found again and stay what they are; other settings and other beams are refused"
    made,values,file = [],[1, None, '01', 0.5, True, 'NA', 'a, "b"'],tmp_path/'g.csv'
    def make(**kw): made.append(kw); return Untrained()
    def grid(*values, beams=(1, 3), **more): return run_grid(make, dict(tag=values, **more), file, beams=beams)
    table = grid(*values)
    assert list(table.tag[::2]) == list(table.tag[1::2]) == values and len(made) == len(values) and set(table.s_per_1000) == {20.}
    assert list(grid(*values).tag[::2]) == values and len(made) == len(values)
    assert len(grid('01', 7, beams=[3])) == 2*len(values) + 1 and made[len(values):] == [dict(tag=7)]
    fails(ValueError, lambda: grid(8, 7), file, 'tag=7 without beam 1')
    fails(ValueError, lambda: grid(1, size=[2]), file, 'another grid', 'tag')
    run_grid(make, dict(tag=[1], size=[2]), tmp_path/'two.csv')
    fails(ValueError, lambda: run_grid(make, dict(tag=[1]), tmp_path/'two.csv'), 'another grid', 'tag, size')
    assert len(made) == len(values) + 2 and {f.name for f in tmp_path.iterdir()} == {'g.csv', 'g.png', 'two.csv', 'two.png'}

def test_interrupted_grid(few, tmp_path):
    "Begun again in another order, a combination goes on with its own weights; a folder of the user's stays"
    seen,stages = {},[Stage(2, 1e-2, freeze=True)]
    class Watch(Callback):
        order = 57
        def __init__(self, p, stop): self.p,self.stop = p,stop
        def after_batch(self):
            if self.training: seen[self.p] = seen.get(self.p, 0) + 1
            if self.p == self.stop and self.epoch: raise KeyboardInterrupt
    def train(file, ps, stop=None):
        learners = seen.clear() or {}
        def make(p):
            set_seed(1)
            learners[p] = learn = tiny_learner(load_dls(few, grouped=True, bs=6), p=p, cbs=Watch(p, stop))
            learn.remove_cb(ProgressCallback)
            return learn
        run_grid(make, dict(p=ps), tmp_path/file, stages, n=2)
        return {p: tensors(l.model) for p,l in learners.items()}
    whole = train('whole.csv', [0.1, 0.3, 0.5])
    n = seen[0.3]
    (tmp_path/'g_1').mkdir()
    with pytest.raises(KeyboardInterrupt): train('g.csv', [0.1, 0.3, 0.5], stop=0.3)
    again = train('g.csv', [0.1, 0.5, 0.3])
    assert seen == {0.5: n, 0.3: n//2}
    for p in again: assert not changed(whole[p], again[p])
    assert (tmp_path/'g_1').is_dir() and not (tmp_path/'.g.runs').exists()

def test_plot_of_a_grid():
    "A panel for each number that the table has"
    table = pd.DataFrame(dict(a=['x', 'x', 'y'], beam_sz=[1, 3, 3], bleu4=[1., 3., 2.], cider=1.))
    def panels(table): return [ax.get_xlabel() for ax in plot_grid(table, ['a']).axes if ax.get_visible()]
    assert panels(table) == ['BLEU-4']
    more = table.assign(**{k: 1. for k in 'bleu1 bleu2 bleu3 decoder_params decoder_mb epoch_s s_per_1000'.split()})
    assert len(panels(more)) == 8
    fig = plot_grid(more, ['a'])
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ['y', 'x']
    with pytest.raises(ValueError, match="settings: the table has no column 'n_hid', it has a, beam_sz, bleu4, cider"): plot_grid(table, ['a', 'n_hid'])
    plt.close('all')

def test_seconds_of_captioning(monkeypatch):
    "Those of scoring are left out"
    clock = [0.]
    def wait(seconds, res): clock[0] += seconds; return res
    monkeypatch.setattr(metrics, 'caption_images', lambda *args, **kw: wait(3, []))
    monkeypatch.setattr(metrics, 'score_captions', lambda *args, **kw: wait(100, {}))
    monkeypatch.setattr(metrics.time, 'perf_counter', lambda: clock[0])
    took = []
    evaluate(None, Vocab([]), None, {'a': ['b']}, top5=False, took=took)
    assert took == [3.]

# Bad input

def test_nearest_names(dls):
    fails(ValueError, lambda: caption_learner(dls, 'resnet_18'), "arch='resnet_18'", 'resnet18')
    fails(ValueError, lambda: caption_learner(dls, 'shapes_cnn', system='show_tell'), "system='show_tell'", 'show_and_tell')
    fails(ValueError, lambda: caption_learner(dls, recipe='sat_resnet'), "recipe='sat_resnet'", 'sat_resnet101')

def test_without_timm(monkeypatch):
    "A name that only timm has is refused with the way to get it"
    monkeypatch.setitem(sys.modules, 'timm', None)
    fails(ValueError, lambda: arch_name('xception'), "arch='xception'", 'caption_fastai[timm]')

@pytest.mark.parametrize('name', ['xception', 'vit_tiny_patch16_224', 'resnet26'])
def test_timm(name):
    "CNNs and transformers of timm give a grid and a pooled vector"
    pytest.importorskip('timm')
    grid,pooled = Encoder(name, None).eval(),Encoder(name, None, pool=True).eval()
    imgs = torch.randn(2, 3, 224, 224)
    with torch.no_grad(): assert grid(imgs).shape == (2, grid(imgs).shape[1], grid.nf) and pooled(imgs).shape == (2, grid.nf)
    early,late = grid.early_late()
    assert early and late and len(early) + len(late) == len(list(grid.parameters()))

def test_timm_that_says_little_of_its_grid():
    "A class token that timm does not tell of is left out; what gives no grid is refused"
    pytest.importorskip('timm')
    enc,x = Encoder('coat_lite_tiny', None).eval(),torch.randn(1, 3, 224, 224)
    with torch.no_grad(): assert enc(x).shape == (1, 49, 320) and torch.equal(enc(x), enc.body.net.forward_features(x)[:,1:])
    fails(ValueError, lambda: Encoder('crossvit_tiny_240', None), "arch='crossvit_tiny_240'", 'no grid')

@pytest.mark.parametrize('name,share', [('convnext_atto', 0.03), ('vit_tiny_patch16_224', 0.9)])
def test_early_half_is_no_mere_stem(name, share):
    "A row of blocks that is one part of a network is halved, too"
    pytest.importorskip('timm')
    early,late = (sum(p.numel() for p in ps) for ps in Encoder(name, None).early_late())
    assert early > share*late

@pytest.mark.parametrize('name,head', [('swin_t', 'head'), ('densenet121', 'classifier')])
def test_grid_is_what_the_pool_sees(name, head, monkeypatch):
    "The mean over the grid is what torchvision's own network gives its classifier"
    cnn = get_model(name).eval()
    monkeypatch.setitem(CNNS, 'net', lambda weights: cnn)
    enc,x = Encoder('net', None, pool=True).eval(),torch.randn(1, 3, 64, 64)
    setattr(cnn, head, nn.Identity())
    with torch.no_grad(): assert enc.nf == enc(x).shape[1] and torch.allclose(enc(x), cnn(x), atol=1e-5)

def test_download_without_a_reason(monkeypatch):
    def broken(*args, **kwargs): raise OSError
    monkeypatch.setattr(encoder, 'get_model', broken)
    fails(OSError, lambda: Encoder('resnet18'), 'weights=IMAGENET1K_V1', 'resnet18 (OSError)', 'weights=None')

def test_without_tensorboard(monkeypatch):
    from caption_fastai.interpret import tensorboard_cbs
    monkeypatch.setitem(sys.modules, 'tensorboard', None); monkeypatch.delitem(sys.modules, 'fastai.callback.tensorboard', raising=False)
    fails(ImportError, lambda: tensorboard_cbs('x'), 'caption_fastai[tensorboard]')

def test_tensorboard(dls, tmp_path):
    "Losses, attention, captions and word vectors are written"
    pytest.importorskip('tensorboard')
    from caption_fastai.interpret import tensorboard_cbs
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn = tiny_learner(dls)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=tensorboard_cbs(tmp_path/'board', n=2))
    events = EventAccumulator(str(tmp_path/'board')).Reload()
    assert {'train_loss', 'valid_loss'} <= set(events.Tags()['scalars'])
    assert {'attention/0', 'attention/1'} <= set(events.Tags()['images'])
    assert len((next((tmp_path/'board').glob('*/words')) if not (tmp_path/'board'/'words').exists() else tmp_path/'board'/'words').joinpath('metadata.tsv').read_text().splitlines()) == len(dls.vocab)

def test_attention_of_pooled_features(dls, tmp_path):
    "A system that looks nowhere has no attention picture, features of the wrong kind are refused"
    learn = caption_learner(dls, 'shapes_cnn', system='merge', **SIZES, metrics=[], path=tmp_path)
    caption = learn.captioner().caption(next(iter(dls.refs('test'))))
    import caption_fastai.interpret   # noqa: F401, it adds `plot_attention`
    fails(ValueError, caption.plot_attention, 'pooled')
    model = caption_model(11, 'shapes_cnn', None)
    fails(ValueError, lambda: model(torch.randn(2, 64)), 'show_attend_tell', '(bs,L,D)')
    pooled = dls.cache_features(Encoder('shapes_cnn', 'SHAPES', pool=True), tmp_path/'pooled')
    fails(ValueError, lambda: caption_learner(pooled, 'features'), 'attention needs a grid')

@pytest.mark.parametrize('system', ['merge', 'show_and_tell'])
def test_features_without_encoder(system, dls, tmp_path, monkeypatch):
    "A system of pooled features is trained from a file of them alone, no network is built; its encoder must be the one that made them"
    dls.cache_features(Encoder('shapes_cnn', 'SHAPES', pool=True), tmp_path/'pooled')
    def never(*args): raise AssertionError('a network is built')
    with monkeypatch.context() as m:
        m.setattr(encoder, 'build_cnn', never)
        learn = fit(caption_learner(dls.open_features(tmp_path/'pooled'), 'features', system=system, **SIZES, metrics=[], path=tmp_path), 1, 1e-2)
    fails(ValueError, learn.captioner, 'add_encoder')
    fails(ValueError, lambda: learn.add_encoder(None), 'weights', 'pooled')
    learn.add_encoder('SHAPES')
    image = next(iter(dls.refs('test')))
    learn.evaluate('test', beam_sz=3)
    assert str(learn.captioner().caption(image)) == learn.hyps[image]
