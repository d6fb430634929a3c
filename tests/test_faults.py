"Bad input gives one line that says what is wrong and where, and odd but good pictures are simply captioned"
import json, shutil, warnings

import numpy as np, pandas as pd, pytest, torch
from PIL import Image

from caption_fastai import app
from caption_fastai.app import caption_evaluate, caption_train
from caption_fastai.captioner import Captioner
from caption_fastai.captions import read_captions, read_folder
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.images import ImagePipeline, open_image
from caption_fastai.learner import Stage
from caption_fastai.predict import caption_predict
from helpers import command_fails, fails, fit, flickr_folder, load_dls, picture, some_captions, tiny_learner, warns

def train_argv(data, out, *more):
    return ['--data', data, '--out', out, '--arch', 'shapes_cnn', '--size', 96, '--min_freq', 1, '--num_workers', 0,
            '--epochs', 1, '--lr', 1e-3, '--bs', 8, '--emb_sz', 16, '--attn_sz', 16, '--n_hid', 32, *more]

def train_fails(data, tmp_path, *parts): command_fails(caption_train, train_argv(data, tmp_path/'out'), *parts)

def tokens(folder): return folder/'Flickr8k.token.txt'
def add_line(folder, line, encoding='utf-8'):
    "Add a line to the captions; returns its number"
    with open(tokens(folder), 'ab') as f: f.write((line + '\n').encode(encoding))
    return len(tokens(folder).read_bytes().splitlines())

@pytest.fixture
def folder(tmp_path):
    "Twelve pictures with two captions each"
    return flickr_folder(tmp_path/'data', some_captions(12))

@pytest.fixture(scope='module')
def captioner(captioner_dir): return Captioner.load(captioner_dir)

# Paths and caption files

def test_path_that_is_not_there(tmp_path, captioner_dir, photos):
    nowhere = tmp_path/'nowhere'
    fails(FileNotFoundError, lambda: read_captions(nowhere), nowhere)
    fails(FileNotFoundError, lambda: load_dls(nowhere), nowhere)
    train_fails(nowhere, tmp_path, nowhere)
    command_fails(caption_evaluate, [captioner_dir, '--data', nowhere], nowhere)
    command_fails(caption_evaluate, [nowhere, '--data', photos[0].parent.parent], nowhere)
    command_fails(caption_predict, [nowhere, photos[0]], nowhere)
    fails(FileNotFoundError, lambda: Captioner.load(nowhere), nowhere)

def test_folder_without_a_captions_file(tmp_path):
    picture(tmp_path/'a.jpg')
    fails(FileNotFoundError, lambda: read_captions(tmp_path), tmp_path, 'no caption file')
    train_fails(tmp_path, tmp_path, tmp_path, 'no caption file')

def test_line_without_a_tab(folder, tmp_path):
    n = add_line(folder, '3.jpg#2 a dog without a tab')
    for f in (lambda: read_captions(folder), lambda: load_dls(folder)): fails(ValueError, f, tokens(folder), f'line {n}', 'tab')
    train_fails(folder, tmp_path, tokens(folder), f'line {n}', 'tab')

def test_captions_of_pictures_that_are_not_there(folder, tmp_path):
    n = add_line(folder, 'ghost1.jpg#0\ta dog')
    for i in range(2, 6): add_line(folder, f'ghost{i}.jpg#0\ta dog')
    parts = tokens(folder), f'line {n}', '5 images', 'ghost1.jpg', 'ghost2.jpg', 'skip_missing'
    fails(FileNotFoundError, lambda: load_dls(folder), *parts)
    train_fails(folder, tmp_path, *parts)

def test_skip_missing_goes_on(folder, tmp_path, capsys, captioner_dir):
    for i in range(5): add_line(folder, f'ghost{i}.jpg#0\ta dog')
    dls = load_dls(folder, skip_missing=True)
    assert dls.captions.image.nunique() == 12
    dls.summary()
    assert '5 images' in (out := capsys.readouterr().out) and 'ghost0.jpg' in out
    caption_evaluate([str(captioner_dir), '--data', str(folder), '--split', 'valid', '--skip_missing'])
    assert json.loads(capsys.readouterr().out)['n'] == 1

