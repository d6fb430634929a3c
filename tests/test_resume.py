"A training that was interrupted, whenever and however, goes on where it was and ends as if nothing had happened"
import builtins, errno, io, multiprocessing, os, random, re, resource, shutil, signal, threading, time, warnings
from contextlib import nullcontext, redirect_stdout
from itertools import count

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import SchedLin
from fastai.callback.training import GradientAccumulation
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.torch_core import set_seed
from torch.amp import GradScaler

from caption_fastai import features, learner
from caption_fastai.callbacks import BleuMetric
from caption_fastai.data import Augment
from caption_fastai.learner import OPTS, Stage
from caption_fastai.shapes import write_shapes
from helpers import changed, check_message, fails, load_dls, tensors, tiny_learner

STAGES = [Stage(2, 1e-2, freeze=True, bs=8), Stage(2, slice(1e-4, 1e-3), bs=16)]   # 5, 5, 3, 3 batches

class At(Callback):
    "Call `f` at the end of the n-th training batch of all, before anything is saved"
    order = 57   # after `History`, before `SaveProgress`
    def __init__(self, batch, f): self.batch,self.f = batch,f
    def after_batch(self):
        if self.training and len(self.history.losses) == self.batch: self.f()

def stop(): raise KeyboardInterrupt
def kill(): os.kill(os.getpid(), signal.SIGKILL)
def ctrl_c(): os.kill(os.getpid(), signal.SIGINT)

def run(scenes, path, stages=STAGES, cbs=(), resume=False, save_minutes=10., cache=False, bars=False, find=False, data=None, metric=None, store=False, **kw):
    "Train with all that is random: order, augmentation, dropout, scheduled sampling; with `cache` the first stage on features of so many views, with `store` those stages that have views"
    set_seed(3)
    learn = tiny_learner(load_dls(scenes, **{**dict(grouped=True, aug=Augment()), **(data or {})}), path=path, metrics=[metric or BleuMetric()], history=path/'history.csv', **{**dict(p=0.5, pr_force=0.8), **kw})
    if resume: set_seed(7)   # nothing may depend on what was drawn before
    if cache: learn.cache_features(bs=4, views=int(cache))
    with nullcontext() if bars else learn.no_bar(), nullcontext() if bars else learn.no_logging():
        if find: learn.lr_find(num_it=7, show_plot=False, suggest_funcs=None)
        learn.fit_stages(stages, [EarlyStoppingCallback('bleu4', patience=9), *cbs], resume, save_minutes, cache_features=store)
    return learn

def result(learn):
    h = learn.history
    return h.table.drop(columns='time').fillna(-1).to_dict(), [*map(float, h.losses), *h.rewards, *h.lrs, *h.prs], tensors(learn.model)

def same(a, b):
    assert a[0] == b[0] and np.array_equal(a[1], b[1], equal_nan=True)
    for k,v in a[2].items(): assert torch.equal(v, b[2][k]), k

@pytest.fixture(scope='module')
def scenes(tmp_path_factory): return write_shapes(tmp_path_factory.mktemp('few')/'scenes', n_train=40, n_valid=8, n_test=4)

@pytest.fixture(scope='module')
def whole(scenes, tmp_path_factory):
    start = time.monotonic()
    learn = run(scenes, tmp_path_factory.mktemp('whole'))
    learn.seconds = time.monotonic() - start
    return learn

def checkpoints(path): return sorted((path/'models').glob('progress_*.pth'))

@pytest.mark.parametrize('batch,minutes', [(3, 10), (7, 0), (14, 10)])
def test_resumed_run_is_the_same(scenes, whole, tmp_path, batch, minutes):
    "Broken off in any epoch of any stage, and resumed from the end of an epoch or from within one"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=[At(batch, stop)], save_minutes=minutes)
    assert len(checkpoints(tmp_path)) == 1 + (batch > 5)
    same(result(run(scenes, tmp_path, resume=True, data=dict(seed=7 if batch > 5 else 1))), result(whole))   # a checkpoint has the seed of the order

def test_resumed_run_shows_its_progress(scenes, whole, tmp_path, capsys):
    "As on a terminal: bars and a line for each epoch, from the one on in which it was broken off"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=[At(7, stop)])
    same(result(run(scenes, tmp_path, resume=True, bars=True)), result(whole))
    lines = [l.split() for l in capsys.readouterr().out.replace('\r', '\n').splitlines()]
    assert [l[0] for l in lines if l[-1:] and ':' in l[-1] and len(l) > 4 and l[0].isdigit()] == ['1', '0', '1']

def test_batch_size_of_the_stage_before(scenes, tmp_path):
    "A stage without a batch size of its own has that of the stage before when it is resumed, too: 5 batches"
    stages = [Stage(1, 1e-2, freeze=True, bs=8), Stage(1, 1e-3)]
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, stages, cbs=[At(7, stop)], save_minutes=0)
    assert run(scenes, tmp_path, stages, resume=True).history.rows[-1]['batches'] == 10

THREE = [Stage(1, 1e-2, freeze=True, bs=8), Stage(1, slice(1e-4, 1e-3), freeze=1, bs=16), Stage(1, 1e-3, freeze=True, bs=8, self_critical=True)]   # 5, 3, 5 batches

@pytest.fixture(scope='module')
def three(scenes, tmp_path_factory): return run(scenes, tmp_path_factory.mktemp('three'), THREE, cache=2, pr_force=SchedLin(1, 0.5))

