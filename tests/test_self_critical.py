"Training on captions of its own"
import math
from itertools import product
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest, torch
import torch.nn.functional as F
from fastai.vision.all import Callback, set_seed

from caption_fastai.callbacks import SelfCritical
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.decoder import Packing, SpatialAttention, draw_words, targets
from caption_fastai.interpret import *   # noqa: F401, for `plot_training`
from caption_fastai.learner import caption_learner
from caption_fastai.metrics import encode_refs
from caption_fastai.model import CaptionModel, NoEncoder
from caption_fastai.recipes import Stage
from caption_fastai.search import only_words_
from caption_fastai.text import Vocab, cap_lens
from helpers import changed, fails, tensors

@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    return CaptionDataLoaders.from_shapes(tmp_path_factory.mktemp('scenes'), n_train=64, n_valid=8, n_test=8, min_freq=1, bs=16, grouped=True, seed=1, num_workers=0)

def learner(dls, path, system='show_attend_tell', **kw):
    set_seed(1)
    return caption_learner(dls, 'shapes_cnn', 'SHAPES', system=system, emb_sz=32, n_hid=64, metrics=[], path=path, **{'p': 0., 'lambda_attn': 0., **kw})

@pytest.mark.parametrize('freeze', [True, False])
def test_reward_rises(dls, tmp_path, freeze):
    "Captions that the model draws get better by it, with the encoder frozen or not; loss and captions of validation are the usual ones"
    learn = learner(dls, tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(12, 1e-2)
        if not freeze: learn.unfreeze()
        learn.fit(10, slice(1e-5, 3e-3), cbs=SelfCritical())
    h = learn.history
    first,last = sum(h.rewards[-40:-36])/4,sum(h.rewards[-4:])/4
    assert last > 1.1*first, (first, last)
    assert h.table.reward.isna().tolist() == [True]*12 + [False]*10 and h.table.reward.iloc[-1] == pytest.approx(sum(h.rewards[-4:])/4)
    assert learn.validate()[0] == pytest.approx(float(learn.history.rows[-1]['valid_loss']), rel=1e-4)

def test_as_a_stage(dls, tmp_path):
    "The third stage of three goes by the reward: its training loss is no cross-entropy"
    learn = learner(dls, tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit_stages([Stage(2, 1e-2, freeze=True), Stage(1, slice(1e-5, 1e-3)), Stage(1, 1e-4, freeze=True, self_critical=True)])
    losses = [float(r['train_loss']) for r in learn.history.rows]
    assert [r['stage'] for r in learn.history.rows] == [1, 1, 2, 3] and losses[2] > 1 > abs(losses[3])
    axs = {ax.get_ylabel().split(chr(10))[0]: ax for ax in learn.plot_training().axes}
    loss,reward = ([math.isnan(y) for y in axs[k].lines[0].get_ydata()] for k in ('loss', 'CIDEr of'))   # each where it is
    assert loss == [False]*12 + [True]*4 and reward == [not o for o in loss]
    plt.close('all')

def test_arguments_of_a_stage(dls, tmp_path):
    "They reach `SelfCritical`; bad ones are named before anything is trained"
    learn,seen = learner(dls, tmp_path),[]
    class See(Callback):
        def before_fit(self): seen.append((self.self_critical.k, self.self_critical.max_len))
    with learn.no_bar(), learn.no_logging(): learn.fit_stages([Stage(1, 1e-4, freeze=True, self_critical=dict(k=3, max_len=8))], cbs=See())
    assert seen == [(3, 8)]
    for bad,says in ((dict(k=1), 'k=1: expected 2 or more'), (dict(temprature=1), 'temprature')):
        fails(ValueError, lambda: learn.fit_stages([Stage(1), Stage(1, self_critical=bad)]), says)
    assert len(learn.history.rows) == 1

@pytest.mark.parametrize('system,kw', [('show_attend_tell', {}), ('merge', {}), ('show_attend_tell', dict(pr_force=0.5))], ids=str)
def test_the_gradient_is_that_of_what_is_drawn(dls, tmp_path, system, kw):
    "Neither dropout nor words of its own come between the captions that are drawn and their probability"
    def trained(**kw):
        learn = learner(dls, tmp_path, system, **kw)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=SelfCritical())
        return tensors(learn.model)
    assert not changed(trained(p=0.5, **kw), trained())

def test_the_gradient_is_that_of_the_expected_reward():
    "Against all 39 captions of up to three of three words, each with its probability: the same direction and size, up to the noise of drawing"
    torch.manual_seed(0)
    vocab,temperature = Vocab(['a', 'b', 'c']),0.7
    refs,others = ['a b', 'b c a', 'a a'],[['c c'], ['b'], ['a b c']]
    decoder = SpatialAttention(len(vocab), 3, emb_sz=4, attn_sz=3, n_hid=5, p=0.5)
    with torch.no_grad(): [p.mul_(3) for p in decoder.parameters()]
    model,feats = CaptionModel(NoEncoder(3, 'none'), decoder, {}),torch.randn(1, 4, 3)
    cb = SelfCritical(k=5, max_len=3, temperature=temperature)
    cb.learn = learn = SimpleNamespace(model=model, training=True, cbs=[], dls=SimpleNamespace(vocab=vocab, refs=lambda split: dict(enumerate([refs, *others]))))
    cb.before_fit(); decoder.eval()
    words = [vocab.stoi[w] for w in 'abc']
    caps = [c for n in (1, 2) for c in product(words, repeat=n)]
    caps = [*[(*c, vocab.eos_idx) for c in caps], *product(words, repeat=3)]
    caps = torch.tensor([[vocab.bos_idx, *c, *[vocab.pad_idx]*(3 - len(c))] for c in caps])[None]
    logits = only_words_(model(feats, caps)[0]/temperature, caps.shape[1])
    logp = Packing(cap_lens(caps)).unpack(-F.cross_entropy(logits, targets(caps), reduction='none'), caps[...,1:].shape).sum(-1)[0]
    assert logp.exp().sum().item() == pytest.approx(1)
    reward = torch.tensor(cb.reward(cb._ids(caps[0]), [vocab.encode(r)[1:] for r in refs]))
    ps = [p for p in decoder.parameters()]
    n_words = (logp.exp()*(cap_lens(caps)[0] - 1)).sum().detach()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(-(logp.exp()*reward).sum()/n_words, ps)])
    drawn,n = torch.zeros_like(exact),20
    for _ in range(n):
        learn.xb,learn.yb = (feats.expand(200, -1, -1).contiguous(),),(encode_refs(vocab, [refs]*200),)
        cb.before_batch(); learn.pred = model(*learn.xb, *learn.yb)[0]; cb.after_loss()
        drawn += torch.cat([g.flatten() for g in torch.autograd.grad(learn.loss_grad, ps)])/n
    assert F.cosine_similarity(drawn, exact, dim=0) > 0.99 and drawn.norm().item() == pytest.approx(exact.norm().item(), rel=0.1)

