"Learning which words a picture has, and features that are stored between stages"
import matplotlib.pyplot as plt
import pytest, torch
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.torch_core import set_seed

import caption_fastai.interpret  # noqa: F401 - gives learners their plots
from caption_fastai.callbacks import BagOfWords, BleuMetric, WordLayer, bag_of_words
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.learner import caption_learner
from caption_fastai.model import SYSTEMS
from caption_fastai.recipes import Stage
from caption_fastai.text import Vocab
from helpers import changed, fails, fit, load_dls, tensors, tiny_learner

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('bag')/'scenes'

@pytest.fixture(scope='module')
def dls(folder): return CaptionDataLoaders.from_shapes(folder, n_train=48, n_valid=16, n_test=8, min_freq=1, bs=8, grouped=True, seed=1, num_workers=0)

@pytest.mark.parametrize('system', SYSTEMS)
@pytest.mark.parametrize('grouped', [True, False])
def test_loss(dls, folder, tmp_path, system, grouped):
    "Binary cross-entropy of each word by itself, as a loop over words has it, in training and in validation"
    data = dls if grouped else load_dls(folder, bs=8)
    learn = caption_learner(data, 'shapes_cnn', 'SHAPES', system=system, emb_sz=16, n_hid=32, metrics=[], path=tmp_path)
    learn._learn_words(True)
    layer = learn.model.decoder.words
    def by_hand(imgs, caps):
        loss = 0.
        with torch.no_grad(): feats = learn.model.features(imgs)
        for f,of_picture in zip(feats, caps.tolist()):
            said = [{*c} for c in (of_picture if grouped else [of_picture])]
            p = torch.sigmoid(layer.weight.detach() @ (f if f.ndim == 1 else f.mean(0)) + layer.bias.detach())
            for w in range(len(data.vocab)):
                share = sum(w in c for c in said)/len(said) if w > Vocab.eos_idx else 0
                loss -= share*p[w].log().item() + (1 - share)*(1 - p[w]).log().item()
        return loss/len(imgs)
    learn.model.eval()
    batches = list(data.valid)
    want = sum(by_hand(*b)*len(b[0]) for b in batches)/len(data.valid_ds)
    with learn.no_bar(), learn.no_logging(): got = learn.validate(cbs=BagOfWords())[0]
    assert got == pytest.approx(want, rel=1e-4)

def test_words_are_learned_by_the_encoder(tmp_path):
    "Pictures that were not trained on are told by it: better than by how often words are said; what is frozen stays, and attention's penalty is none of its business"
    dls = CaptionDataLoaders.from_shapes(tmp_path/'scenes', n_train=240, n_valid=40, n_test=8, min_freq=1, bs=8, grouped=True, seed=1, num_workers=0)
    set_seed(1)
    learn = tiny_learner(dls, n_hid=64, lambda_attn=1e3)
    before = tensors(learn.model.encoder)
    with learn.no_bar(), learn.no_logging(): learn.fit_stages([Stage(7, slice(1e-3, 1e-2), freeze=1, bag_of_words=True)])
    early = {id(p) for p in learn.model.encoder.early_late()[0]}
    params = dict(learn.model.encoder.named_parameters())
    moved = changed(before, tensors(learn.model.encoder)) & params.keys()
    assert moved == {k for k,p in params.items() if id(p) not in early}
    often = torch.cat([bag_of_words(caps, len(dls.vocab)) for _,caps in dls.train]).mean(0).clamp(1e-4, 1 - 1e-4)
    shares = torch.cat([bag_of_words(caps, len(dls.vocab)) for _,caps in dls.valid])
    blind = torch.nn.functional.binary_cross_entropy(often.expand_as(shares), shares, reduction='sum').item()/len(shares)
    losses = learn.history.table.words_loss.astype(float)
    assert losses.iloc[-1] < 0.95*blind, (losses.tolist(), blind)