@pytest.mark.parametrize('batch', [3, 7, 11])
def test_stages_of_the_best_recipe_are_resumed(scenes, three, tmp_path, batch):
    "Several views on disk, a schedule of teacher forcing, half of the encoder, captions of its own: broken off in each stage"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, THREE, cbs=[At(batch, stop)], cache=2, pr_force=SchedLin(1, 0.5), save_minutes=0)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='the features in use')
        same(result(run(scenes, tmp_path, THREE, resume=True, cache=2, pr_force=SchedLin(1, 0.5))), result(three))

WORDS_FIRST = [Stage(1, slice(1e-4, 1e-2), freeze=1, bs=8, bag_of_words=True), Stage(2, 1e-2, freeze=True, bs=8, views=2), Stage(1, 1e-3, bs=16)]   # 5, 10, 3 batches

@pytest.fixture(scope='module')
def words_first(scenes, tmp_path_factory): return run(scenes, tmp_path_factory.mktemp('words'), WORDS_FIRST, store=True)

@pytest.mark.parametrize('batch', [3, 5, 7, 16])
def test_stages_with_features_between_them_are_resumed(scenes, words_first, tmp_path, batch):
    "The encoder learns words, and features are stored then: broken off in each stage; the features that are there serve again"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, WORDS_FIRST, cbs=[At(batch, stop)], store=True, save_minutes=0)
    if batch == 7: fails(ValueError, lambda: run(scenes, tmp_path, WORDS_FIRST, resume=True), 'views of cached features=those of the stages, not None')
    made = (tmp_path/'features').stat().st_mtime_ns if batch > 5 else None
    same(result(run(scenes, tmp_path, WORDS_FIRST, resume=True, store=True)), result(words_first))
    assert made in (None, (tmp_path/'features').stat().st_mtime_ns)

def test_broken_off_while_features_are_stored(scenes, words_first, tmp_path, monkeypatch):
    "Between two stages: the first one is not trained again"
    with monkeypatch.context() as m:
        m.setattr(learner.CaptionLearner, '_store_features', lambda self, views: stop())
        with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, WORDS_FIRST, store=True)
    again = run(scenes, tmp_path, WORDS_FIRST, cbs=[cb := Weights()], resume=True, store=True)
    assert len(cb.seen) == 3
    same(result(again), result(words_first))

class Told(BleuMetric):
    "Scores that are given, epoch by epoch"
    def __init__(self, *scores): super().__init__(); self.told = scores
    @property
    def value(self): return self.told[len(self.learn.history.rows)]

class Weights(Callback):
    "Those at the end of each epoch; stop in one of them, after the best weights are written and before the checkpoint is"
    order = 64
    def __init__(self, stop_at=None): self.seen,self.stop_at = [],stop_at
    def after_epoch(self):
        self.seen.append(tensors(self.model))
        if self.epoch == self.stop_at: stop()

@pytest.mark.parametrize('stop_at', [None, 0, 1, 2])
def test_small_steps_down_do_not_add_up(scenes, tmp_path, stop_at):
    "Less than 1 BLEU below the best epoch is as good as it, but the one after that is measured by the best one too; also where the run was broken off with the best weights written and no checkpoint"
    stages,told = [Stage(3, 1e-2, freeze=True, bs=20)],lambda: Told(20., 19.5, 18.8)
    whole = run(scenes, tmp_path/'whole', stages, [cb := Weights()], metric=told())
    assert not changed(tensors(whole.model), cb.seen[1])
    if stop_at is None: return
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, stages, [Weights(stop_at)], metric=told())
    same(result(run(scenes, tmp_path, stages, metric=told(), resume=True)), result(whole))

def test_the_best_weights_of_the_stage_before(scenes, tmp_path):
    "go on into a stage that was broken off where its first epoch had just taken their place"
    stages,told = [Stage(2, 1e-2, freeze=True, bs=20), Stage(1, 1e-3, bs=20)],lambda: Told(30., 20., 31.)
    whole = run(scenes, tmp_path/'whole', stages, metric=told())
    class InTheSecond(Weights):
        def after_epoch(self):
            if self.history.stage == 2: stop()
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, stages, [InTheSecond()], metric=told())
    same(result(run(scenes, tmp_path, stages, metric=told(), resume=True)), result(whole))

def test_words_between_scored_stages(scenes, tmp_path):
    "The best score of the stage before is known after a stage without scores that was broken off"
    words = Stage(1, slice(1e-4, 1e-3), freeze=1, bs=20, bag_of_words=True)
    stages,told = [Stage(1, 1e-2, freeze=True, bs=20), words, Stage(1, 1e-2, freeze=True, bs=20)],lambda: Told(30., 0., 20.)
    whole = run(scenes, tmp_path/'whole', stages, metric=told())
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, stages, cbs=[At(3, stop)], metric=told(), save_minutes=0)
    same(result(run(scenes, tmp_path, stages, metric=told(), resume=True)), result(whole))

def test_features_of_the_stage_before(scenes, tmp_path):
    "A frozen stage without views goes on with the features of the one before, also where it was broken off"
    stages = [Stage(1, 1e-2, freeze=True, bs=8, views=2), Stage(1, 1e-2, freeze=True, bs=8)]
    whole = run(scenes, tmp_path/'whole', stages, store=True)
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, stages, cbs=[At(len(whole.history.losses) - 2, stop)], store=True, save_minutes=0)
    same(result(run(scenes, tmp_path, stages, resume=True, store=True)), result(whole))