def test_split_file_of_unknown_pictures(folder, tmp_path):
    split = folder/'Flickr_8k.trainImages.txt'
    split.write_text('0.jpg\n1.jpg\nghost.jpg\n')
    fails(ValueError, lambda: load_dls(folder), split, 'line 3', 'ghost.jpg')
    train_fails(folder, tmp_path, split, 'line 3', 'ghost.jpg')
    assert 'ghost.jpg' in ' '.join(load_dls(folder, skip_missing=True).captions.attrs['notes'])

def test_picture_in_two_splits(tmp_path):
    folder = flickr_folder(tmp_path/'a', some_captions(4), dict(train=['0.jpg', '1.jpg'], valid=['2.jpg', '1.jpg']))
    fails(ValueError, lambda: load_dls(folder), 'Flickr_8k.devImages.txt, line 2', '1.jpg', 'Flickr_8k.trainImages.txt, line 2')

def test_picture_without_a_caption(tmp_path):
    for i in range(3): picture(tmp_path/f'{i}.jpg'); (tmp_path/f'{i}.txt').write_text('a dog runs\n')
    (tmp_path/'1.txt').unlink()
    fails(ValueError, lambda: read_folder(tmp_path), tmp_path, '1.jpg')
    train_fails(tmp_path, tmp_path, tmp_path, '1.jpg')
    (tmp_path/'1.txt').write_text('')
    fails(ValueError, lambda: read_folder(tmp_path), '1.txt', 'line 1', 'empty')

def test_picture_that_no_line_names(folder, capsys):
    picture(folder/'Images'/'unnamed.jpg')
    load_dls(folder).summary()
    assert 'no caption: 1 image' in (out := capsys.readouterr().out) and 'unnamed.jpg' in out

def test_empty_caption(folder, tmp_path):
    n = add_line(folder, '3.jpg#2\t ')
    fails(ValueError, lambda: load_dls(folder), tokens(folder), f'line {n}', 'caption is empty')
    train_fails(folder, tmp_path, tokens(folder), f'line {n}', 'caption is empty')
    for empty in ('', None, float('nan')):
        df = pd.DataFrame({'image': ['0.jpg', '1.jpg'], 'caption': ['a dog', empty]})
        fails(ValueError, lambda: CaptionDataLoaders.from_df(df, folder), 'row 1', 'caption is empty')

def test_references_given_twice(folder, tmp_path):
    n = add_line(folder, '3.jpg#1\ta dog runs there')
    parts = tokens(folder), f'line {n}', '3.jpg#1', 'line 8'
    fails(ValueError, lambda: load_dls(folder), *parts)
    train_fails(folder, tmp_path, *parts)

def test_two_pictures_of_one_name(folder, tmp_path):
    for d in 'ab':
        (folder/'Images'/d).mkdir(); shutil.copy(folder/'Images'/'0.jpg', folder/'Images'/d/'twice.jpg')
    n = add_line(folder, 'twice.jpg#0\ta dog')
    parts = tokens(folder), f'line {n}', folder/'Images'/'a'/'twice.jpg', folder/'Images'/'b'/'twice.jpg'
    fails(ValueError, lambda: load_dls(folder), *parts)
    train_fails(folder, tmp_path, *parts)
    flat = tmp_path/'flat'; flat.mkdir()
    picture(flat/'0.jpg'); picture(flat/'0.png'); (flat/'0.txt').write_text('a dog\n')
    fails(ValueError, lambda: read_folder(flat), flat, '0.jpg', '0.png')

def test_captions_that_are_not_utf8(folder, tmp_path):
    n = add_line(folder, '3.jpg#2\ta café', 'latin-1')
    fails(ValueError, lambda: load_dls(folder), tokens(folder), f'line {n}', 'UTF-8')
    train_fails(folder, tmp_path, tokens(folder), f'line {n}', 'UTF-8')

# Splits

def split_folder(path, *splits):
    names = [f'{i}.jpg' for i in range(6)]
    return flickr_folder(path, some_captions(6), {s: names[2*i:2*i+2] for i,s in enumerate(splits)})

@pytest.mark.parametrize('splits', [['train'], ['train', 'valid'], ['train', 'test'], ['train', 'valid', 'test']], ids='-'.join)
def test_any_splits_with_training_can_be_trained_on(tmp_path, splits):
    dls = load_dls(split_folder(tmp_path/'a', *splits))
    assert set(dls.captions.split) == {'train', 'valid', *splits}
    assert len(fit(tiny_learner(dls), 1, 1e-3).history.losses) == 1

