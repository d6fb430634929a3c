"Training in two processes is training in one with twice the batch"
import builtins, io, os, shutil, signal, socket, subprocess, sys, time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pandas as pd, pytest, torch
from accelerate import debug_launcher
from fastai.callback.core import Callback
from fastai.torch_core import rank_distrib, set_seed
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from caption_fastai.app import caption_train
from caption_fastai.callbacks import BleuMetric
from caption_fastai.data import SortishSampler
from caption_fastai.distributed import ShareBatches
from caption_fastai.learner import Stage, caption_learner
from caption_fastai.metrics import WITHOUT_JAVA, Top5Accuracy
from caption_fastai.shapes import write_shapes
from helpers import fails, flickr_folder, load_dls, some_captions, tensors, tiny_learner

STAGES = [Stage(1, 1e-2, freeze=True), Stage(1, slice(1e-4, 1e-3))]

@pytest.fixture(scope='module')
def scenes(tmp_path_factory): return write_shapes(tmp_path_factory.mktemp('few')/'scenes', n_train=7, n_valid=5, n_test=5)

def in_two(f, *args):
    "Run `f(*args)` in two processes on the CPU"
    def alone():
        torch.set_num_threads(1)
        os.environ['RANK'] = str(torch.distributed.get_rank())   # as other launchers do
        f(*args)
    debug_launcher(alone)

class In64Bits(Callback):
    "Inputs of 64 bits; keeps the gradients of each step"
    order = -9   # before `SelfCritical`
    def __init__(self): self.grads = []
    def before_batch(self): self.learn.xb = tuple(x.double() if x.is_floating_point() else x for x in self.xb)
    def before_step(self): self.grads.append({n: p.grad.clone() for n,p in self.model.named_parameters() if p.grad is not None})

class Loss32(Callback):
    "fastai's record of the loss is of 32 bits"
    order = 40
    def after_loss(self): self.learn.loss = self.loss.detach().float()

def fit(scenes, path, bs, stages=STAGES, cbs=(), resume=False, save_minutes=10., store=False, **kw):
    set_seed(3)
    learn = tiny_learner(load_dls(scenes, bs=bs, val_bs=4), path=path, metrics=[Top5Accuracy(), BleuMetric()], lambda_attn=1., history=path/'history.csv', **kw)
    learn.model.double()
    learn.add_cbs([in64 := In64Bits(), Loss32()])
    with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
        learn.fit_stages(stages, cbs, resume, save_minutes, cache_features=store)
        scores = learn.evaluate('test', beam_sz=2, measures=WITHOUT_JAVA)
    return [in64.grads, tensors(learn.model), learn.history.table.drop(columns='time'), list(map(float, learn.history.losses)), scores]

def fit_in_two(scenes, path, **kw):
    "What the first process gives; the second may not write"
    def f():
        if rank_distrib():
            was = builtins.open
            def reads(file, mode='r', *args, **kwargs):
                assert not set(mode) & set('wax+') or str(file) == os.devnull or 'errorfile' in str(file), f'the second process writes {file}'
                return was(file, mode, *args, **kwargs)
            builtins.open = reads
        res = fit(scenes, path, **kw)
        if not rank_distrib(): torch.save(res, path/'result')
    in_two(f)
    return torch.load(path/'result', weights_only=False)

@pytest.fixture(scope='module')
def two(scenes, tmp_path_factory): return fit_in_two(scenes, tmp_path_factory.mktemp('two'), bs=8)

def close(a, b, eps):
    assert a.keys() == b.keys()
    errors = {k: float((a[k] - b[k]).abs().max()/max(1, b[k].abs().max())) for k in a}
    assert max(errors.values()) <= eps, errors

def test_like_one_process(scenes, two, tmp_path):
    "35 captions in batches of 16 (one process), of 8 and 8, at the end of 2 and 1 (two processes): gradients, weights, losses and scores"
    one = fit(scenes, tmp_path, bs=16)
    assert len(one[0]) == len(two[0]) == 6
    for a,b in zip(one[0], two[0]): close(a, b, 1e-10)
    close(one[1], two[1], 1e-8)
    pd.testing.assert_frame_equal(one[2], two[2], rtol=1e-5)
    assert one[3] == pytest.approx(two[3], rel=1e-6)
    assert one[4].pop('top5_accuracy') == pytest.approx(two[4].pop('top5_accuracy'))
    assert one[4] == two[4]

class NoDropout(Callback):
    def before_train(self):
        for m in self.model.modules():
            if isinstance(m, torch.nn.Dropout): m.p = 0.

