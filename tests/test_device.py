"What a GPU wants: all tensors of an operation in one place, few copies between it and the CPU, types that it has"
import copy

import pytest, torch
from accelerate.state import AcceleratorState, PartialState
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from torch import nn
from torch.amp import GradScaler, autocast

from caption_fastai.attribution import attribute, forced_caption
from caption_fastai.callbacks import CaptionLoss, SelfCritical, attention_penalty
from caption_fastai.captioner import Captioner
from caption_fastai import distributed   # noqa: F401, patches the learner
from caption_fastai.features import _encoder_key
from caption_fastai.inside import *   # noqa: F401, for `language_bias`
from caption_fastai.mistakes import CaptionInterpretation
from caption_fastai.model import SYSTEMS, caption_model
from caption_fastai.search import sample_captions, search
from device import device, fused_on, gpus
from helpers import fit, load_dls, tiny_learner

CAPS = torch.tensor([[[2,4,5,6,3,0], [2,7,3,0,0,0], [2,5,4,8,9,3]], [[2,6,3,0,0,0], [0]*6, [2,9,9,3,0,0]]])   # (2,3,6)

def some_model(system, **kw):
    torch.manual_seed(0)
    return caption_model(11, 'shapes_cnn', None, system=system, p=0., emb_sz=6, n_hid=8, **kw)

def loss_of(model, imgs, caps):
    logits,alphas = model(imgs, caps)
    return CaptionLoss(0.1)(logits, caps) + (attention_penalty(alphas, caps) if alphas.shape[-1] else 0)

def trained_and_searched(model, dev):
    "What training and each search give"
    model,imgs,caps = copy.deepcopy(model).to(dev),torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)).to(dev),CAPS.to(dev)
    (loss := loss_of(model, imgs, caps)).backward()
    nums = [loss.detach(), *(p.grad.norm() for p in model.parameters() if p.grad is not None), *CaptionLoss(reduction='none')(model(imgs, caps)[0].detach(), caps).flatten()]
    model.eval()
    with torch.no_grad():
        found = [h for kw in ({}, dict(beam_sz=3), dict(beam_sz=3, n_best=2, length_penalty=0.7)) for hs in search(model.decoder, model(imgs), max_len=7, **kw) for h in hs]
        torch.manual_seed(0)
        drawn = sample_captions(model.decoder.step, model(imgs), 2, 6).tolist()
        model.train().decoder.pr_force = 0.5
        nums.append(model(imgs, caps)[0].sum())
    assert all(h.alphas.device.type == 'cpu' for h in found)
    return torch.tensor([float(o) for o in nums] + [h.score for h in found]),[h.ids for h in found],drawn

@pytest.mark.parametrize('system', SYSTEMS)
def test_on_another_device(system):
    "The same as on the CPU"
    model = some_model(system)
    want = trained_and_searched(model, 'cpu')
    with device(): got = trained_and_searched(model, 'meta')
    torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-5)
    assert got[1:] == want[1:]

def test_few_waits():
    "A forward pass waits for the device as often for long captions as for short ones, a search a few times a word"
    model = some_model('show_attend_tell').eval()
    def waits(f):
        with device() as d, torch.no_grad():
            m = copy.deepcopy(model).to('meta')
            m.decoder.out.bias[3] = -99   # no caption ends
            imgs = torch.randn(2, 3, 96, 96).to('meta')
            state,before = m(imgs),d.waits
            f(m, imgs, state)
            return d.waits - before
    def forward(n):
        caps = torch.full((2, 3, n), 4)
        return waits(lambda m, imgs, state: m.decoder(m.features(imgs), caps.to('meta'), torch.full((2, 3), n)))
    assert forward(20) == forward(5) <= 6
    def words(n, beam_sz): return waits(lambda m, imgs, state: search(m.decoder, state, beam_sz, n))
    assert words(12, 1) - words(6, 1) <= 3*6 and words(12, 3) - words(6, 3) <= 6

def test_a_learner_is_where_its_data_are(scenes, monkeypatch):
    "From the start: what makes features, scores or captions before a fit is not left to the CPU; all of a training works there"
    fused_on(monkeypatch)
    with device():
        dls = load_dls(scenes, device='meta', grouped=True, bs=32)
        learn = tiny_learner(dls)
        assert {p.device for p in learn.model.parameters()} == {torch.device(dls.device)}
        learn.show_results(max_n=2)
        fit(learn, 1, 1e-2)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4, cbs=SelfCritical(2, 6))
        assert learn.history.rows[-1]['reward'] >= 0
        CaptionInterpretation.from_learner(learn, n=6, beam_sz=1).language_bias()