def test_a_lower_rate_from_here_on_where_it_is_constant(scenes, tmp_path):
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, [Stage(2, 1e-2, freeze=True, bs=8, one_cycle=False)], cbs=[At(7, stop)])
    with pytest.warns(UserWarning, match='goes on with lr=0.0001'): learn = run(scenes, tmp_path, [Stage(2, 1e-4, freeze=True, bs=8, one_cycle=False)], resume=True)
    assert learn.history.lrs == pytest.approx([1e-2]*5 + [1e-4]*5)

def test_pictures_that_go_away(scenes, tmp_path):
    "An epoch of which batches are missing is none; when they are there again it is trained as if nothing had happened"
    write = lambda folder: write_shapes(folder, n_train=40, n_valid=8, n_test=4)
    whole = run(write(tmp_path/'a'), tmp_path/'whole', STAGES[:1])
    folder = write(tmp_path/'b')
    away = lambda: os.rename(folder/'Images', folder/'away')
    with pytest.warns(UserWarning, match='left out'), pytest.raises(OSError, match=r'\d of 5 batches had no picture that could be read'): run(folder, tmp_path, STAGES[:1], cbs=[At(6, away)])
    os.rename(folder/'away', folder/'Images')
    same(result(run(folder, tmp_path, STAGES[:1], resume=True)), result(whole))

def test_a_loader_process_that_dies(scenes, tmp_path, monkeypatch):
    def dies(self): raise RuntimeError('DataLoader worker (pid(s) 77) exited unexpectedly')
    monkeypatch.setattr(learner.CaptionLearner, 'all_batches', dies)
    fails(OSError, lambda: run(scenes, tmp_path), 'exited unexpectedly', 'num_workers=0', 'resume=True')

def test_nothing_to_go_on_from(scenes, whole, tmp_path):
    "is said; so is what an earlier training has left"
    with pytest.warns(UserWarning, match='no checkpoint to go on from, training begins anew$'): same(result(run(scenes, tmp_path, resume=True)), result(whole))
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=[At(1, stop)])
    (first,),kept = checkpoints(tmp_path),tmp_path/'models'/'unfinished_1.pth'
    first.rename(kept)
    with pytest.warns(UserWarning, match='anew; unfinished_1.pth of earlier ones'), pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, resume=True, cbs=[At(1, stop)])

def test_what_was_trained_before(scenes, tmp_path):
    "is in the first checkpoint, before anything else is trained; until then that of the earlier training stays"
    run(scenes, tmp_path, STAGES[:1])
    with pytest.MonkeyPatch.context() as m:
        m.setattr(learner.CaptionLearner, '_begin_stage', lambda self, s: stop())
        with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, STAGES[:1])
    assert (tmp_path/'models'/'finished.pth').exists() and not checkpoints(tmp_path)
    for _ in range(2):   # what was broken off before its first batch is no loss
        with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, STAGES[:1], cbs=[At(1, stop)])
        assert [f.name for f in checkpoints(tmp_path)] == ['progress_000000.pth'] and not list((tmp_path/'models').glob('unfinished*'))
    learn = tiny_learner(load_dls(scenes, grouped=True, bs=8), path=tmp_path, metrics=[BleuMetric()])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        trained = tensors(learn.model)
        with pytest.raises(KeyboardInterrupt): learn.fit_stages([Stage(1, 1e-3, freeze=True, bs=8)], At(6, stop))
    assert not (tmp_path/'models'/'finished.pth').exists()
    assert not changed(trained, torch.load(io.BytesIO(checkpoints(tmp_path)[0].read_bytes()[16:]), weights_only=False)['model'])

def test_other_names_in_the_folder(scenes, whole, tmp_path):
    "A copy of a checkpoint is none"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=[At(7, stop)])
    for name in 'progress_backup.pth','progress_000009 (copy).pth': (tmp_path/'models'/name).write_bytes(checkpoints(tmp_path)[0].read_bytes())
    same(result(run(scenes, tmp_path, resume=True)), result(whole))

def test_ctrl_c_after_the_last_epoch(scenes, whole, tmp_path):
    "Saved as it is, it still stops before what follows the training"
    class Late(Callback):
        order = 70
        def after_fit(self): ctrl_c()
    with pytest.raises(KeyboardInterrupt, match='at the end of stage 1; .*resume=True'): run(scenes, tmp_path, cbs=[Late()])
    same(result(run(scenes, tmp_path, resume=True)), result(whole))

@pytest.mark.parametrize('batch', [3, 5, 8])
def test_a_stage_that_is_stopped_early(scenes, tmp_path, batch):
    "Its end is a checkpoint, too: it is not trained again; how long it has been without a better score is kept"
    stages,told = [Stage(9, 1e-2, freeze=True, bs=20, one_cycle=False), Stage(1, 1e-3, bs=20)],lambda: Told(20., 19., 18., 17.)   # 6 batches and 2
    def patient(): return EarlyStoppingCallback('bleu4', patience=2)
    whole = run(scenes, tmp_path/'whole', stages, [patient()], metric=told())
    assert [r['stage'] for r in whole.history.rows] == [1, 1, 1, 2]
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, stages, [patient(), At(batch, stop)], metric=told())
    same(result(run(scenes, tmp_path, stages, [patient()], metric=told(), resume=True)), result(whole))

