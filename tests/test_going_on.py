"A captioner learns more words and pictures: nothing of it is lost, and it says the new words"
import pytest, torch
from fastai.torch_core import set_seed

from caption_fastai.captioner import Captioner
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.encoder import Encoder
from caption_fastai.learner import caption_learner
from caption_fastai.recipes import recipes
from caption_fastai.text import Vocab
from helpers import changed, fails, fit, new_path, tensors

def kept(learn, folder):
    "Its captioner, saved in 16 bits and loaded"
    return Captioner.load(learn.captioner().save(folder, half=True), 'cpu')

@pytest.fixture(scope='module', params=['show_attend_tell', 'spatial_attention', 'show_and_tell', 'merge'])
def captioner(request, dls, tmp_path_factory):
    "It has learned nothing, but prefers some words to others"
    set_seed(3)
    learn = caption_learner(dls, 'shapes_cnn', system=request.param, emb_sz=16, n_hid=64, p=0., lambda_attn=0., metrics=[], path=new_path())
    learn.model.decoder.out.weight.data *= 30
    return kept(learn, tmp_path_factory.mktemp('captioner'))

one_system = pytest.mark.parametrize('captioner', ['spatial_attention'], indirect=True)

def going_on(captioner, table, **kw):
    dls = CaptionDataLoaders.from_captions(table, bs=16, num_workers=0, seed=1, min_freq=1, **{**captioner.data_args(), **kw})
    return caption_learner(dls, captioner, metrics=[], lambda_attn=0., path=new_path())

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

def learns_discs(captioner, discs, features, epochs, lr):
    learn,before = going_on(captioner, discs),tensors(captioner.model)
    if features: learn.cache_features()
    fit(learn, epochs, lr)
    learn.evaluate('valid', beam_sz=3, measures=('bleu',), n_boot=0)
    words = {w for c in learn.hyps.values() for w in c.split()}
    assert 'disc' in words and 'circle' not in words
    assert not changed(before, tensors(captioner.model))   # the one that it began with is left as it was

def test_a_new_word_is_learned(trained, discs, tmp_path): learns_discs(kept(trained, tmp_path), discs, True, 3, 1e-2)

@pytest.mark.long
@pytest.mark.parametrize('features', [False, True], ids=['pictures', 'features'])
def test_every_system_learns_a_new_word(captioner, discs, features): learns_discs(captioner, discs, features, 8, 1e-2)

@one_system
def test_it_goes_on_from_a_saved_one_again(captioner, discs, photos, tmp_path):
    "Saved with its new words, loaded, and the next words come after those"
    grown = Captioner.load(going_on(captioner, discs).captioner().save(tmp_path), 'cpu')
    again = going_on(grown, discs.assign(caption=discs.caption + ' somewhere'))
    assert again.dls.vocab.itos == [*grown.vocab.itos, 'somewhere'] and again.model.config['weights'] == 'SHAPES'
    assert len(again.captioner().caption(photos)) == len(photos)

@one_system
def test_what_does_not_fit(captioner, dls, discs, tmp_path):
    table,args = dls.captions,captioner.data_args()
    fails(ValueError, lambda: going_on(captioner, table, size=64), 'size=64', 'size=96', '**captioner.data_args()')
    fails(ValueError, lambda: going_on(captioner, table, resize='crop'), "resize='crop'", '**captioner.data_args()')
    fails(ValueError, lambda: going_on(captioner, table, stats=((0.5,)*3, (0.5,)*3)), '**captioner.data_args()')
    fails(ValueError, lambda: going_on(captioner, discs, start=None), 'words', '**captioner.data_args()')
    fails(ValueError, lambda: going_on(captioner, table, start=Vocab(args['start'].itos[4:], punct=True)), 'words')
    fails(TypeError, lambda: CaptionDataLoaders.from_captions(table, size=64, **args), 'size')
    fails(ValueError, lambda: caption_learner(going_on(captioner, table).dls, Captioner.ensemble([captioner]*2)), 'ensemble', 'train one of them')
    fails(FileNotFoundError, lambda: Captioner.load(tmp_path/'nowhere'), tmp_path/'nowhere')
    mine = going_on(captioner, table).dls
    for kw in (dict(emb_sz=16), dict(system='merge'), dict(weights=None), dict(word_vectors={})): fails(ValueError, lambda: caption_learner(mine, captioner, **kw), next(iter(kw)))
    other = mine.cache_features(Encoder('shapes_cnn', 'SHAPES', pool=not captioner.model.encoder.pool), tmp_path/'features')
    fails(ValueError, lambda: caption_learner(other, captioner), str(tuple(other.features.shape[1:])), 'cache_features')

@one_system
def test_of_a_recipe_the_training_counts(captioner, dls):
    "Stages and loss are the recipe's, the model is the captioner's; what is given overrides"
    mine = going_on(captioner, dls.captions).dls
    learn = caption_learner(mine, captioner, recipe='flickr8k', metrics=[], wd=0.5)
    assert learn.stages == recipes['flickr8k']['stages'] and learn.loss_func.label_smoothing == recipes['flickr8k']['label_smoothing'] > 0
    assert learn.wd == 0.5 and learn.model.config == captioner.model.config
    fails(ValueError, lambda: caption_learner(mine, captioner, recipe='flickr8k', proj_sz=8), 'proj_sz')