def test_drawn_captions_are_fetched_once(scenes, monkeypatch):
    "Once they are drawn, all that a batch copies is seven small tensors that say where words go, none of them back"
    fused_on(monkeypatch)
    class Count(Callback):
        order,seen = 90,[]
        def before_batch(self): self.at = d.waits
        def after_loss(self): self.seen.append(d.waits - self.at)
    with device() as d:
        learn = tiny_learner(load_dls(scenes, device='meta', grouped=True, bs=32))
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4, cbs=[SelfCritical(2, 6), count := Count()])
        assert max(count.seen) <= 7, count.seen

def test_gradients_of_lstms(dls, photos):
    "cuDNN has none of an LSTM in evaluation mode"
    captioner = Captioner(caption_model(len(dls.vocab), 'shapes_cnn', 'SHAPES', system='show_and_tell', n_layers=2, emb_sz=6, n_hid=8), dls.vocab, dls.pipeline)
    rnn = captioner.model.decoder.rnn
    def as_cudnn(m, args, out):
        def refuse(grad): raise RuntimeError('cudnn RNN backward can only be called in training mode')
        x = out[0].data if isinstance(out[0], nn.utils.rnn.PackedSequence) else out[0]
        if not m.training and x.requires_grad: x.register_hook(refuse)
    rnn.register_forward_hook(as_cudnn)
    captioner.model.eval()
    cap = forced_caption(captioner, photos[0], 'a red circle')
    a,b = (attribute(captioner, cap, 0, 'grad_cam') for _ in range(2))
    assert (a == b).all() and rnn.dropout == 0.5 and not rnn.training

class OnCPU(MixedPrecision):
    "As on a GPU"
    def before_fit(self):
        super().before_fit()
        self.autocast,self.learn.scaler = autocast('cpu', dtype=torch.bfloat16),GradScaler('cpu', enabled=False)

def test_mixed_precision_of_self_critical(scenes):
    "The encoder has it, too, and so has what draws captions"
    learn,seen = tiny_learner(load_dls(scenes, grouped=True, bs=32)),set()
    for m in (learn.model.encoder.body[1][0], learn.model.decoder.attention.query): m.register_forward_hook(lambda m, x, y: seen.add((type(m), y.dtype)) if learn.training else None)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4, cbs=[SelfCritical(2, 6), OnCPU()])
    assert {dtype for _,dtype in seen} == {torch.bfloat16} and len(seen) == 2

def test_key_of_an_encoder_in_16_bits():
    "numpy has no bfloat16"
    encoder = some_model('show_attend_tell').encoder
    keys = [_encoder_key(e.to(dtype))['weights'] for e in (encoder, copy.deepcopy(encoder)) for dtype in (torch.float32, torch.bfloat16)]
    assert keys[0] != keys[1] == keys[3]

@pytest.mark.parametrize('rank', [0, 1])
def test_each_process_has_its_own_gpu(scenes, monkeypatch, rank):
    "From the start: what a process makes before it trains with others is not on the first GPU"
    gpus(monkeypatch, 'cpu', 'meta')
    for k,v in dict(WORLD_SIZE=2, LOCAL_RANK=rank).items(): monkeypatch.setenv(k, str(v))
    with device():
        learn = tiny_learner(load_dls(scenes, bs=4))
        imgs,caps = learn.dls.one_batch()
    assert {torch.device(o.device).type for o in (imgs, caps, learn.dls, *learn.model.parameters())} == {('cpu', 'meta')[rank]}

def test_in_distrib_ctx_all_is_on_the_own_gpu(scenes, monkeypatch, tmp_path):
    "From its beginning, not only once it trains: a learner that was made elsewhere, its data, and what is evaluated"
    for c in (PartialState, AcceleratorState): monkeypatch.setattr(c, '_shared_state', {})
    for k,v in dict(ACCELERATE_TORCH_DEVICE='meta', WORLD_SIZE='1').items(): monkeypatch.setenv(k, v)
    with device() as d:
        learn = tiny_learner(load_dls(scenes, bs=4, device='cpu'), path=tmp_path)
        learn.to_distributed()
        assert {torch.device(o.device).type for o in (*learn.dls.one_batch(), learn.dls, *learn.model.parameters(), *learn.model.buffers())} == {'meta'}
        before = d.waits
        learn.evaluate(n=2, measures=['bleu'], n_boot=0)
        assert d.waits > before
