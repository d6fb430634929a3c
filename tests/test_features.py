"Features of a frozen encoder on disk: the right ones, or an error"
import itertools, os, re, shutil, warnings

import pytest, torch
from filelock import FileLock

import caption_fastai.features as features_module
from caption_fastai.data import PictureView
from caption_fastai.encoder import Encoder
from caption_fastai.features import FeatureCache, build_features, feature_key
from caption_fastai.images import ImagePipeline
from helpers import changed, fails, fit, load_dls, picture, tensors, tiny_learner

PIPELINE = ImagePipeline(64)

@pytest.fixture(scope='module')
def encoder(): return Encoder('shapes_cnn', 'SHAPES').eval()

@pytest.fixture
def images(tmp_path): return [str(picture(tmp_path/f'{i}.png', seed=i)) for i in range(10)]

@pytest.fixture
def built(encoder, images, tmp_path): return build_features(encoder, PIPELINE, images, tmp_path/'features', bs=4)

class Counted:
    "A pipeline that counts the pictures it opens, and is interrupted when it has opened `n`"
    def __init__(self, n=None): self.n,self.seen = n,[]
    def __getattr__(self, k): return getattr(PIPELINE, k)
    def pixels(self, src):
        if len(self.seen) == self.n: raise KeyboardInterrupt
        self.seen.append(src)
        return PIPELINE.pixels(src)

def test_features_are_the_encoders(encoder, images, built):
    "What is read is what the encoder makes, to 16 bits, picture by picture; pooled features are their mean"
    with torch.no_grad(): true = encoder(torch.stack([PIPELINE(i) for i in images]))
    for i,t in zip(images, true):
        assert built(i).dtype == torch.float16
        torch.testing.assert_close(built(i).float(), t, rtol=1e-3, atol=1e-3)
    pooled = build_features(Encoder('shapes_cnn', 'SHAPES', pool=True), PIPELINE, images, built.fname.with_name('pooled'))
    for i,t in zip(images, true): torch.testing.assert_close(pooled(i).float(), t.mean(0), rtol=1e-3, atol=1e-3)
    assert (true[0] - true[1]).abs().max() > 0.1

def test_features_are_made_once(encoder, images, built):
    "A second build takes the file that is there"
    pipeline = Counted()
    again = build_features(encoder, pipeline, images, built.fname)
    assert not pipeline.seen and torch.equal(again(images[3]), built(images[3]))

@pytest.mark.parametrize('torn', [0, 7, -7])
def test_interrupted_build_goes_on(encoder, images, built, tmp_path, torn):
    "What an interrupted build has written stays under another name, and the next one makes the rest: the same file to the last byte"
    fname = tmp_path/'again'
    with pytest.raises(KeyboardInterrupt): build_features(encoder, Counted(9), images, fname, bs=4)
    assert not fname.exists()
    with open(f'{fname}.part', 'r+b') as f: f.truncate(os.path.getsize(f.name) + torn)   # killed in the middle of a row
    pipeline = Counted()
    build_features(encoder, pipeline, images, fname, bs=4)
    assert pipeline.seen == images[4 if torn < 0 else 8:]   # whole batches: their size is in the last bits
    assert fname.read_bytes() == built.fname.read_bytes() and not os.path.exists(f'{fname}.part')

def other_features(encoder, images):
    "Arguments of which one is not what the features were made with, and its name"
    weights = Encoder('shapes_cnn', 'SHAPES')
    with torch.no_grad(): next(weights.parameters()).mul_(1 + 1e-6)
    return dict(weights=(weights, PIPELINE, images), grid=(Encoder('shapes_cnn', 'SHAPES', grid=2), PIPELINE, images),
                pipeline=(encoder, ImagePipeline(96), images), images=(encoder, PIPELINE, images[::-1]))

@pytest.mark.parametrize('what', ['weights', 'grid', 'pipeline', 'images'])
def test_other_features_are_refused(encoder, images, built, what):
    "A whole file, or one that was begun, with features of something else is an error that says of what; `rebuild` replaces it"
    args = other_features(encoder, images)[what]
    fails(ValueError, lambda: build_features(*args, built.fname), built.fname, what, 'rebuild')
    part = shutil.copy(built.fname, built.fname.with_name('begun.part'))
    fails(ValueError, lambda: build_features(*args, built.fname.with_name('begun')), part, what, 'rebuild')
    new = build_features(*args, built.fname, rebuild=True)
    assert new.key == feature_key(*args) != built.key

def test_views_that_may_not_be_mirrored(encoder, images):
    "are others than those that may"
    a,b = ([PictureView(i, 1, mirror=m) for i in images] for m in (True, False))
    assert feature_key(encoder, PIPELINE, a) != feature_key(encoder, PIPELINE, b)

def test_changed_picture_is_noticed(encoder, images, built):
    "A picture file that was written again makes the features stale"
    picture(images[3], seed=99)
    fails(ValueError, lambda: build_features(encoder, PIPELINE, images, built.fname), built.fname, 'images')

