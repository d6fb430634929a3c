"The data doctor on every form of caption file"
import json, os, shutil, subprocess, sys

import pandas as pd, pytest
from PIL import Image

from caption_fastai import check
from caption_fastai.captions import read_captions
from caption_fastai.check import caption_check, check_captions
from caption_fastai.images import open_image
from helpers import check_message, flickr_folder, picture, some_captions

def groups(report): return report.table.group.value_counts().to_dict()

@pytest.fixture
def pics(tmp_path):
    (tmp_path/'Images').mkdir()
    for i in range(6): picture(tmp_path/'Images'/f'{i}.jpg', seed=i)
    return tmp_path

def test_csv(pics):
    "Lines of a CSV file are those of the file, with records over several lines counted"
    (pics/'captions.csv').write_text('image,caption,split\n0.jpg,"a dog\nruns here",train\n0.jpg,a dog, and a cat,train\n'
                                     '1.jpg,a café â€“ so it says,train\n1.jpg,two dogs run,valid\n9.jpg,no such dog,train\n', encoding='utf-8')
    report = check_captions(pics)
    assert groups(report) == dict(control=1, form=1, mojibake=1, two_splits=1, missing=1, bare=4, few=1)
    assert report['form']['where'][0] == 'captions.csv, line 4' and report['mojibake']['where'][0] == 'captions.csv, line 5'

def test_coco(pics):
    images = [dict(id=i, file_name=f'Images/{i}.jpg') for i in range(5)]
    anns = [dict(id=i, image_id=i, caption=c) for i,c in enumerate(('a dog runs', 'a cat sits here', '<s>a cow</s> stands there', 'a hen eats'))]
    anns.append(dict(id=9, image_id=77, caption='a dog of no image'))
    (pics/'captions_train2017.json').write_text(json.dumps(dict(images=images, annotations=anns)))
    report = check_captions(pics/'captions_train2017.json')
    assert groups(report) == dict(bare=1, no_caption=1, markup=1, missing=1)
    assert report['no_caption'].values.tolist() == [['captions_train2017.json, images[4]', 'Images/4.jpg']]
    assert report['markup']['where'][0] == 'captions_train2017.json, images[2]'

def test_folder(tmp_path):
    for i in range(3): picture(tmp_path/f'{i}.png', seed=i)
    (tmp_path/'0.txt').write_text('a dog runs\n\ndog\n'); (tmp_path/'1.txt').write_text(''); (tmp_path/'7.txt').write_text('a cat sits here\n')
    report = check_captions(tmp_path)
    assert groups(report) == dict(short=1, empty=1, no_caption=1, missing=1, few=1)
    assert report['short']['where'][0] == '0.txt, line 3' and report['empty']['where'][0] == '1.txt, line 1'

def test_split_files(tmp_path):
    "Images in no split, and names in a split file that have no caption"
    report = check_captions(flickr_folder(tmp_path/'d', some_captions(3), dict(train=['0.jpg', '7.jpg'], valid=['1.jpg'])))
    assert groups(report) == dict(no_caption=1, no_split=1)
    assert report['no_caption']['where'][0] == 'Flickr_8k.trainImages.txt, line 2'

def test_same_name_and_path(pics):
    "A picture that two names lead to is one picture, no copy"
    (pics/'captions.csv').write_text('image,caption\n0.jpg,a dog runs here\nImages/0.jpg,a cat sits here\n1.jpg,a hen eats corn\n')
    assert set(groups(check_captions(pics))) == {'bare'}

CAPTIONS = ['a dog runs here', 'a cat sits here', 'a hen eats corn']
def csv_of(*rows): return {'captions.csv': '\n'.join(['image,caption,split', *(f'{n},{c},{s}' for (n,s),c in zip(rows, CAPTIONS))])}
def tokens(**splits): return {'Flickr8k.token.txt': '\n'.join(f'{i}.jpg#0\t{c}' for i,c in enumerate(CAPTIONS)), **{f'Flickr_8k.{s}Images.txt': names for s,names in splits.items()}}
def karpathy(*captions): return {'dataset_x.json': json.dumps(dict(images=[dict(filename=f'Images/{i}.jpg', sentences=[dict(raw=c)] if c else []) for i,c in enumerate(captions)]))}