def test_the_decoder_waits(dls, tmp_path):
    "What it was before is what it is afterwards, to the last bit; scores of captions, and who watches them, wait too"
    learn = tiny_learner(dls, path=tmp_path, metrics=[BleuMetric()])
    watcher = EarlyStoppingCallback(monitor='bleu4', patience=1)
    learn.add_cb(EarlyStoppingCallback(monitor='bleu4'))
    before,cbs = tensors(learn.model.decoder),[type(cb) for cb in learn.cbs]
    with learn.no_bar(), learn.no_logging(): learn.fit_stages([Stage(3, slice(1e-3, 1e-2), freeze=1, bag_of_words=True)], cbs=watcher)
    assert not changed(before, tensors(learn.model.decoder)) and not isinstance(learn.model.decoder, WordLayer)
    table = learn.history.table
    assert len(table) == 3 and 'bleu4' not in table and table.valid_loss.isna().all() and table.words_loss.notna().all()
    assert {type(cb) for cb in learn.cbs} == {*cbs} and [m.name for m in learn.metrics] == ['bleu4']
    fig = learn.plot_training()
    assert [ax.get_ylabel() for ax in fig.axes][:2] == ['loss', 'validation\nloss of words']
    plt.close(fig)

def test_a_stage_that_fails_gives_the_decoder_back(dls, tmp_path):
    "And captions are learned afterwards as ever"
    class Fails(Callback):
        def after_step(self): raise RuntimeError('the plug was pulled')
    learn = tiny_learner(dls, path=tmp_path)
    with learn.no_bar(), learn.no_logging(), pytest.raises(RuntimeError): learn.fit_stages([Stage(1, 1e-3, bag_of_words=True)], cbs=Fails())
    assert not isinstance(learn.model.decoder, WordLayer)
    fit(learn, 1, 1e-3)

def test_features_are_those_of_the_encoder_as_it_is(dls, tmp_path):
    "Made after the stage that trains it, and again where a second training has made another one of it; a file that somebody named is not replaced"
    stages = [Stage(1, slice(1e-3, 1e-2), freeze=1, bag_of_words=True), Stage(1, 1e-2, freeze=True, views=1), Stage(1, slice(1e-4, 1e-3), freeze=1)]
    def train(seed, **kw):
        set_seed(seed)
        learn = tiny_learner(dls, path=tmp_path)
        with learn.no_bar(), learn.no_logging(): learn.fit_stages(stages[:2], **kw)
        return learn
    for seed in (1, 2):
        learn = train(seed, cache_features=True)
        assert learn.dls.features.fits(learn.model.encoder) and learn.dls.features.fname == tmp_path/'features' and learn.dls.source is learn.dls.features
    assert train(1).dls.features is None   # not asked for
    train(1, cache_features=tmp_path/'mine')
    kept = (tmp_path/'mine').read_bytes()
    fails(ValueError, lambda: train(2, cache_features=tmp_path/'mine'), tmp_path/'mine', 'name another file')
    assert (tmp_path/'mine').read_bytes() == kept

def test_stages_that_cannot_be(dls):
    "Told before the first one is trained"
    learn = tiny_learner(dls)
    fails(ValueError, lambda: learn.fit_stages([Stage(1), Stage(1, freeze=1, views=2)]), 'views=2', 'freeze=True')
    fails(ValueError, lambda: learn.fit_stages([Stage(1), Stage(1, bag_of_words=True, self_critical=True)]), 'bag_of_words=True', 'self_critical')
    fails(ValueError, lambda: learn.fit_stages([Stage(1), Stage(1, bag_of_words=True, freeze=True)]), 'bag_of_words=True', 'freeze=1')
    with pytest.raises(ValueError, match='use learn.fit_stages.*bag_of_words=True'), learn.no_bar(): learn.fit_one_cycle(1, 1e-3, cbs=BagOfWords())
    assert not learn.history.rows
