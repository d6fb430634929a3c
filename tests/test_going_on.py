"A captioner learns more words and pictures: nothing of it is lost, and it says the new words"
from tempfile import mkdtemp

import pytest, torch

from caption_fastai.captioner import Captioner
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.encoder import Encoder
from caption_fastai.learner import caption_learner
from caption_fastai.text import Vocab
from helpers import fails, fit, tiny_learner

@pytest.fixture(scope='module')
def cached(dls, tmp_path_factory):
    "The scenes with features, of a grid and pooled"
    tmp = tmp_path_factory.mktemp('features')
    return {pool: dls.cache_features(Encoder('shapes_cnn', 'SHAPES', pool=pool), tmp/str(pool)) for pool in (False, True)}

@pytest.fixture(scope='module', params=['show_attend_tell', 'spatial_attention', 'show_and_tell', 'merge'])
def captioner(request, cached, tmp_path_factory):
    "It knows the scenes a little, and has been saved"
    pooled = request.param in ('show_and_tell', 'merge')
    sizes = {} if pooled else dict(attn_sz=16, lambda_attn=0.)
    learn = caption_learner(cached[pooled], 'features', system=request.param, emb_sz=16, n_hid=64, p=0., metrics=[], path=mkdtemp(), **sizes)
    fit(learn, 3, 2e-2)
    learn.add_encoder('SHAPES')
    return Captioner.load(learn.captioner().save(tmp_path_factory.mktemp('captioner'), half=True), 'cpu')

def going_on(captioner, table, **kw):
    dls = CaptionDataLoaders.from_captions(table, bs=16, num_workers=0, seed=1, min_freq=1, **{**captioner.data_args(), **kw})
    return caption_learner(dls, captioner, metrics=[], lambda_attn=0., path=mkdtemp())

@pytest.fixture
def discs(dls):
    "The same captions, but a circle is a disc"
    return dls.captions.assign(caption=dls.captions.caption.str.replace('circle', 'disc').str.replace('Circle', 'Disc'))

@pytest.mark.parametrize('features', [False, True], ids=['pictures', 'features'])
def test_without_new_words_it_says_the_same(captioner, dls, photos, features):
    learn = going_on(captioner, dls.captions)
    if features: learn.cache_features()
    assert learn.dls.vocab == captioner.vocab
    said,true = learn.captioner().caption(photos),captioner.caption(photos)
    assert [(c.text, c.score) for c in said] == [(c.text, c.score) for c in true]
    learn.evaluate('valid', n=5, beam_sz=3, measures=('bleu',), n_boot=0)
    assert list(learn.hyps.values()) == [c.text for c in captioner.caption(list(learn.hyps))]

def test_old_words_keep_their_scores(captioner, discs):
    learn,n = going_on(captioner, discs),len(captioner.vocab)
    assert learn.dls.vocab.itos == [*captioner.vocab.itos, *[w for w in ('disc', 'discs') if w in learn.dls.vocab.stoi]] and len(learn.dls.vocab) > n
    imgs,caps = learn.dls.one_batch()
    caps[caps >= n] = captioner.vocab.stoi['a']
    old,new = captioner.model,learn.model.eval()
    with torch.no_grad(): (a,_),(b,_) = old(imgs, caps),new(imgs, caps)
    torch.testing.assert_close(b[:,:n], a, rtol=0, atol=1e-5)
    emb = new.decoder.embedding.weight.detach()
    assert torch.equal(emb[:n], old.decoder.embedding.weight) and not torch.allclose(emb[n:].mean(), torch.zeros(()), atol=1e-7)
    assert (b[:,n:].mean() - a.mean()).abs() < 3*a.std()   # neither favoured nor left out

@pytest.mark.parametrize('features', [False, True], ids=['pictures', 'features'])
def test_new_words_are_learned(captioner, discs, features):
    learn = going_on(captioner, discs)
    if features: learn.cache_features()
    before = {k: v.clone() for k,v in captioner.model.state_dict().items()}
    fit(learn, 2, 1e-2)
    learn.evaluate('valid', beam_sz=3, measures=('bleu',), n_boot=0)
    words = {w for c in learn.hyps.values() for w in c.split()}
    assert 'disc' in words and 'circle' not in words
    assert all(torch.equal(v, before[k]) for k,v in captioner.model.state_dict().items())   # the one that it began with is left as it was

def test_it_goes_on_from_a_saved_one_again(captioner, discs, photos, tmp_path):
    "Saved with its new words, loaded, and the next words come after those"
    grown = Captioner.load(going_on(captioner, discs).captioner().save(tmp_path), 'cpu')
    again = going_on(grown, discs.assign(caption=discs.caption + ' somewhere'))
    assert again.dls.vocab.itos == [*grown.vocab.itos, 'somewhere'] and again.model.config['weights'] == 'SHAPES'
    assert len(again.captioner().caption(photos)) == len(photos)

def test_what_does_not_fit(captioner, dls, cached, tmp_path):
    table,args = dls.captions,captioner.data_args()
    fails(ValueError, lambda: going_on(captioner, table, size=64), 'size=64', 'size=96', '**captioner.data_args()')
    fails(ValueError, lambda: going_on(captioner, table, resize='crop'), "resize='crop'", '**captioner.data_args()')
    fails(ValueError, lambda: going_on(captioner, table, stats=((0.5,)*3, (0.5,)*3)), '**captioner.data_args()')
    fails(ValueError, lambda: going_on(captioner, table, start=None), 'words', '**captioner.data_args()')
    fails(ValueError, lambda: going_on(captioner, table, start=Vocab(args['start'].itos[4:], punct=True)), 'words')
    fails(TypeError, lambda: CaptionDataLoaders.from_captions(table, size=64, **args), 'size')
    fails(ValueError, lambda: caption_learner(going_on(captioner, table).dls, Captioner.ensemble([captioner]*2)), 'ensemble', 'train one of them')
    fails(FileNotFoundError, lambda: Captioner.load(tmp_path/'nowhere'), tmp_path/'nowhere')
    mine = going_on(captioner, table).dls
    for kw in (dict(emb_sz=16), dict(system='merge'), dict(weights=None), dict(word_vectors={})): fails(ValueError, lambda: caption_learner(mine, captioner, **kw), next(iter(kw)))
    other = cached[not captioner.model.encoder.pool].features
    fails(ValueError, lambda: caption_learner(mine.with_features(other), captioner), str(tuple(other.shape[1:])), 'cache_features')