@pytest.mark.parametrize('files,group', [
    (csv_of(('0.jpg', 'train'), ('1.jpg', 'train')), None), (csv_of(('0.jpg', ''), ('1.jpg', '')), None), (csv_of(('0.jpg', 'train'), ('1.jpg', 'val')), None),
    (csv_of(('0.jpg', 'train'), ('Images/0.jpg', 'train'), ('1.jpg', 'valid')), None), (csv_of(('0.jpg', 'train'), ('1.jpg', 'train'), ('Images/0.jpg', 'valid')), 'two_splits'),
    (csv_of(('0.jpg', 'valid'), ('1.jpg', 'test')), 'no_train'), (csv_of(('0.jpg', 'train'), ('1.jpg', 'test')), 'no_train'), (csv_of(('0.jpg', '')), 'no_train'),
    (csv_of(('0.jpg', ''), ('Images/0.jpg', '')), 'no_train'), (csv_of(('0.jpg', 'train'), ('7.jpg', 'valid')), 'missing'), (csv_of(('0.jpg', 'train'), ('', 'valid')), 'form'),
    (tokens(train='0.jpg', dev='1.jpg'), None), (tokens(train='0.jpg\n5.jpg', dev='1.jpg'), 'no_caption'), (tokens(train='0.jpg', dev='0.jpg'), 'two_splits'), (tokens(dev='0.jpg'), 'no_train'),
    (karpathy(*CAPTIONS), None), (karpathy(*CAPTIONS, ''), 'no_caption'), (karpathy('a dog runs here', 'a cat sits here', ' '), 'empty'),
    ({'a.jpg': None, 'a.txt': 'a dog', 'b.jpg': None, 'b.txt': 'a cat'}, None), ({'a.jpg': None, 'a.txt': 'a dog', 'b.jpg': None, 'b.txt': 'a cat', 'c.jpg': None}, 'no_caption'),
    ({'a.jpg': None, 'a.png': None, 'a.txt': 'a dog', 'b.jpg': None, 'b.txt': 'a cat'}, 'ambiguous')])
def test_what_is_ok_can_be_trained_on(pics, files, group):
    "Where the report is in order the readers give something to train on, and where it is not they do not"
    for i,(name,text) in enumerate(files.items(), 7): picture(pics/name, seed=i) if text is None else (pics/name).write_text(text)
    try: able = 'train' in set(read_captions(pics).split)
    except (ValueError, OSError): able = False
    report = check_captions(pics)
    assert report.ok == able == (group is None) and (able or group in groups(report))
    assert not set(map(os.path.basename, report['no_caption'].values.flatten())) & set(report['bare'].what)   # nothing is told twice

def test_near_a_copy(pics):
    "A picture like two that are copies of each other is held against the splits of both"
    shutil.copy(pics/'Images'/'0.jpg', pics/'Images'/'1.jpg')
    with Image.open(pics/'Images'/'0.jpg') as img: img.resize((36, 27)).save(pics/'Images'/'2.jpg')
    (pics/'captions.csv').write_text(csv_of(('0.jpg', ''), ('1.jpg', 'valid'), ('2.jpg', 'train'))['captions.csv'] + '\n3.jpg,a cow eats grass,train\n')
    report = check_captions(pics)
    assert groups(report) == dict(copies=1, near_leak=1, no_split=1, bare=2)
    assert report['near_leak'].what[0] == '0.jpg = 1.jpg (valid) = 2.jpg (train)'

def test_many_captions_lost(pics):
    "Each image that has fewer is told where they are some, and one thing of all where they are many"
    def few(*counts):
        rows = [(f'{i%6}.jpg' if len(counts) < 7 else str(i), ' '.join('abcdefghij'[(i + j)%10] for i in range(3))) for i,n in enumerate(counts) for j in range(n)]
        return check_captions(pd.DataFrame(rows, columns=['image', 'caption']), pics)['few'].values.tolist()
    assert few(*[5]*9, 4) == [['row 45', '9: 4, most have 5']]
    assert few(5, 5, 5, 2, 1, 3) == [['all captions', '50% of the images have 5, the others 1 to 3']]
    assert few(5, 5, 5) == []

def test_letters_that_look_alike(pics):
    "A word of two scripts that share the shapes of letters is found, whatever script is rare"
    captions = ['a d\u043eg runs here', 'a cat sits \u03bfn it', 'une bête à côté', '犬がボールで走る', 'a slope of angle α', 'a cow']
    report = check_captions(pd.DataFrame(dict(image=[f'{i}.jpg' for i in range(6)], caption=captions)), pics)
    found = [w for w in report['script'].what if 'mixes' in w]
    assert len(found) == 2 and "'d\u043eg' mixes Cyrillic and Latin" in found[0] and "'\u03bfn' mixes Greek and Latin" in found[1]

def test_a_picture_is_read_once(pics, monkeypatch):
    "What is decoded is what the check sum is of, and its faults are told without an address in memory"
    seen = []
    monkeypatch.setattr(check, 'open_image', lambda src, **kw: seen.append(src) or open_image(src, **kw))
    (pics/'Images'/'0.jpg').write_bytes(b'no picture'); (pics/'Images'/'1.jpg').unlink(); (pics/'Images'/'1.jpg').symlink_to('nowhere')
    (pics/'captions.csv').write_text(csv_of(('0.jpg', 'train'), ('1.jpg', 'train'), ('2.jpg', 'train'))['captions.csv'])
    found = check_captions(pics, workers=1)['unreadable'].what
    assert seen == [(pics/'Images'/n).read_bytes() for n in ('0.jpg', '2.jpg')]
    assert found[0] == '0.jpg: not a picture that can be read (cannot identify image file)' and 'No such file' in found[1]