def test_a_damaged_row_of_an_unfinished_file(encoder, images, built, tmp_path):
    "It is made again, with all after it"
    fname = tmp_path/'again'
    with pytest.raises(KeyboardInterrupt): build_features(encoder, Counted(9), images, fname, bs=4)
    part = tmp_path/'again.part'
    size = (part.stat().st_size - 4096)//8
    with open(part, 'r+b') as f: f.seek(4096 + 5*size + 10); f.write(bytes(size - 20))   # of the sixth of eight
    build_features(encoder, pipeline := Counted(), images, fname, bs=4)
    assert pipeline.seen == images[4:] and fname.read_bytes() == built.fname.read_bytes()

def cut(b): return b[:-1]
def flip(b): return b[:40] + bytes([b[40] ^ 1]) + b[41:]

@pytest.mark.parametrize('damage,words', [(cut, 'cut short'), (flip, 'damaged'), (lambda b: b'', 'damaged'), (lambda b: b'hello'*2000, 'not a file of features')])
def test_damaged_file(encoder, images, built, damage, words):
    "A file that is cut short, damaged in its header or of something else is named"
    built.fname.write_bytes(damage(built.fname.read_bytes()))
    fails(ValueError, lambda: FeatureCache(built.fname, images), built.fname, words)
    fails(ValueError, lambda: build_features(encoder, PIPELINE, images, built.fname), built.fname, words, 'rebuild')

def test_no_room(encoder, images, tmp_path, monkeypatch):
    "Too little disk space is said with the numbers, before anything is computed or written"
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(10**9, 10**9, 5000))
    pipeline = Counted()
    fails(OSError, lambda: build_features(encoder, pipeline, images, tmp_path/'f'), tmp_path/'f', '0.1 MB', '0.0 MB', 'free')
    assert not pipeline.seen and not (tmp_path/'f').exists() and not (tmp_path/'f.part').exists()

@pytest.mark.skipif(not os.path.isdir('/sys/kernel'), reason='needs a folder that even root cannot write to')
def test_read_only_folder(encoder, images):
    "A folder in which nothing can be written is named"
    with pytest.raises(OSError) as e: build_features(encoder, PIPELINE, images, '/sys/kernel/features')
    assert '/sys/kernel/features' in str(e.value)

def test_two_builders(encoder, images, tmp_path):
    "Two processes cannot make the same file at the same time"
    with FileLock(tmp_path/'f.lock'):
        fails(OSError, lambda: build_features(encoder, PIPELINE, images, tmp_path/'f'), tmp_path/'f', 'another process')
    build_features(encoder, PIPELINE, images, tmp_path/'f')

def test_whole_features_need_no_lock(encoder, images, built):
    "They are read while another process has the lock, be it one that reads them too, and on a disk where no lock can be made"
    with FileLock(f'{built.fname}.lock'): again = build_features(encoder, PIPELINE, images, built.fname)
    assert torch.equal(again(images[3]), built(images[3]))

def test_picture_without_features(encoder, images, tmp_path):
    "A picture that cannot be read is named when features are made, and again when they are asked for"
    open(images[4], 'wb').write(b'no picture')
    with pytest.warns(UserWarning, match='4.png'): cache = build_features(encoder, PIPELINE, images, tmp_path/'f', bs=4)
    fails(ValueError, lambda: cache(images[4]), images[4])
    fails(ValueError, lambda: cache('elsewhere.png'), 'elsewhere.png')
    assert cache(images[5]).isfinite().all()

@pytest.fixture
def cached(scenes, tmp_path):
    learn = tiny_learner(load_dls(scenes, grouped=True, bs=8), path=tmp_path)
    learn.cache_features()
    return learn

def test_training_on_features(cached, monkeypatch):
    "A first stage on features never runs the encoder, nor do its scores, and learns what it learns on pictures"
    def never(*args): raise AssertionError('the encoder runs')
    with monkeypatch.context() as m:
        m.setattr(cached.model.encoder, 'forward', never)
        fit(cached, 1, 1e-2)
        on_features = cached.validate()[0],cached.evaluate('test')
    cached.unfreeze()
    assert cached.validate()[0] == pytest.approx(on_features[0], abs=1e-3)
    assert cached.evaluate('test')['bleu1'] == pytest.approx(on_features[1]['bleu1'], abs=2)

def test_second_stage_is_on_pictures(cached):
    "Unfrozen, the learner trains on pictures; frozen again without a change, on features; and after a change on pictures"
    def dims(): return cached.dls.one_batch()[0].ndim
    assert dims() == 3
    cached.unfreeze(); assert dims() == 4
    cached.freeze(); assert dims() == 3
    cached.freeze_to(1); assert dims() == 4   # the late half of the encoder trains
    before = tensors(cached.model.encoder)
    fit(cached, 1, 1e-3)
    assert changed(before, tensors(cached.model.encoder))
    cached.freeze(); assert dims() == 4

