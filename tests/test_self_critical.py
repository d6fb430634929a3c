"Training on captions of its own"
import math

import matplotlib.pyplot as plt
import pytest, torch
from fastai.vision.all import set_seed

from caption_fastai.callbacks import SelfCritical
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.decoder import draw_words
from caption_fastai.interpret import *   # noqa: F401, for `plot_training`
from caption_fastai.learner import caption_learner
from caption_fastai.recipes import Stage
from caption_fastai.text import Vocab
from helpers import changed, fails, tensors

@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    return CaptionDataLoaders.from_shapes(tmp_path_factory.mktemp('scenes'), n_train=64, n_valid=8, n_test=8, min_freq=1, bs=16, grouped=True, seed=1, num_workers=0)

def learner(dls, path, system='show_attend_tell', **kw):
    set_seed(1)
    return caption_learner(dls, 'shapes_cnn', 'SHAPES', system=system, emb_sz=32, n_hid=64, lambda_attn=0., metrics=[], path=path, **{'p': 0., **kw})

@pytest.mark.parametrize('freeze', [True, False])
def test_reward_rises(dls, tmp_path, freeze):
    "Captions that the model draws get better by it, with the encoder frozen or not; loss and captions of validation are the usual ones"
    learn,cb = learner(dls, tmp_path),SelfCritical()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(12, 1e-2)
        if not freeze: learn.unfreeze()
        learn.fit(10, slice(1e-5, 3e-3), cbs=cb)
    first,last = sum(cb.rewards[:4])/4,sum(cb.rewards[-4:])/4
    assert last > 1.1*first, (first, last)
    assert learn.validate()[0] == pytest.approx(float(learn.history.rows[-1]['valid_loss']), rel=1e-4)

def test_as_a_stage(dls, tmp_path):
    "The third stage of three goes by the reward: its training loss is no cross-entropy"
    learn = learner(dls, tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit_stages([Stage(2, 1e-2, freeze=True), Stage(1, slice(1e-5, 1e-3)), Stage(1, 1e-4, freeze=True, self_critical=True)])
    losses = [float(r['train_loss']) for r in learn.history.rows]
    assert [r['stage'] for r in learn.history.rows] == [1, 1, 2, 3] and losses[2] > 1 > abs(losses[3])
    line = learn.plot_training().axes[0].lines[0].get_ydata()   # is not drawn with the others
    assert [math.isnan(y) for y in line] == [False]*12 + [True]*4
    plt.close('all')

@pytest.mark.parametrize('system,kw', [('show_attend_tell', {}), ('merge', {}), ('show_attend_tell', dict(pr_force=0.5))], ids=str)
def test_the_gradient_is_that_of_what_is_drawn(dls, tmp_path, system, kw):
    "Neither dropout nor words of its own come between the captions that are drawn and their probability"
    def trained(**kw):
        learn = learner(dls, tmp_path, system, **kw)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=SelfCritical())
        return tensors(learn.model)
    assert not changed(trained(p=0.5, **kw), trained())

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
