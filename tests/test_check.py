"The data doctor on every form of caption file"
import json

import pandas as pd, pytest

from caption_fastai.check import caption_check, check_captions
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
    assert groups(report) == dict(control=1, form=1, mojibake=1, two_splits=1, missing=1, bare=4)
    assert report['form']['where'][0] == 'captions.csv, line 4' and report['mojibake']['where'][0] == 'captions.csv, line 5'

def test_coco(pics):
    images = [dict(id=i, file_name=f'Images/{i}.jpg') for i in range(5)]
    anns = [dict(id=i, image_id=i, caption=c) for i,c in enumerate(('a dog runs', 'a cat sits here', '<s>a cow</s> stands there', 'a hen eats'))]
    anns.append(dict(id=9, image_id=77, caption='a dog of no image'))
    (pics/'captions_train2017.json').write_text(json.dumps(dict(images=images, annotations=anns)))
    report = check_captions(pics/'captions_train2017.json')
    assert groups(report) == dict(bare=2, markup=1, missing=1)
    assert report['markup']['where'][0] == 'captions_train2017.json, images[2]'

def test_folder(tmp_path):
    for i in range(3): picture(tmp_path/f'{i}.png', seed=i)
    (tmp_path/'0.txt').write_text('a dog runs\n\ndog\n'); (tmp_path/'1.txt').write_text(''); (tmp_path/'7.txt').write_text('a cat sits here\n')
    report = check_captions(tmp_path)
    assert groups(report) == dict(short=1, empty=1, bare=1, missing=1)
    assert report['short']['where'][0] == '0.txt, line 3' and report['empty']['where'][0] == '1.txt, line 1'

def test_split_files(tmp_path):
    "Images in no split, and names in a split file that have no caption"
    report = check_captions(flickr_folder(tmp_path/'d', some_captions(3), dict(train=['0.jpg', '7.jpg'], valid=['1.jpg'])))
    assert groups(report) == dict(bare=1, no_split=1) and report.ok
    assert report['bare']['where'][0] == 'Flickr_8k.trainImages.txt, line 2'

def test_same_name_and_path(pics):
    "A picture that two names lead to is one picture, no copy"
    (pics/'captions.csv').write_text('image,caption\n0.jpg,a dog runs here\nImages/0.jpg,a cat sits here\n')
    assert set(groups(check_captions(pics))) == {'bare'}

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