def test_another_rate_or_batch_size_from_here_on(scenes, tmp_path):
    "What a message of no numbers, or of too little memory, advises: the stage goes on from where it was, with a warning"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=[At(12, ctrl_c)])   # after 2 of 3 batches of 16
    with pytest.warns(UserWarning, match=r'stage 2 goes on with lr=0.0001, bs=8, where it had lr=slice'): learn = run(scenes, tmp_path, [STAGES[0], Stage(2, 1e-4, bs=8)], resume=True)
    assert [r['batches'] for r in learn.history.rows] == [5, 10, 13, 18] and max(learn.history.lrs[12:]) <= 1e-4

def test_lr_find_leaves_no_trace(scenes, whole, tmp_path):
    "Nor does a run depend on whether a rate was looked for before: one that is resumed does without"
    learn = run(scenes, tmp_path, STAGES[:1], find=True)
    assert list(map(float, learn.history.losses)) == list(map(float, whole.history.losses))[:10]

def test_half_a_step(scenes, whole, tmp_path):
    "Gradients of a batch that was broken off before its step do not count when the same learner goes on"
    class Break(Callback):
        def before_step(self):
            if len(self.history.losses) == 7: self.broken = self.learn; stop()
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=[cb := Break()])
    learn = cb.broken
    with learn.no_bar(), learn.no_logging(): learn.fit_stages(STAGES, [EarlyStoppingCallback('bleu4', patience=9)], resume=True)
    same(result(learn), result(whole))

def test_callbacks_that_keep_a_score(scenes, tmp_path):
    "Each goes on from its own best score; one may be left out"
    def worst(): return SaveModelCallback('valid_loss', comp=np.greater, fname='worst')
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, STAGES[:1], cbs=[worst(), EarlyStoppingCallback('valid_loss', patience=9), At(7, stop)])
    learn = run(scenes, tmp_path, STAGES[:1], cbs=[cb := worst()], resume=True)
    first,second = (r['valid_loss'] for r in learn.history.rows)
    assert cb.best == first > second

class Scaled(MixedPrecision):
    "Gradients scaled as on a GPU, by a scale that doubles every three batches"
    def before_fit(self):
        super().before_fit()
        self.learn.scaler,self.seen = GradScaler('cpu', init_scale=8., growth_interval=3),[]
    def after_batch(self):
        if self.training: self.seen.append(self.learn.scaler.get_scale())

def test_scale_of_mixed_precision(scenes, tmp_path):
    "It goes on from where it was, too"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, STAGES[:1], cbs=[Scaled(), At(7, stop)], save_minutes=0)
    run(scenes, tmp_path, STAGES[:1], cbs=[cb := Scaled()], resume=True)
    assert cb.seen == [32., 32., 64., 64.]   # 8, 8, 16, 16, 16, 32 before

def test_resumed_with_something_else(scenes, whole, tmp_path):
    "Other captions, a model of another size, another optimiser or augmentation are refused, by their names; the same ones go on afterwards"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=[At(7, stop)])
    others = write_shapes(tmp_path/'others', n_train=40, n_valid=8, n_test=4, seed=9)
    fails(ValueError, lambda: run(others, tmp_path, resume=True), tmp_path/'models', 'other captions', 'without resume')
    swapped = shutil.copytree(scenes, tmp_path/'swapped')
    a,b,*_ = sorted((swapped/'Images').iterdir(), key=lambda f: f.stat().st_size)
    for f,raw in ((a, b.read_bytes() + b'\0'), (b, a.read_bytes())): f.write_bytes(raw)
    fails(ValueError, lambda: run(swapped, tmp_path, resume=True), 'other captions, pictures or words')
    for given in dict(n_hid=20), dict(p=0.4), dict(label_smoothing=0.2), dict(opt_func='adam'), dict(wd=0.5), dict(pr_force=0.5):
        (name,value), = given.items()
        fails(ValueError, lambda: run(scenes, tmp_path, resume=True, **given), tmp_path/'models', f'{name}=', f'not {value}', 'without resume')
    fails(ValueError, lambda: run(scenes, tmp_path, resume=True, data=dict(aug=Augment(crop=0.1))), "aug={'crop': 0.2", "not {'crop': 0.1", 'without resume')
    fails(ValueError, lambda: run(scenes, tmp_path, resume=True, pr_force=SchedLin(0.8, 0.7)), 'pr_force=0.8, not [0.8', 'without resume')
    fails(ValueError, lambda: run(scenes, tmp_path, resume=True, metric=BleuMetric(n=1)), 'pictures of bleu4=None, not 1', 'without resume')
    fails(ValueError, lambda: run(scenes, tmp_path, resume=True, cbs=[GradientAccumulation(8)]), "callbacks=[], not ['gradient_accumulation']", 'without resume')
    fails(ValueError, lambda: run(scenes, tmp_path, resume=True, cache=1), 'views of cached features=None, not 1', 'without resume')
    same(result(run(scenes, tmp_path, resume=True)), result(whole))

def test_resumed_with_another_batch_size(scenes, tmp_path):
    "Where no stage has one of its own"
    stages = [Stage(2, 1e-2, freeze=True)]
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, stages, cbs=[At(7, stop)], data=dict(bs=8))
    fails(ValueError, lambda: run(scenes, tmp_path, stages, resume=True, data=dict(bs=10)), 'was begun with bs=8, not 10', 'without resume')

def test_two_trainings_in_one_folder(scenes, whole, tmp_path, monkeypatch):
    "The second one is refused, with or without resume, and disturbs nothing; afterwards the folder is free"
    monkeypatch.setattr(learner.SaveProgress, 'patience', 0.1)
    def others():
        for resume in (False, True): fails(OSError, lambda: run(scenes, tmp_path, resume=resume), tmp_path/'models', 'another training is under way')
    same(result(run(scenes, tmp_path, cbs=[At(7, others)], save_minutes=0)), result(whole))
    same(result(run(scenes, tmp_path, resume=True)), result(whole))