@pytest.mark.parametrize('split', ['test', 'valid'])
def test_no_training_split(tmp_path, split, captioner_dir, capsys):
    folder = split_folder(tmp_path/'a', split)
    fails(ValueError, lambda: load_dls(folder), 'no training split')
    train_fails(folder, tmp_path, 'no training split')
    capsys.readouterr()
    caption_evaluate([str(captioner_dir), '--data', str(folder), '--split', split])
    assert json.loads(capsys.readouterr().out)['n'] == 2
    command_fails(caption_evaluate, [captioner_dir, '--data', folder, '--split', 'train'], 'train', split)

def test_training_without_validation(tmp_path):
    folder = flickr_folder(tmp_path/'a', some_captions(4))
    dls = load_dls(folder, valid_pct=0.)
    learn = tiny_learner(dls, metrics=None)
    with learn.no_bar(), learn.no_logging(): learn.fit_stages([Stage(1, 1e-3, freeze=True)])
    assert len(learn.history.rows) == 1

def test_split_by_its_usual_names(scenes, captioner_dir, capsys):
    scores = []
    for split in ('dev', 'valid', 'val'):
        caption_evaluate([str(captioner_dir), '--data', str(scenes), '--split', split, '--beam_sz', '1'])
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1] == scores[2] and scores[0]['n'] == 20
    command_fails(caption_evaluate, [captioner_dir, '--data', scenes, '--split', 'nonsense'], "'nonsense'", 'train, valid')

# Pictures that cannot be read

