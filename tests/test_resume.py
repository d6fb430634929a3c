"A training that was interrupted, whenever and however, goes on where it was and ends as if nothing had happened"
import builtins, errno, io, multiprocessing, os, random, resource, signal, threading, time, warnings
from contextlib import nullcontext, redirect_stdout
from itertools import count

import pytest, torch
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.torch_core import set_seed

from caption_fastai import features, learner
from caption_fastai.callbacks import BleuMetric
from caption_fastai.data import Augment
from caption_fastai.learner import Stage
from caption_fastai.shapes import write_shapes
from helpers import fails, load_dls, tensors, tiny_learner

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

def run(scenes, path, stages=STAGES, cbs=(), resume=False, save_minutes=10., cache=False, bars=False):
    "Train with all that is random: order, augmentation, dropout, scheduled sampling; with `cache` the first stage on features"
    set_seed(3)
    learn = tiny_learner(load_dls(scenes, grouped=True, aug=Augment()), path=path, p=0.5, pr_force=0.8, metrics=[BleuMetric()], history=path/'history.csv')
    if resume: set_seed(7)   # nothing may depend on what was drawn before
    if cache: learn.cache_features(bs=4)
    with nullcontext() if bars else learn.no_bar(), nullcontext() if bars else learn.no_logging():
        learn.fit_stages(stages, [EarlyStoppingCallback('bleu4', patience=9), *cbs], resume, save_minutes)
    return learn

def result(learn):
    h = learn.history
    return h.table.drop(columns='time').to_dict(), [*map(float, h.losses), *h.lrs, *h.prs], tensors(learn.model)

def same(a, b):
    assert a[:2] == b[:2]
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
    assert len(checkpoints(tmp_path)) == 2*(batch > 5)
    same(result(run(scenes, tmp_path, resume=True)), result(whole))

def test_resumed_run_shows_its_progress(scenes, whole, tmp_path, capsys):
    "As on a terminal: bars and a line for each epoch, from the one on in which it was broken off"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=[At(7, stop)])
    same(result(run(scenes, tmp_path, resume=True, bars=True)), result(whole))
    lines = [l.split() for l in capsys.readouterr().out.replace('\r', '\n').splitlines()]
    assert [l[0] for l in lines if l[-1:] and ':' in l[-1] and len(l) > 4 and l[0].isdigit()] == ['1', '0', '1']

def test_resume_after_the_end(scenes, whole):
    "A run that has come to its end only takes its best weights"
    before = result(whole)
    same(result(run(scenes, whole.path, resume=True)), before)

def test_resume_with_other_stages(scenes, whole):
    "To go on with other stages than those that were begun is an error"
    fails(ValueError, lambda: run(scenes, whole.path, [Stage(2, 1e-2, freeze=True, bs=4)], resume=True), 'progress_', 'other stages')

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

@pytest.fixture(scope='module')
def on_features(scenes, tmp_path_factory):
    "A run that is not killed, and how long it takes"
    path = tmp_path_factory.mktemp('on_features')
    start = time.monotonic()
    killed(scenes, path, cache=True, save_minutes=0)   # in a process of its own, as those that are killed
    return run(scenes, path/'again', cache=True),time.monotonic() - start

@pytest.mark.parametrize('i', [0, 1, *(pytest.param(i, marks=pytest.mark.long) for i in range(2, 30))])
def test_killed_at_any_moment(scenes, on_features, tmp_path, i):
    "Killed at a random moment of all, while the cache is built, or while a checkpoint is written, a run ends with the same weights"
    whole,seconds = on_features
    rng = random.Random(i)
    def soon(most): threading.Timer(rng.uniform(0, most), kill).start()
    def arm():
        if i % 3 == 0: return soon(seconds)
        module,name,n = (features, '_forward', 14) if i % 3 == 1 else (learner, '_write', 24)
        f,calls,at = getattr(module, name),count(),rng.randrange(n)
        def then(*args):
            if next(calls) == at: soon(0.02)
            return f(*args)
        setattr(module, name, then)
    assert killed(scenes, tmp_path, arm, cache=True, save_minutes=0) or i % 3 == 0
    same(result(run(scenes, tmp_path, resume=True, cache=True)), result(whole))
    assert (tmp_path/'features').read_bytes() == (whole.path/'features').read_bytes()
    assert {f.name for f in tmp_path.iterdir()} == {'features', 'features.lock', 'history.csv', 'models'}

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
    assert not str(e.value) and len(checkpoints(tmp_path)) == 1

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

def test_damaged_best_weights(scenes, tmp_path):
    "The last weights take the place of best ones that are damaged"
    with pytest.raises(KeyboardInterrupt): run(scenes, tmp_path, cbs=[At(7, stop)])
    (tmp_path/'models'/'best.pth').write_bytes(b'')
    with pytest.warns(UserWarning, match='best.pth: not the weights that were best'): run(scenes, tmp_path, resume=True)

def test_full_disk(scenes, whole, tmp_path, monkeypatch):
    "A disk that is full stops the run with the numbers; what was saved is still there, and good"
    def full(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as m, pytest.raises(OSError, match=r'No space left on device: [\d.]+ MB to write, [\d.]+ MB free.*progress_'):
        run(scenes, tmp_path, cbs=[At(7, lambda: m.setattr(learner.os, 'fsync', full))], save_minutes=0)
    assert len(checkpoints(tmp_path)) == 2 and not list((tmp_path/'models').glob('*.part'))
    same(result(run(scenes, tmp_path, resume=True)), result(whole))

def broken_disk(m, folder, n, fault):
    "Call `fault(path)` when in `folder` something is written, made, renamed or removed, from the `n`-th time on"
    calls = count()
    def check(path):
        if str(path).startswith(str(folder)) and next(calls) >= n: fault(path)
    def opened(file, mode='r', *args, open=open, **kwargs):
        if set(mode) & set('wax+'): check(file)
        return open(file, mode, *args, **kwargs)
    for module in (builtins, io): m.setattr(module, 'open', opened)
    for name in ('replace', 'unlink', 'mkdir'):
        def changed(path, *args, f=getattr(os, name), new=name == 'mkdir', **kwargs):
            if not (new and os.path.exists(path)): check(path)
            return f(path, *args, **kwargs)
        m.setattr(os, name, changed)

def read_only(path): raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
def full(path): resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))   # of each file there is room for 100 bytes

@pytest.mark.parametrize('fault', [read_only, full])
@pytest.mark.parametrize('n', [0, 3, 20, *(pytest.param(i, marks=pytest.mark.long) for i in range(1, 60, 3))])
def test_broken_disk(scenes, on_features, tmp_path, monkeypatch, n, fault):
    "A disk that becomes read-only or full stops the run, with the file's name, at whatever it writes; afterwards the run goes on and ends with the same weights"
    with monkeypatch.context() as m, redirect_stdout(io.StringIO()):
        broken_disk(m, tmp_path, n, fault)
        try: fails(OSError, lambda: run(scenes, tmp_path, cache=True, save_minutes=0), tmp_path)
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,)*2)
    same(result(run(scenes, tmp_path, resume=True, cache=True)), result(on_features[0]))

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

def test_out_of_gpu_memory(scenes, tmp_path):
    "The message says what to lower"
    def oom(): raise torch.OutOfMemoryError('CUDA out of memory')
    fails(ValueError, lambda: run(scenes, tmp_path, cbs=[At(1, oom)]), 'batches of 8 at 96 pixels', 'lower bs or size')