def test_a_new_run_where_another_was_not_done(scenes, tmp_path):
    "Without resume the checkpoint of a run that was not at its end is kept, with a warning, and that of one that was is not"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, STAGES[:1], cbs=[At(7, stop)])
    last = checkpoints(tmp_path)[-1]
    raw,kept = last.read_bytes(),tmp_path/'models'/'unfinished_1.pth'
    with pytest.warns(UserWarning, match=rf'not at its end.*unfinished_1.pth.*{last.name}'): run(scenes, tmp_path, STAGES[:1])
    assert kept.read_bytes() == raw
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*not at its end')
        run(scenes, tmp_path, STAGES[:1])
    assert kept.read_bytes() == raw and checkpoints(tmp_path)[-1].name == 'progress_000003_end.pth' and not (tmp_path/'models'/'finished.pth').exists()

def test_a_new_run_where_the_last_checkpoint_is_damaged(scenes, tmp_path):
    "The one before it is kept, with the best weights"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, STAGES[:1], cbs=[At(7, stop)], save_minutes=0)
    good,bad = checkpoints(tmp_path)
    raw,best = good.read_bytes(),(tmp_path/'models'/'best.pth').read_bytes()
    bad.write_bytes(b'')
    with pytest.warns(UserWarning, match=rf'unfinished_1.pth.*{good.name}.*unfinished_1_best.pth'): run(scenes, tmp_path, STAGES[:1])
    assert (tmp_path/'models'/'unfinished_1.pth').read_bytes() == raw and (tmp_path/'models'/'unfinished_1_best.pth').read_bytes() == best

def test_resume_after_the_end(scenes, whole):
    "A run that has come to its end only takes its best weights"
    before = result(whole)
    same(result(run(scenes, whole.path, resume=True)), before)

def test_resume_with_other_stages(scenes, whole):
    "To go on with other stages than those that were begun is an error"
    fails(ValueError, lambda: run(scenes, whole.path, [Stage(2, 1e-2, freeze=True, bs=4)], resume=True), 'progress_', 'other stages')

def test_a_checkpoint_of_an_earlier_version(scenes, tmp_path):
    (tmp_path/'models').mkdir()
    torch.save(dict(stages=['Stage(epochs=2)'], at=0), f := io.BytesIO())
    (tmp_path/'models'/'progress_000000.pth').write_bytes(learner._check_sum(f.getvalue()) + f.getvalue())
    fails(ValueError, lambda: run(scenes, tmp_path, resume=True), 'progress_000000.pth', 'earlier version', 'without resume')

def killed(scenes, path, arm=lambda: None, **kw):
    "Train in a process of its own, where `arm` is called first; was it killed?"
    def train():
        torch.set_num_threads(1)   # those of the parent are not there
        arm()
        os._exit(run(scenes, path, **kw) is None)
    p = multiprocessing.get_context('fork').Process(target=train)
    p.start(); p.join()
    assert p.exitcode in (0, -signal.SIGKILL)
    return p.exitcode != 0

def test_killed_in_a_write(scenes, whole, tmp_path, monkeypatch):
    "Killed with half a checkpoint written, then in a batch of the second stage, a run ends with the same weights"
    with monkeypatch.context() as m:
        done,sync = count(),os.fsync
        def half(fd): os.ftruncate(fd, os.fstat(fd).st_size//2) or kill() if next(done) == 9 else sync(fd)
        m.setattr(learner.os, 'fsync', half)
        assert killed(scenes, tmp_path, save_minutes=0)
    assert list((tmp_path/'models').glob('*.part'))
    assert killed(scenes, tmp_path, cbs=[At(12, kill)], resume=True, save_minutes=0.005)
    same(result(run(scenes, tmp_path, resume=True)), result(whole))
    assert not list((tmp_path/'models').glob('*.part')) and len(checkpoints(tmp_path)) == 2

def up_and_down(): return Told(30., 20., 31., 30.5)   # the best weights of a stage are not its last

@pytest.fixture(scope='module')
def on_features(scenes, tmp_path_factory):
    "A run that is not killed, and how long it takes"
    path = tmp_path_factory.mktemp('on_features')
    start = time.monotonic()
    killed(scenes, path, cache=True, save_minutes=0, metric=up_and_down())   # in a process of its own, as those that are killed
    return run(scenes, path/'again', cache=True, metric=up_and_down()),time.monotonic() - start

@pytest.mark.parametrize('i', [0, 1, 2, *(pytest.param(i, marks=pytest.mark.long) for i in range(3, 30))])
def test_killed_at_any_moment(scenes, on_features, tmp_path, i):
    "Killed at a random moment of all, while the cache is built, or while a checkpoint is written, a run ends with the same weights"
    whole,seconds = on_features
    rng = random.Random(i)
    def soon(most): threading.Timer(rng.uniform(0, most), kill).start()
    def arm(seconds):
        if i % 3 == 0: return soon(seconds)
        module,name,n = (features, '_forward', 14) if i % 3 == 1 else (learner, '_write', 24)
        f,calls,at = getattr(module, name),count(),rng.randrange(n)
        def then(*args):
            if next(calls) == at: soon(0.02)
            return f(*args)
        setattr(module, name, then)
    path = next(p for n in range(9) if killed(scenes, p := tmp_path/str(n), lambda: arm(seconds/2**n), cache=True, save_minutes=0, metric=up_and_down()))   # one that came to its end tells nothing
    same(result(run(scenes, path, resume=True, cache=True, metric=up_and_down())), result(whole))
    assert (path/'features').read_bytes() == (whole.path/'features').read_bytes()
    assert {f.name for f in path.iterdir()} == {'features', 'features.lock', 'history.csv', 'models'}

def test_ctrl_c(scenes, whole, tmp_path):
    "Ctrl-C saves after the batch and says how to go on; afterwards Ctrl-C is what it was"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r'after batch 2 of epoch 1; fit_stages\(..., resume=True\) goes on'): run(scenes, tmp_path, cbs=[At(7, ctrl_c)])
    assert signal.getsignal(signal.SIGINT) is before and len(checkpoints(tmp_path)) == 2
    same(result(run(scenes, tmp_path, resume=True)), result(whole))

