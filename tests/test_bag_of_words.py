"Learning which words a picture has, and features that are stored between stages"
import pytest, torch
from fastai.torch_core import set_seed

from caption_fastai.callbacks import BagOfWords, bag_of_words
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
    "Cross-entropy of the scores after `BOS` against the share of each word, as a loop over words has it, in training and in validation"
    data = dls if grouped else load_dls(folder, bs=8)
    learn = caption_learner(data, 'shapes_cnn', 'SHAPES', system=system, emb_sz=16, n_hid=32, metrics=[], path=tmp_path)
    def by_hand(imgs, caps):
        loss = 0.
        with torch.no_grad(): logp = learn.model(imgs, caps[...,:2])[0].log_softmax(-1).view(len(imgs), -1, len(data.vocab))[:,0]
        for i,of_picture in enumerate(caps.tolist()):
            said = [w for c in (of_picture if grouped else [of_picture]) for w in {*c} if w > Vocab.eos_idx]
            loss -= sum(logp[i,w].item() for w in said)/len(said)
        return loss/len(imgs)
    learn.model.eval()
    batches = list(data.valid)
    want = sum(by_hand(*b)*len(b[0]) for b in batches)/len(data.valid_ds)
    with learn.no_bar(), learn.no_logging(): got = learn.validate(cbs=BagOfWords())[0]
    assert got == pytest.approx(want, rel=1e-5)

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
    often = torch.cat([bag_of_words(caps, len(dls.vocab)) for _,caps in dls.train]).mean(0)
    shares = torch.cat([bag_of_words(caps, len(dls.vocab)) for _,caps in dls.valid])
    blind = -(shares*often.clamp(min=1e-6).log()).sum(1).mean().item()
    losses = learn.history.table.valid_loss.astype(float)
    assert losses.iloc[-1] < blind - 0.02, (losses.tolist(), blind)

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
    assert not learn.history.rows

def test_in_a_plain_session(dls):
    "By `fit_one_cycle`, and captions are learned afterwards as ever"
    learn = fit(tiny_learner(dls), 1, 1e-2, cbs=BagOfWords())
    assert not hasattr(learn, 'bag_of_words')
    assert fit(learn, 1, 1e-2).history.rows[-1]['batches'] == 12