def test_attention_is_not_penalised(dls, tmp_path):
    "There the gradient is the reward's alone"
    def trained(lambda_attn):
        learn = learner(dls, tmp_path, lambda_attn=lambda_attn)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=SelfCritical())
        return tensors(learn.model)
    assert not changed(trained(0.), trained(10.))

def test_words_are_drawn_as_torch_does():
    p = torch.rand(50, 9).softmax(-1)
    set_seed(1); drawn = draw_words(p)
    set_seed(1)
    assert torch.equal(drawn, torch.multinomial(p, 1)[:,0])

def test_what_is_never_drawn_is_not_trained(dls, tmp_path):
    "Tokens that are no words have no part in the probabilities: else their scores would rise wherever captions are bad, without end"
    learn = learner(dls, tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 1e-2)
        learn.opt,before = None,learn.model.decoder.out.bias.detach().clone()   # no momentum is left
        learn.fit(1, 1e-3, wd=0., cbs=SelfCritical())
    assert (learn.model.decoder.out.bias == before).nonzero()[:,0].tolist() == sorted([Vocab.pad_idx, Vocab.bos_idx, Vocab.unk_idx])

def test_captions_are_drawn_at_a_temperature(dls, tmp_path):
    "Near 0 all captions of a picture are the likeliest one, and none is better than the others"
    learn = learner(dls, tmp_path)
    def spread(temperature):
        cb = SelfCritical(temperature=temperature)
        learn.fit(1, 1e-4, cbs=cb)
        return cb.weight.abs().max()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 1e-2)
        assert spread(0.5) > 0.01 and spread(1e-4) < 1e-5

def test_a_caption_alone_has_nothing_to_be_compared_with(): fails(ValueError, lambda: SelfCritical(1), 'k=1', '2 or more')
def test_a_temperature_is_above_0(): fails(ValueError, lambda: SelfCritical(temperature=0), 'temperature=0', 'more than 0')