def test_ctrl_c_twice(scenes, tmp_path):
    "A second Ctrl-C stops at once"
    def twice(): ctrl_c(); ctrl_c()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as e: run(scenes, tmp_path, cbs=[At(7, twice)])
    finally: signal.signal(signal.SIGINT, before)
    assert not str(e.value) and len(checkpoints(tmp_path)) == 2

def test_damaged_checkpoints(scenes, whole, tmp_path):
    "A damaged checkpoint is passed over for the one before; where all are, that is an error"
    def flip(f): f.write_bytes((raw := f.read_bytes())[:-999] + bytes([raw[-999] ^ 1]) + raw[-998:])
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=[At(7, stop)], save_minutes=0)
    flip(checkpoints(tmp_path)[1])
    with pytest.warns(UserWarning, match='damaged, passed over'): learn = run(scenes, tmp_path, resume=True)
    same(result(learn), result(whole))
    for f in checkpoints(tmp_path): flip(f)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        fails(ValueError, lambda: run(scenes, tmp_path, resume=True), 'all checkpoints are damaged')

def unreadable(m, file):
    "A disk that cannot read `file`"
    def opened(f, mode='r', *args, open=io.open, **kwargs):
        if str(f) == str(file) and mode == 'rb': raise OSError(errno.EIO, os.strerror(errno.EIO), str(f))
        return open(f, mode, *args, **kwargs)
    m.setattr(io, 'open', opened)

@pytest.mark.parametrize('fault', ['damaged', os.strerror(errno.EIO)])
def test_a_damaged_checkpoint_does_not_count(scenes, tmp_path, monkeypatch, fault):
    "After the next save the good one before it is still there, and it is not"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=[At(7, stop)], save_minutes=0)
    good,bad = checkpoints(tmp_path)
    with monkeypatch.context() as m, pytest.warns(UserWarning, match=f'{bad.name}: {fault}, passed over'), pytest.raises(KeyboardInterrupt):
        if fault == 'damaged': bad.write_bytes(b'')
        else: unreadable(m, bad)
        run(scenes, tmp_path, cbs=[At(7, stop)], resume=True, save_minutes=0)
    assert good in checkpoints(tmp_path) and bad not in checkpoints(tmp_path) and len(checkpoints(tmp_path)) == 2

class Damage(Callback):
    "Other weights in the file of the best ones, after they were written"
    order = 62
    def after_epoch(self):
        if self.epoch == 1:
            self.last,file = tensors(self.model),self.path/'models'/'best.pth'
            torch.save({k: v*0 for k,v in self.last.items()}, file)

def test_damaged_best_weights(scenes, tmp_path):
    "The last weights take the place of best ones that are damaged, found where the run is resumed or where a stage ends"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=[At(7, stop)])
    best = tmp_path/'models'/'best.pth'
    before = torch.load(best, weights_only=False)
    best.write_bytes(b'')
    class Look(Callback):
        def before_train(self): self.read = torch.load(best, weights_only=False)
    with pytest.warns(UserWarning, match='best.pth: not the weights that were best'), pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=[look := Look(), At(7, stop)], resume=True)
    assert not changed(before, look.read)   # of the only epoch so far
    with pytest.warns(UserWarning, match='best.pth: not the weights that were best'): learn = run(scenes, tmp_path/'end', STAGES[:1], cbs=[damage := Damage()])
    assert not changed(damage.last, tensors(learn.model))