def truncated(path):
    "A picture whose header is whole, and of whose pixels half are missing"
    picture(path, (200, 200))
    path.write_bytes(path.read_bytes()[:-path.stat().st_size//3])
    return path

def test_truncated_picture_is_found_while_training(tmp_path):
    folder = flickr_folder(tmp_path/'a', some_captions(6), dict(train=[f'{i}.jpg' for i in range(5)], valid=['5.jpg']))
    bad = truncated(folder/'Images'/'2.jpg')
    learn = tiny_learner(load_dls(folder, bs=8))
    warns(lambda: fit(learn, 1, 1e-3), bad)
    assert len(learn.history.losses) == 2 and torch.isfinite(torch.stack(learn.history.losses)).all()   # of the batches of 8 and 2 captions 8 are left

@pytest.mark.parametrize('where', [0, 5], ids=['train', 'valid'])
def test_training_command_goes_on_past_a_truncated_picture(tmp_path, capsys, where):
    folder = flickr_folder(tmp_path/'a', some_captions(7), dict(train=[f'{i}.jpg' for i in range(5)], valid=['5.jpg', '6.jpg']))
    bad = truncated(folder/'Images'/f'{where}.jpg')
    caption_train([str(o) for o in train_argv(folder, tmp_path/'out')])   # picture 5 is among those shown at the end
    lines = [l for l in capsys.readouterr().err.splitlines() if l.startswith('caption_train:')]
    assert any(str(bad) in l for l in lines)
    assert (tmp_path/'out'/'model.safetensors').exists()

def test_unreadable_pictures_are_found_at_the_start(tmp_path, capsys):
    folder = flickr_folder(tmp_path/'a', some_captions(8))
    empty,text = folder/'Images'/'1.jpg',folder/'Images'/'2.jpg'
    empty.write_bytes(b''); text.write_text('this is no picture')
    dls,said = warns(lambda: load_dls(folder), empty, text)
    assert len(said) == 1 and said[0].startswith('2 pictures')
    assert dls.captions.image.nunique() == 6 and not {str(empty), str(text)} & set(dls.captions.image)
    dls.summary()
    assert str(empty) in capsys.readouterr().out

def test_unreadable_picture_in_a_folder_with_a_colon(tmp_path):
    folder = flickr_folder(tmp_path/'my: data', some_captions(8))
    (folder/'Images'/'1.jpg').write_bytes(b'')
    dls,_ = warns(lambda: load_dls(folder), folder/'Images'/'1.jpg')
    assert dls.captions.image.nunique() == 7

def test_no_picture_can_be_read(tmp_path):
    folder = flickr_folder(tmp_path/'a', some_captions(4))
    for f in (folder/'Images').iterdir(): f.write_bytes(b'')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        fails(ValueError, lambda: load_dls(folder), 'captions')
    train_fails(folder, tmp_path)

def test_picture_of_too_many_pixels(tmp_path, captioner, captioner_dir):
    small = picture(tmp_path/'small.png', (40, 30))
    fails(ValueError, lambda: open_image(small, max_pixels=1199), small, 'pixels')
    fails(ValueError, lambda: ImagePipeline(max_pixels=1199)(small), small, 'pixels')
    assert open_image(small, max_pixels=1200).size == (40, 30)
    folder = flickr_folder(tmp_path/'a', some_captions(6))
    for name,side in (('3.jpg', 9500), ('4.jpg', 13500)): Image.new('1', (side, side)).save(folder/'Images'/name, 'png')
    huge = folder/'Images'/'3.jpg',folder/'Images'/'4.jpg'
    dls,_ = warns(lambda: load_dls(folder), *huge, 'pixels')
    assert dls.captions.image.nunique() == 4
    for h in huge: fails(ValueError, lambda: captioner.caption(h), h, 'pixels')

def test_one_broken_picture_among_good_ones(tmp_path, captioner_dir, photos, capsys):
    broken,nowhere = tmp_path/'broken.jpg',tmp_path/'nowhere.jpg'
    broken.write_text('no picture')
    files = [photos[0], broken, photos[1], nowhere, photos[2]]
    with pytest.raises(SystemExit) as e: caption_predict([str(captioner_dir), *map(str, files)])
    out,err = capsys.readouterr()
    assert e.value.code == 1
    assert [l.split('\t')[0] for l in out.splitlines()] == [str(o) for o in photos]
    assert all(l.split('\t')[1] for l in out.splitlines())
    lines = err.splitlines()
    assert len(lines) == 3 and all(l.startswith('caption_predict: ') and str(f) in l for l,f in zip(lines, (broken, nowhere, '3 captioned, 2 could not be read')))

@pytest.mark.parametrize('content', [b'', b'no picture'], ids=['empty', 'text'])
def test_broken_picture_through_the_library(tmp_path, captioner, content):
    broken = tmp_path/'broken.jpg'
    broken.write_bytes(content)
    fails(ValueError, lambda: captioner.caption(broken), broken)
    cut = truncated(tmp_path/'cut.jpg')
    fails(ValueError, lambda: captioner.caption(cut), cut)

# Odd pictures that are handled right

def odd_pictures(photo):
    "The same picture, upright and in colour where it can be, in forms that are often handled wrong"
    img = Image.open(photo).convert('RGB')
    exif = Image.Exif(); exif[0x112] = 6   # to be turned clockwise by 90 degrees
    best = dict(quality=95, subsampling=0)
    grey16 = Image.fromarray(np.asarray(img.convert('L')).astype(np.uint16)*257)
    return dict(grey=('grey.png', img.convert('L'), {}), palette=('palette.png', img.quantize(256), {}),
                rgba=('rgba.png', img.convert('RGBA'), {}),
                cmyk=('cmyk.jpg', img.convert('CMYK'), best), bits16=('bits16.png', grey16, {}),
                rotated=('rotated.jpg', img.transpose(Image.Transpose.ROTATE_90), dict(exif=exif, **best)))

@pytest.fixture
def odd(photos, tmp_path):
    "Paths of the odd forms of the first photo"
    (tmp_path/'odd').mkdir()
    for name,img,kw in odd_pictures(photos[0]).values(): img.save(tmp_path/'odd'/name, **kw)
    return {k: tmp_path/'odd'/name for k,(name,_,_) in odd_pictures(photos[0]).items()}

def test_odd_pictures_look_as_they_should(odd, photos):
    img = Image.open(photos[0]).convert('RGB')
    for kind,path in odd.items():
        true = np.asarray(img.convert('L').convert('RGB') if kind in ('grey', 'bits16') else img, float)
        got = open_image(path)
        assert got.mode == 'RGB'
        assert abs(np.asarray(got, float) - true).mean() < 4, kind

def test_transparent_is_white(tmp_path):
    Image.new('RGBA', (20, 20), (0, 0, 0, 0)).save(tmp_path/'clear.png')
    assert np.asarray(open_image(tmp_path/'clear.png')).min() == 255

def test_odd_pictures_are_captioned(odd, photos, captioner, captioner_dir, capsys):
    plain = captioner.caption(Image.open(photos[0]).convert('RGB')).text
    caps = dict(zip(odd, captioner.caption(list(odd.values()))))
    assert all(c.text for c in caps.values())
    assert caps['rgba'].text == plain   # of these no pixel differs
    caption_predict([str(captioner_dir), *map(str, odd.values())])
    assert [l.split('\t')[1] for l in capsys.readouterr().out.splitlines()] == [c.text for c in caps.values()]

def test_odd_pictures_are_trained_on(odd):
    df = pd.DataFrame([(p.name, f'this is {k}') for k,p in odd.items()], columns=['image', 'caption'])
    folder = odd['grey'].parent
    dls = CaptionDataLoaders.from_df(df, folder, valid_pct=0.2, min_freq=1, size=96, bs=4, num_workers=0, aug=True)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*left out')
        learn = fit(tiny_learner(dls), 1, 1e-3)
    assert dls.captions.image.nunique() == 6 and len(learn.history.losses) == 2

# Captions and batches

def test_long_captions_are_cut_and_counted(tmp_path, capsys):
    captions = some_captions(6)
    captions['0.jpg'] += ['a '*11, 'a '*10]; captions['1.jpg'] += ['a '*30]
    dls = load_dls(flickr_folder(tmp_path/'a', captions), max_len=10)
    lens = [len(o.ids) for ds in (dls.train_ds, dls.valid_ds) for o in ds.items]
    assert sorted(lens)[-4:] == [6, 12, 12, 12]   # ten words, a beginning and an end
    assert all(o.ids[-1] == dls.vocab.eos_idx for o in dls.train_ds.items)
    dls.summary()
    assert '2 captions of more than max_len=10 words are cut' in capsys.readouterr().out

def test_fewer_items_than_a_batch(tmp_path):
    dls = load_dls(flickr_folder(tmp_path/'a', some_captions(4)), bs=32)
    learn = tiny_learner(dls)
    assert [len(x) for x,_ in dls.train] == [6]
    with learn.no_bar(), learn.no_logging(): learn.fit_stages([Stage(1, 1e-3, freeze=True), Stage(1, 1e-3, bs=64)])
    assert len(learn.history.losses) == 2

# Names and numbers

def test_unknown_names(dls, scenes, tmp_path):
    fails(ValueError, lambda: tiny_learner(dls, arch='resnet5O'), "arch='resnet5O'", 'resnet50')
    fails(ValueError, lambda: tiny_learner(dls, arch='resnet18', weights='NOPE'), "weights='NOPE'", 'resnet18', 'IMAGENET1K_V1')
    fails(ValueError, lambda: tiny_learner(dls, weights='NOPE'), "weights='NOPE'", 'shapes_cnn', 'SHAPES')
    fails(ValueError, lambda: tiny_learner(dls, system='nope'), "system='nope'", 'show_attend_tell')
    for more,parts in ((('--arch', 'resnet5O'), ('resnet5O', 'resnet50')), (('--weights', 'NOPE'), ('NOPE', 'SHAPES')),
                       (('--system', 'nope'), ('nope', 'show_attend_tell'))):
        command_fails(caption_train, train_argv(scenes, tmp_path/'out', *more), *parts)

@pytest.mark.parametrize('option,value', [
    ('epochs', 'nonsense'), ('epochs', '0'), ('epochs', '-1,2'), ('epochs', '1.5'), ('epochs', ''), ('epochs', '1,,2'),
    ('lr', 'fast'), ('lr', 'nan'), ('lr', 'inf'),
    ('lr', '1e-3,1e-3,1e-3'), ('bs', '0'), ('bs', '8,8,8'), ('size', '3'), ('min_freq', '1000000')])
def test_numbers_that_are_none(scenes, tmp_path, option, value):
    command_fails(caption_train, train_argv(scenes, tmp_path/'out', f'--{option}={value}'), option, value)

@pytest.mark.parametrize('option,value', [
    ('emb_sz', 0), ('attn_sz', 0), ('n_hid', -3), ('dropout', 1.5),
    ('max_len', 0), ('beam_sz', 0), ('beam_sz', 10000), ('label_smoothing', 2), ('lr_ratio', 0), ('lr_ratio', 2), ('length_penalty', -1)])
def test_sizes_out_of_range(scenes, tmp_path, option, value):
    command_fails(caption_train, train_argv(scenes, tmp_path/'out', f'--{option}={value}'), str(value))

def test_out_is_a_file(scenes, tmp_path, captioner_dir, capsys):
    out = tmp_path/'out'
    out.write_text('something else')
    command_fails(caption_train, train_argv(scenes, out), out)
    assert out.read_text() == 'something else'
    nowhere = out/'a.json'
    capsys.readouterr()
    command_fails(caption_evaluate, [captioner_dir, '--data', scenes, '--out', nowhere], nowhere)
    assert 'bleu4' in json.loads(capsys.readouterr().out)   # the scores are not lost

def test_beam_out_of_range(scenes, captioner, captioner_dir, photos):
    K = len(captioner.vocab)
    for n in (0, -1, K+1, 10**9):
        fails(ValueError, lambda: captioner.caption(photos[0], beam_sz=n), f'beam_sz={n}')
        command_fails(caption_predict, [captioner_dir, photos[0], '--beam_sz', n], f'beam_sz={n}')
        command_fails(caption_evaluate, [captioner_dir, '--data', scenes, '--beam_sz', n], f'beam_sz={n}')
    assert captioner.caption(photos[0], beam_sz=K).text
    command_fails(caption_predict, [captioner_dir, photos[0], '--max_len', 0], 'max_len=0')
    fails(ValueError, lambda: captioner.caption(photos[0], beam_sz=2, n_best=3), 'n_best=3')

def test_out_of_gpu_memory(folder, tmp_path, monkeypatch):
    "Outside of the stages too, as where a rate is looked for"
    def oom(*args): raise torch.OutOfMemoryError('CUDA out of memory.\nTried to allocate 1 GiB')
    monkeypatch.setattr(app, '_lr_find', oom)
    train_fails(folder, tmp_path, 'out of GPU memory: lower --bs or --size')

# Saved captioners

@pytest.fixture
def damaged(captioner_dir, tmp_path):
    "A copy of the captioner, to be damaged"
    return shutil.copytree(captioner_dir, tmp_path/'damaged')

def load_fails(folder, photo, error, *parts):
    fails(error, lambda: Captioner.load(folder), *parts)
    command_fails(caption_predict, [folder, photo], *parts)

def edit_json(path, f):
    d = json.loads(path.read_text()); f(d); path.write_text(json.dumps(d))

def test_vocabulary_that_does_not_fit(damaged, photos):
    n = len(Captioner.load(damaged).vocab)
    edit_json(damaged/'vocab.json', lambda d: d['words'].pop())
    load_fails(damaged, photos[0], ValueError, damaged/'vocab.json', n, n-1)
    edit_json(damaged/'config.json', lambda d: d['model'].update(vocab_sz=n-1))   # now these two agree, but not the weights
    load_fails(damaged, photos[0], ValueError, damaged/'model.safetensors')

@pytest.mark.parametrize('name', ['model.safetensors', 'config.json', 'vocab.json'])
def test_damaged_captioner(damaged, photos, name):
    file = damaged/name
    whole = file.read_bytes()
    for content in (b'', whole[:len(whole)//2], b'{}', b'[1]', b'\xff\xfe nonsense', None):
        file.unlink() if content is None else file.write_bytes(content)
        load_fails(damaged, photos[0], (ValueError, FileNotFoundError), file)

@pytest.mark.parametrize('part,key,value', [
    ('model', 'n_hid', 31), ('model', 'arch', 'nope'), ('model', 'system', 'nope'),
    ('model', 'surprise', 1), ('model', 'emb_sz', 'x'),
    ('pipeline', 'size', 'x'), ('pipeline', 'size', 1), ('pipeline', 'surprise', 1), ('pipeline', 'mean', None)])
def test_configuration_of_nonsense(damaged, photos, part, key, value):
    edit_json(damaged/'config.json', lambda d: d[part].update({key: value}))
    load_fails(damaged, photos[0], ValueError, damaged)