def test_captions_in_no_split(pics):
    "Also those of an image whose other captions are in one"
    df = pd.DataFrame(dict(image=['0.jpg', '0.jpg', '1.jpg', '2.jpg'], caption=['a dog runs here', 'a dog runs there', 'a cat sits here', 'a cow eats grass'], split=['train', '', 'train', None]))
    assert check_captions(df, pics)['no_split'].values.tolist() == [['row 3', '2.jpg'], ['row 1', "0.jpg: in the train split by other captions: 'a dog runs there'"]]

def test_a_folder_with_a_colon(pics):
    "Lines are told by their file wherever it lies"
    d = shutil.copytree(pics, pics/'my: data')
    (d/'c.csv').write_text('image,caption\n0.jpg,a dog runs, and\n1.jpg,a cat: it sits\n2.jpg,a cow eats grass\n')
    assert check_captions(d/'c.csv')['form'].values.tolist() == [['c.csv, line 2', '3 fields where the header has 2; a caption with commas needs quotes']]

def test_a_word_of_many_letters(pics):
    df = pd.DataFrame(dict(image=['0.jpg', '1.jpg'], caption=['a ' + 'b'*101 + ' runs', 'a ' + 'b'*100 + ' runs']))
    assert check_captions(df, pics)['long'].what.str[:26].tolist() == ['0.jpg: a word of 101 lette']

def test_words():
    "Captions cut apart into letters, and names instead of words"
    df = pd.DataFrame(dict(image=['0.jpg']*200, split='train', caption=['b c d e f g h k']*200))
    assert any('single letters' in w for w in check_captions(df)['vocab'].what)
    df['caption'] = [' '.join(f'w{i}x{j}' for j in range(8)) for i in range(200)]
    assert any('seen once' in w for w in check_captions(df)['vocab'].what)

def test_exit_status(tmp_path, capsys):
    d = flickr_folder(tmp_path/'d', some_captions(3))
    assert caption_check([str(d)]) == 0
    (d/'Images'/'1.jpg').write_bytes(b'no picture')
    assert caption_check([str(d)]) == 1
    capsys.readouterr()
    assert caption_check([str(tmp_path/'none')]) == 2
    check_message(capsys.readouterr().err.strip(), 'caption_check: ', 'none: no such file')
    assert caption_check([str(tmp_path/'none'), '--json']) == 2
    said = json.loads(capsys.readouterr().out)
    assert not said['ok'] and 'none: no such file' in said['error']

@pytest.mark.skipif(sys.platform != 'linux', reason='names of files are UTF-8 elsewhere')
def test_interrupted(tmp_path, capsys, monkeypatch):
    def ctrl_c(*args): raise KeyboardInterrupt
    monkeypatch.setattr(check, 'check_captions', ctrl_c)
    assert caption_check([str(tmp_path)]) == 130 and capsys.readouterr().err == 'caption_check: interrupted\n'

def test_nobody_reads_on(tmp_path):
    "As where the report goes to `head`: nothing is said of it, the exit status is that of the data"
    d = flickr_folder(tmp_path/'d', some_captions(3))
    read,write = os.pipe()
    os.close(read)
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', f'import sys; from caption_fastai.check import caption_check; sys.exit(caption_check([{str(d)!r}]))'], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (p.returncode, p.stderr) == (0, '')

def test_a_name_of_any_bytes(tmp_path, capsys):
    d = flickr_folder(tmp_path/'d', some_captions(3))
    name = os.fsdecode(b'\xff.jpg')
    shutil.copy(d/'Images'/'0.jpg', d/'Images'/name)
    assert caption_check([str(d), '--json']) == 0
    assert json.loads(capsys.readouterr().out)['groups']['bare']['findings'] == [dict(where='pictures', what=name)]
    assert caption_check([str(d)]) == 0 and 'pictures: \\udcff.jpg' in capsys.readouterr().out

def test_mirrored_copies(pics):
    "Also of a copy, stored anew and smaller; a symmetrical picture is no copy of itself, and where one is, it is not told as mirrored"
    def mirror(n, to, size=(30, 20)): Image.open(pics/'Images'/n).transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize(size).save(pics/'Images'/to, quality=60)
    mirror('0.jpg', 'a.jpg'); mirror('a.jpg', 'b.jpg', (40, 30)); mirror('1.jpg', 'c.jpg')
    half = Image.open(pics/'Images'/'3.jpg')
    half.paste(half.crop((0, 0, 20, 30)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), (20, 0)); half.save(pics/'Images'/'s.png')
    mirror('s.png', 't.jpg')
    splits = {'0.jpg': 'train', 'a.jpg': 'valid', 'b.jpg': 'train', '1.jpg': 'train', 'c.jpg': 'train', 's.png': 'train', 't.jpg': 'train', '5.jpg': 'valid'}
    df = pd.DataFrame(dict(image=list(splits), caption='a dog runs here', split=list(splits.values())))
    report = check_captions(df, pics/'Images')
    assert report['near_leak'].what.tolist() == ['0.jpg (train) = mirrored a.jpg (valid) = b.jpg (train)']
    assert report['near_copies'].what.tolist() == ['1.jpg (train) = mirrored c.jpg (train)', 's.png (train) = t.jpg (train)']