def test_full_disk(scenes, whole, tmp_path, monkeypatch):
    "A disk that is full stops the run with the numbers; what was saved is still there, and good"
    def full(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as m, pytest.raises(OSError, match=r'No space left on device: [\d.]+ MB to write, [\d.]+ MB free.*progress_'):
        run(scenes, tmp_path, cbs=[At(7, lambda: m.setattr(learner.os, 'fsync', full))], save_minutes=0)
    assert len(checkpoints(tmp_path)) == 2 and not list((tmp_path/'models').glob('*.part'))
    same(result(run(scenes, tmp_path, resume=True)), result(whole))

class Disk:
    "A disk that from the `n`-th change of something in `folder` on is full, read-only or, by the limit of the system, has room for 100 bytes a file; `file` is what could not be changed first, `saved` the last checkpoint then"
    def __init__(self, m, folder, n, code):
        self.folder,self.n,self.code,self.file,self.saved = folder,n,code,None,[]
        for module in (builtins, io): m.setattr(module, 'open', self.opened)
        new,there = lambda path, *args: not os.path.exists(path),lambda path, *args: code == errno.EROFS and os.path.exists(path)   # a full disk can remove
        for name,changes in dict(fsync=lambda *args: True, replace=lambda *args: True, mkdir=new, unlink=there, open=lambda path, flags, *args: flags & os.O_CREAT and new(path)).items():
            m.setattr(os, name, self.checked(getattr(os, name), changes))

    def change(self, file):
        "Count a change; OSError where the disk cannot make it"
        if not str(file).startswith(str(self.folder)): return
        self.n -= 1
        if self.n >= 0: return
        if self.file is None: self.file,self.saved = str(file),checkpoints(self.folder)[-1:]
        if self.code == errno.EFBIG: resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        else: raise OSError(self.code, os.strerror(self.code), str(file))

    def checked(self, f, changes):
        def g(path, *args, **kwargs):
            if changes(path, *args): self.change(os.readlink(f'/proc/self/fd/{path}') if isinstance(path, int) else path)
            return f(path, *args, **kwargs)
        return g

    def opened(self, file, mode='r', *args, open=open, **kwargs):
        if not set(mode) & set('wax+'): return open(file, mode, *args, **kwargs)
        self.change(file)
        return Written(open(file, mode, *args, **kwargs), lambda: self.change(file))

class Written:
    "An open file, into which only half of the bytes come where the disk cannot take them"
    def __init__(self, f, change): self.f,self.change = f,change
    def __getattr__(self, name): return getattr(self.f, name)
    def __enter__(self): return self
    def __exit__(self, *args): self.f.close()
    def truncate(self, size): self.change(); return self.f.truncate(size)
    def write(self, data):
        try: self.change()
        except OSError: self.f.write(data[:len(data)//2]); raise
        return self.f.write(data)

SHORT = [Stage(2, 1e-2, freeze=True, bs=8), Stage(1, 1e-3, bs=8)]   # 1, 1, 1 batches

def short_run(scenes, path, resume=False):
    "Features, three epochs with their scores, the captioner at the end"
    with redirect_stdout(io.StringIO()):
        learn = run(scenes, path, SHORT, cache=True, resume=resume, metric=Told(30., 20., 31.))   # the best weights of a stage are not its last
        learn.captioner().save(path/'captioner')
    return learn

@pytest.fixture(scope='module')
def few(tmp_path_factory): return write_shapes(tmp_path_factory.mktemp('fewer')/'scenes', n_train=8, n_valid=2, n_test=1)

@pytest.fixture(scope='module')
def short(few, tmp_path_factory): return short_run(few, tmp_path_factory.mktemp('short'))

def check_files(path, whole):
    "What is under its name is whole: checkpoints and weights can be read, the rest is what a run leaves that nothing befell"
    for f in checkpoints(path): assert learner._whole(f) and torch.load(io.BytesIO(f.read_bytes()[16:]), weights_only=False)['model'].keys() == whole.model.state_dict().keys()
    for f in (path/'models').glob('best.pth'): assert torch.load(f, weights_only=False).keys() == whole.model.state_dict().keys()
    for f in path.glob('history.csv'): assert pd.read_csv(f).columns.tolist() == whole.history.table.columns.tolist()
    for f in [*path.glob('features'), *path.glob('captioner/*[!t]')]: assert f.read_bytes() == (whole.path/f.relative_to(path)).read_bytes()   # no .part

def names(path): return {re.sub(r'\d{6}', 'n', str(f.relative_to(path))) for f in path.rglob('*')}

def survives(scenes, whole, path, n, code):
    "Train on a disk that breaks at its `n`-th change, and go on when it is well again; False if there were not so many"
    with pytest.MonkeyPatch.context() as m:
        disk = Disk(m, path, n, code)
        try: learn = short_run(scenes, path)
        except OSError as e: learn,error = None,e
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,)*2)
    if disk.file is None: same(result(learn), result(whole)); return False
    assert learn is None, f'nothing was said of {disk.file}'
    check_message(error, os.strerror(code), disk.file.removesuffix('.part'), *['B to write', 'B free'][:2*disk.file.endswith('.part')])
    assert all(f.exists() for f in disk.saved)
    check_files(path, whole)
    same(result(short_run(scenes, path, resume=True)), result(whole))
    check_files(path, whole)
    assert names(path) == names(whole.path)
    return True

@pytest.mark.parametrize('n,code', [(5, errno.ENOSPC), (26, errno.EROFS), (35, errno.EFBIG), (69, errno.ENOSPC)], ids=['features', 'checkpoint', 'best', 'captioner'])
def test_disk_that_breaks(few, short, tmp_path, n, code):
    "It stops the run with the name of the file and, where something was being written, the numbers; what was saved is still there and nothing is half a file; afterwards the run goes on and ends with the same weights"
    assert survives(few, short, tmp_path, n, code)

@pytest.mark.long
@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EROFS], ids=['full', 'read_only'])
def test_disk_that_breaks_at_any_change(few, short, tmp_path, code):
    assert next(n for n in count() if not survives(few, short, tmp_path/str(n), n, code)) > 60

def test_read_only_from_the_first_file_on(tmp_path, monkeypatch):
    "Where not even a folder can be made"
    Disk(monkeypatch, tmp_path, 0, errno.EROFS)
    fails(OSError, lambda: learner._write(tmp_path/'a'/'models'/'file', b'x'), 'Read-only file system: 0.0 MB to write', 'MB free', tmp_path/'a'/'models'/'file')