def test_words_and_features_between_stages(scenes, tmp_path):
    "The encoder learns words, and the first process alone stores its features: as in one process"
    stages = [Stage(1, slice(1e-4, 1e-2), freeze=1, bag_of_words=True), Stage(1, 1e-2, freeze=True, views=1)]
    two = fit_in_two(scenes, tmp_path/'two', bs=8, stages=stages, cbs=[NoDropout()], store=True)
    one = fit(scenes, tmp_path/'one', bs=16, stages=stages, cbs=[NoDropout()], store=True)
    assert len(one[0]) == len(two[0]) == 6
    for a,b in zip(one[0][:3], two[0][:3]): close(a, b, 1e-10)
    for a,b in zip(one[0][3:], two[0][3:]): close(a, b, 1e-3)   # features are of 16 bits
    assert one[3][3:] == pytest.approx(two[3][3:], rel=1e-3)
    assert one[2].words_loss[0] == pytest.approx(two[2].words_loss[0], rel=1e-6)

def kill(): os.kill(os.getpid(), signal.SIGKILL)

class At(Callback):
    "Call `f` in the second process, in the n-th training batch of all"
    def __init__(self, batch, f): self.batch,self.f = batch,f
    def before_batch(self):
        if rank_distrib() and self.training and len(self.history.losses) + 1 == self.batch: self.f()

def test_killed(scenes, two, tmp_path):
    "Where one is killed the other is stopped; resumed, they end with the same weights; other numbers of processes are refused"
    with pytest.raises(ProcessExitedException, match='signal SIGKILL'): fit_in_two(scenes, tmp_path, bs=8, cbs=[At(4, kill)], save_minutes=0)
    again = fit_in_two(scenes, tmp_path, bs=8, resume=True)
    close(again[1], two[1], 0)
    assert again[2].equals(two[2]) and again[3] == two[3]
    fails(ValueError, lambda: fit(scenes, tmp_path, bs=8, resume=True), 'other stages', 'in 2 processes')

def ctrl_c(): os.kill(os.getpid(), signal.SIGINT)

def test_ctrl_c(scenes, two, tmp_path):
    "Asked of the second process alone, both stop after this batch, and the first one saves; resumed, they end with the same weights"
    with pytest.raises(FileNotFoundError): fit_in_two(scenes, tmp_path, bs=8, cbs=[At(4, ctrl_c)])   # there is no result
    last = torch.load(io.BytesIO(max((tmp_path/'models').glob('progress_*.pth')).read_bytes()[16:]), weights_only=False)
    assert (last['at'], last['epoch'], last['batch']) == (1, 0, 1)
    close(fit_in_two(scenes, tmp_path, bs=8, resume=True)[1], two[1], 0)

def test_error(scenes, tmp_path):
    "An error of one process stops all and is told"
    def bad(): raise ValueError('a bad batch')
    with pytest.raises(ProcessRaisedException, match='a bad batch'): fit_in_two(scenes, tmp_path, bs=8, cbs=[At(3, bad)])

@pytest.mark.parametrize('rotated', [False, True])
def test_other_data(scenes, tmp_path, rotated):
    "Processes with different data are told so, also where they are as many pictures and words"
    def f():
        if rank_distrib() and rotated:
            tokens = shutil.copytree(scenes, tmp_path/'other')/'Flickr8k.token.txt'
            names,caps = zip(*(l.split('\t') for l in tokens.read_text().splitlines()))
            tokens.write_text('\n'.join(map('\t'.join, zip(names, caps[5:] + caps[:5]))))
        elif rank_distrib(): write_shapes(tmp_path/'other', n_train=6, n_valid=5, n_test=5)
        fit(tmp_path/'other' if rank_distrib() else scenes, tmp_path, bs=8)
    with pytest.raises(ProcessRaisedException, match='not at the same place'): in_two(f)

@pytest.mark.long
@pytest.mark.parametrize('system', ['spatial_attention', 'show_and_tell', 'merge', 'merge_bidirectional'])
def test_systems(scenes, tmp_path, system):
    "All systems can be trained"
    def f():
        learn = caption_learner(load_dls(scenes, bs=4, grouped=True), 'shapes_cnn', system=system, emb_sz=16, n_hid=32, metrics=[], path=tmp_path)
        with learn.distrib_ctx(), learn.no_bar(), learn.no_logging(): learn.fit_stages(STAGES[1:])
    in_two(f)

@pytest.mark.long
def test_self_critical(scenes, tmp_path): fit_in_two(scenes, tmp_path, bs=8, stages=[Stage(1, 1e-3, freeze=True), Stage(1, 1e-3, freeze=True, self_critical=True)])