def test_features_of_other_weights_are_not_used(cached):
    "Who loads other weights of the encoder beside the features trains on pictures from then on, and is told so once"
    with torch.no_grad(): next(cached.model.encoder.parameters()).add_(0.1)
    with pytest.warns(UserWarning, match='not those of this encoder'): fit(cached, 1, 1e-3)
    with warnings.catch_warnings(): warnings.simplefilter('error'); cached.freeze()
    assert cached.dls.one_batch()[0].ndim == 4

def test_damaged_features_of_a_picture(cached):
    "It is left out of training, with a warning that names it"
    features,items = cached.dls.features,cached.dls.train_ds.items
    def images(): return sum(len(x) for x,_ in cached.dls.train)
    before,raw,image = images(),bytearray(features.fname.read_bytes()),str(items[0].image)
    rows = raw[4096:]
    raw[4096 + features.rows[image]*(len(rows)//len(features)) + 5] ^= 1
    features.fname.write_bytes(raw)
    features._map = None
    with pytest.warns(UserWarning, match=f'left out: {re.escape(image)}: its features in .* are damaged'): assert images() == before - sum(str(o.image) == image for o in items)

def test_features_can_be_shown(cached):
    "Pictures are shown even when features are trained on"
    for o in (cached.dls, *cached.dls.loaders): o.show_batch(max_n=2)
    cached.show_results(max_n=2)
    assert cached.dls.one_batch()[0].ndim == 3

@pytest.fixture
def with_views(scenes, tmp_path):
    dls = load_dls(scenes, grouped=True, bs=8, aug=True, seed=1)
    return dls, dls.cache_features(Encoder('shapes_cnn', 'SHAPES'), tmp_path/'features', views=3)

def test_views(with_views, encoder):
    "Of a training picture there are three views, of others one; the first is the picture itself, and the others are not"
    dls,cached = with_views
    features = cached.features
    train,valid = (next(iter(dls.refs(s))) for s in ('train', 'valid'))
    with torch.no_grad(): true = encoder(torch.stack([dls.pipeline(i) for i in (train, valid)]))
    assert (features(train) - true[0]).abs().max() < 0.01 and (features(valid) - true[1]).abs().max() < 0.01
    assert len({tuple(features(v).flatten().tolist()) for v in [train, PictureView(train, 1), PictureView(train, 2)]}) == 3
    fails(ValueError, lambda: features(PictureView(valid, 1)), f'{valid}, view 1', 'no features')

def test_an_epoch_has_one_view_of_a_picture(with_views):
    "Another one in another epoch, the same in the same; validation has the picture itself"
    _,cached = with_views
    def epoch(n):
        cached.train.epoch = n
        return torch.stack([cached.train.create_item(i)[0] for i in range(20)])
    one,two = epoch(0),epoch(1)
    assert 3 < sum(not torch.equal(a, b) for a,b in zip(one, two)) < 20 and torch.equal(one, epoch(0))
    for item in cached.valid_ds.items[:3]: assert torch.equal(cached.load(item, split_idx=1), cached.features(item.image))

def test_views_are_made_again_alike(scenes, with_views, tmp_path, monkeypatch):
    "Views do not depend on when and with which others they are made: what was broken off goes on; and they open again without augmentation"
    dls,cached = with_views
    pixels,opened = features_module._Views.pixels,itertools.count()
    def cut(*args):
        if next(opened) == len(dls.captions.image.unique()) + 20: raise KeyboardInterrupt
        return pixels(*args)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(features_module._Views, 'pixels', cut)
        dls.cache_features(Encoder('shapes_cnn', 'SHAPES'), tmp_path/'again', views=3, bs=4)
    again = dls.cache_features(Encoder('shapes_cnn', 'SHAPES'), tmp_path/'again', views=3, bs=4)
    views = [PictureView(i, n) for i in dls.refs('train') for n in (1, 2)]
    assert all((cached.features(v) - again.features(v)).abs().max() < 0.01 for v in views)
    assert load_dls(scenes, grouped=True).open_features(tmp_path/'again').features.n_views == 3

def test_views_that_cannot_be_made(scenes, with_views, tmp_path):
    plain,encoder = load_dls(scenes, grouped=True),Encoder('shapes_cnn', 'SHAPES')
    fails(ValueError, lambda: plain.cache_features(encoder, tmp_path/'f', views=2), 'views=2', 'aug=True')
    fails(ValueError, lambda: plain.cache_features(encoder, tmp_path/'f', views=0), 'views=0', '1 or more')
    fails(ValueError, lambda: plain.cache_features(encoder, tmp_path/'features'), tmp_path/'features', 'rebuild')
    fails(ValueError, lambda: with_views[0].cache_features(encoder, tmp_path/'features', views=2), tmp_path/'features', 'rebuild')

def test_views_of_a_recipe(scenes, tmp_path):
    "A recipe's number of views is taken where there is augmentation to make them with"
    for aug,n in ((True, 4), (None, 1)):
        learn = tiny_learner(load_dls(scenes, grouped=True, bs=8, aug=aug), path=tmp_path/str(n), recipe='flickr8k')
        learn.cache_features()
        assert learn.dls.features.n_views == n
        fails(ValueError, lambda: learn.cache_features(views=0), 'views=0', '1 or more')