@pytest.mark.parametrize('opt', OPTS)
def test_rate_falls_on_a_plateau(scenes, tmp_path, opt):
    "Three epochs without a better score halve the rates of all groups three times, for each optimiser; beside a stage of one cycle that is an error"
    learn = tiny_learner(load_dls(scenes, grouped=True, bs=20), opt_func=opt, path=tmp_path)
    falls = ReduceLROnPlateau('valid_loss', min_delta=100., factor=2.)
    with learn.no_bar(), learn.no_logging(): learn.fit_stages([Stage(4, slice(1e-5, 1e-3), freeze=True, one_cycle=False)], falls)
    assert learn.history.lrs == pytest.approx([lr for lr in (1e-3, 1e-3, 5e-4, 2.5e-4) for _ in range(2)])
    assert [h['lr'] for h in learn.opt.hypers] == pytest.approx([1e-5/8, 1e-4/8, 1e-3/8])
    fails(ValueError, lambda: learn.fit_stages([Stage(1)], falls), 'ReduceLROnPlateau', 'one_cycle=False')

def test_fallen_rate_is_resumed(scenes, tmp_path):
    stages,falls = [Stage(3, 1e-2, freeze=True, bs=8, one_cycle=False)],lambda: ReduceLROnPlateau('train_loss', min_delta=100.)
    whole = run(scenes, tmp_path/'whole', stages, [falls()])
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, stages, [falls(), At(12, stop)])
    same(result(run(scenes, tmp_path, stages, [falls()], resume=True)), result(whole))
    assert min(whole.history.lrs) == pytest.approx(1e-3)

class Poison(Callback):
    "The batch after the n-th of all makes no number"
    def __init__(self, n): self.n = n
    def after_pred(self):
        if self.training and len(self.history.losses) == self.n: self.learn.pred = self.pred*float('nan')

def test_loss_is_no_number(scenes, tmp_path):
    "The run stops before the weights are touched, and names the pictures"
    with pytest.raises(ValueError, match='the loss is nan in epoch 1, batch 2') as e: run(scenes, tmp_path, cbs=[Poison(7)], save_minutes=0)
    assert str(e.value).count('.jpg') == 8 and checkpoints(tmp_path)[-1].name in str(e.value)
    for f in checkpoints(tmp_path):
        model = torch.load(io.BytesIO(f.read_bytes()[16:]), weights_only=False)['model']
        assert all(v.isfinite().all() for v in model.values())

@pytest.mark.parametrize('stages', [STAGES, [STAGES[0], Stage(1, 1e-3, self_critical=True)]], ids=['scheduled_sampling', 'self_critical'])
def test_scores_are_no_numbers(scenes, tmp_path, stages):
    "Where the model draws words of its own the run stops with the same message"
    class Numb(Callback):
        order = -9   # before captions are drawn
        def before_batch(self):
            if self.training and len(self.history.losses) == 11: self.model.decoder.out.bias.data[7] = float('nan')
    with pytest.raises(ValueError, match='the loss is nan in epoch 0, batch 1') as e: run(scenes, tmp_path, stages, cbs=[Numb()])
    assert str(e.value).count('.jpg') == 16 - 8*(stages is not STAGES) and checkpoints(tmp_path)[-1].name in str(e.value)

@pytest.mark.parametrize('n,where,cbs', [(6, 'epoch 1, batch 1', [At(7, ctrl_c)]), (9, 'epoch 1, batch 4', [])], ids=['ctrl_c', 'epoch'])
def test_weights_are_no_numbers(scenes, tmp_path, n, where, cbs):
    "A step to no numbers stops the run before anything is scored or saved, at the end of an epoch or at Ctrl-C, and nothing is said to be saved"
    class BadStep(Callback):
        def after_step(self):
            if len(self.history.losses) == n: next(self.model.decoder.parameters()).data[:] = float('nan')
    with pytest.raises(ValueError, match=f'weights are no numbers after the step in {where}, of .*jpg; good weights are in .*progress_000001.pth, best.pth'):
        run(scenes, tmp_path, STAGES[:1], cbs=[BadStep(), *cbs])
    assert len(checkpoints(tmp_path)) == 2
    assert all(v.isfinite().all() for v in torch.load(tmp_path/'models'/'best.pth', weights_only=False).values())

def test_a_gradient_is_no_number(scenes, tmp_path):
    "The run stops before the step, and names the pictures whose gradient it is: those with the captions of the batch"
    class Bad(Callback):
        def before_step(self):
            if len(self.history.losses) != 6: return
            next(self.model.decoder.parameters()).grad[0] = float('inf')
            self.seen,self.caps = self.model,{tuple(c[c != 0].tolist()) for caps in self.yb[0].cpu() for c in caps if c.any()}
            self.of = {os.path.basename(o.image): {tuple(i) for i in o.ids} for o in self.dls.train_ds.items}
    with pytest.raises(ValueError, match='a gradient is no number in epoch 1, batch 1, of ') as e: run(scenes, tmp_path, STAGES[:1], cbs=[bad := Bad()])
    assert all(v.isfinite().all() for v in tensors(bad.seen).values())
    names = re.findall(r'\w+\.jpg', str(e.value))
    assert len(names) == 8 and set().union(*(bad.of[n] for n in names)) == bad.caps

def test_out_of_gpu_memory(scenes, tmp_path):
    "The message says what to lower"
    def oom(): raise torch.OutOfMemoryError('CUDA out of memory')
    fails(ValueError, lambda: run(scenes, tmp_path, cbs=[At(1, oom)]), 'batches of 8 at 96 pixels', 'lower bs of this stage and resume=True')