def test_command(tmp_path):
    "Both run `caption_train`, with features on disk; one prints"
    folder = flickr_folder(tmp_path/'data', some_captions(12))
    def f():
        with open(tmp_path/f'out{rank_distrib()}', 'w') as sys.stdout:
            caption_train([*f'--data {folder} --out {tmp_path}/out --arch shapes_cnn --size 96 --min_freq 1 --num_workers 0 --epochs 1,1 --lr 1e-3 --bs 4'.split(),
                           *'--emb_sz 16 --attn_sz 16 --n_hid 32 --cache_features --no-grouped'.split()])
    in_two(f)
    assert {'model.safetensors', 'history.csv', 'features', 'training.png'} <= {o.name for o in (tmp_path/'out').iterdir()}
    assert len(pd.read_csv(tmp_path/'out'/'history.csv')) == 2
    said = (tmp_path/'out0').read_text()
    assert said.count('after stage 2') == said.count('captioner: ') == 1 and not (tmp_path/'out1').read_text()

@pytest.mark.parametrize('n', [5, 6, 16, 17, 31, 32, 50])
@pytest.mark.parametrize('n_ranks', [1, 2, 3])
def test_shares(n, n_ranks):
    "The shares of a batch together are the batch of one process; none is empty"
    def batches(rank):
        dl = SortishSampler(list(range(n)), bs=2*n_ranks, shuffle=True, num_workers=0, res=list(range(n)))
        dl.rank,dl.n_ranks,dl.drop_last = rank,n_ranks,n % (2*n_ranks) < n_ranks
        return [b.tolist() for b in dl]
    whole = SortishSampler(list(range(n)), bs=2*n_ranks, shuffle=True, num_workers=0, res=list(range(n)))
    for own,b in zip(zip(*map(batches, range(n_ranks)), strict=True), whole): assert sum(own, []) == b.tolist() and all(own)

def test_nothing_to_read(scenes):
    "A process of whose share no picture can be read does not keep the others waiting"
    dl = load_dls(scenes, bs=2).train
    bad = {dl.dataset.items[i].image for i in dl.get_idxs()[:2]} - {dl.dataset.items[0].image}
    dl.n_ranks = 2
    dl.do_item = lambda i, do=dl.do_item: None if dl.dataset.items[i].image in bad else do(i)
    assert bad and len(list(dl)) == len(dl)

def test_without_accelerate(monkeypatch):
    monkeypatch.delitem(sys.modules, 'caption_fastai.distributed')
    monkeypatch.setitem(sys.modules, 'accelerate.utils', None)
    with pytest.raises(ImportError, match=r'caption_fastai\[distributed\]'): import_module('caption_fastai.distributed')

@pytest.mark.long
def test_launched(tmp_path):
    "`accelerate launch caption_train`: where a process is killed all end, with a message, and with --resume the run comes to its end"
    folder = flickr_folder(tmp_path/'data', some_captions(40))
    with socket.create_server(('127.0.0.1', 0)) as free: port = free.getsockname()[1]
    command = [*f'-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port {port}'.split(), Path(sys.executable).with_name('caption_train'),
               *f'--data {folder} --out {tmp_path}/out --arch shapes_cnn --size 96 --min_freq 1 --num_workers 0 --epochs 2,20 --lr 1e-3 --bs 4 --save_minutes 0'.split()]
    def launch(*more): return subprocess.Popen([sys.executable, *command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, 'ACCELERATE_USE_CPU': 'true'})
    with launch() as p:
        try:
            while len(list(tmp_path.glob('out/models/progress_*.pth'))) < 2: time.sleep(0.1); assert p.poll() is None
            children = subprocess.run(['pgrep', '-P', str(p.pid)], capture_output=True, text=True).stdout.split()
            second, = (int(o) for o in children if b'\0RANK=1\0' in Path(f'/proc/{o}/environ').read_bytes())
            os.kill(second, signal.SIGKILL)
            said = p.communicate(timeout=100)[0]
        finally: p.terminate()
    assert p.returncode and 'rank      : 1' in said and 'Signal 9 (SIGKILL)' in said, said
    with launch('--resume', '--epochs', '2,2') as p: said = p.communicate(timeout=500)[0]
    assert p.returncode == 0 and said.count('after stage 2') == 1, said

def test_accumulated_gradients_are_refused():
    cb = ShareBatches()
    cb.learn = SimpleNamespace(gradient_accumulation=object())
    fails(ValueError, cb.before_fit, 'GradientAccumulation')
