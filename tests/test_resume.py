"A training that was interrupted goes on after its last finished epoch"
import pytest, torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

from caption_fastai.callbacks import BleuMetric
from caption_fastai.learner import Stage
from helpers import fails, load_dls, tensors, tiny_learner

STAGES = [Stage(2, 1e-2, freeze=True, bs=8), Stage(3, slice(1e-4, 1e-3), bs=16)]

class Interrupt(Callback):
    "Stop in the middle of the n-th epoch of all"
    order = 80
    def __init__(self, n): self.n = n
    def before_batch(self):
        if self.training and self.count_epochs.n_done == self.n and self.iter == 2: raise KeyboardInterrupt

def run(scenes, path, stages=STAGES, **kw):
    set_seed(3)
    learn = tiny_learner(load_dls(scenes, grouped=True), path=path, metrics=[BleuMetric(n=10)])
    with learn.no_bar(), learn.no_logging(): learn.fit_stages(stages, **kw)
    return learn

@pytest.fixture(scope='module')
def whole(scenes, tmp_path_factory): return run(scenes, tmp_path_factory.mktemp('whole'))

@pytest.mark.parametrize('n', [0, 1, 2, 4])
def test_resumed_run_is_the_same(scenes, whole, tmp_path, n):
    "Interrupted in any epoch of any stage and resumed, a run has the table of epochs and the weights of one that was not"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=Interrupt(n))
    learn = run(scenes, tmp_path, resume=True)
    columns = ['stage', 'epoch', 'valid_loss', 'bleu4', 'batches']
    assert learn.history.table[columns].to_dict() == whole.history.table[columns].to_dict()
    for k,v in tensors(whole.model).items(): torch.testing.assert_close(tensors(learn.model)[k], v, rtol=0, atol=1e-6, msg=k)
    assert [float(l) for l in learn.history.losses] == [float(l) for l in whole.history.losses]

def test_resume_after_the_end(scenes, whole):
    "A run that has come to its end only takes its best weights"
    before = tensors(whole.model)
    learn = run(scenes, whole.path, resume=True)
    assert len(learn.history.table) == 5
    for k,v in before.items(): assert torch.equal(tensors(learn.model)[k], v)

def test_resume_with_other_stages(scenes, whole):
    "To go on with other stages than those that were begun is an error"
    fails(ValueError, lambda: run(scenes, whole.path, [Stage(2, 1e-2, freeze=True, bs=4)], resume=True), 'progress.json', 'other stages')
