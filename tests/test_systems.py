"Every system and every recipe goes the whole way, and new ones are added from outside"
import sys
from dataclasses import replace

import pytest, torch
from torch import nn
from torchvision.models import get_model

from caption_fastai import encoder
from caption_fastai.captioner import Captioner
from caption_fastai.captions import read_captions
from caption_fastai.classic import ShowAndTell
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.decoder import Decoder, State
from caption_fastai.encoder import CNNS, Encoder, arch_name
from caption_fastai.learner import caption_learner
from caption_fastai.metrics import evaluate
from caption_fastai.model import SYSTEMS, caption_model
from caption_fastai.recipes import recipe_data, recipe_learner, recipes
from caption_fastai.shapes import write_shapes
from helpers import fails, fit, load_dls, tiny_learner

SIZES = dict(emb_sz=16, n_hid=32, p=0.)

@pytest.fixture(scope='module')
def few(tmp_path_factory): return write_shapes(tmp_path_factory.mktemp('few')/'scenes', n_train=12, n_valid=4, n_test=4)

@pytest.mark.parametrize('name', recipes)
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

@pytest.mark.parametrize('name', ['convnext_atto', 'vit_tiny_patch16_224'])
def test_early_half_is_no_mere_stem(name):
    "A row of blocks that is one part of a network is halved, too"
    pytest.importorskip('timm')
    early,late = (sum(p.numel() for p in ps) for ps in Encoder(name, None).early_late())
    assert early > 0.03*late

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
