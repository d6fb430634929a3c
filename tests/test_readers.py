"Karpathy's and COCO's JSON, the download of Flickr8k, files of word vectors: what they give, and what bad ones get"
import io, json, socket, threading, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest, torch

from caption_fastai.app import caption_train
from caption_fastai.captions import download_flickr8k, read_captions, read_coco, read_flickr8k, read_karpathy
from caption_fastai.check import check_captions
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.text import Vocab, read_vectors, vocab_vectors
from helpers import command_fails, fails, flickr_folder, load_dls, picture

CAPTIONS = {f'{i}.jpg': [f'A dog runs {w} .' for w in ('here', 'there', 'away')[:1 + i%3]] for i in range(8)}   # one to three each
SPLITS = dict(train=['0.jpg', '1.jpg', '2.jpg', '3.jpg', '4.jpg'], valid=['5.jpg'], test=['6.jpg', '7.jpg'])

@pytest.fixture
def folder(tmp_path): return flickr_folder(tmp_path/'data', CAPTIONS, SPLITS)

def karpathy(captions=CAPTIONS, splits=SPLITS, **fields):
    "Karpathy's form of captions"
    split = {n: dict(valid='val').get(s, s) for s,names in splits.items() for n in names}
    return dict(dataset='flickr8k', images=[
        dict(filename=n, imgid=i, split=split[n], sentids=[], **fields,
             sentences=[dict(raw=c, tokens=c.lower().split(), imgid=i, sentid=10*i + j) for j,c in enumerate(cs)])
        for i,(n,cs) in enumerate(captions.items())])

def coco(captions=CAPTIONS):
    "COCO's form of captions, annotations in an order of their own"
    ids = {n: 100 + i for i,n in enumerate(captions)}
    anns = [dict(image_id=ids[n], caption=c) for n,cs in captions.items() for c in cs]
    return dict(info={}, images=[dict(id=i, file_name=n, width=40, height=30) for n,i in ids.items()],
                annotations=[dict(id=j, **a) for j,a in enumerate(sorted(anns, key=lambda a: a['caption']))])

def write(file, d):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(d if isinstance(d, str) else json.dumps(d))
    return file

def as_sets(t): return {p.rsplit('/', 1)[1]: (set(g.caption), g.split.iloc[0]) for p,g in t.groupby('image')}

def coco_folder(path):
    "COCO's own folder: pictures 0 to 4 in train2017, 5 to 7 in val2017"
    names = list(CAPTIONS)
    for s,part in (('train', names[:5]), ('val', names[5:])):
        (path/f'{s}2017').mkdir(parents=True)
        for n in part: picture(path/f'{s}2017'/n)
        write(path/'annotations'/f'captions_{s}2017.json', coco({n: CAPTIONS[n] for n in part}))
    return path

# What they give

def test_karpathy_gives_what_flickr8k_gives(folder):
    true = read_flickr8k(folder)
    file = write(folder/'dataset_flickr8k.json', karpathy())
    for t in (read_karpathy(file), read_captions(file), read_karpathy(write(folder.parent/'dataset_x.json', karpathy()), folder)):
        assert t.values.tolist() == true.values.tolist()
    assert read_captions(folder).values.tolist() == true.values.tolist()   # Flickr8k's own file goes first, as before

def test_karpathy_coco_looks_into_the_folder_of_each_picture(tmp_path):
    for d in ('train2014', 'val2014'): (tmp_path/d).mkdir(); picture(tmp_path/d/'0.jpg')   # the same name in both
    picture(tmp_path/'val2014'/'1.jpg')
    d = karpathy({'0.jpg': ['One .'], '1.jpg': ['Two .']}, dict(restval=['0.jpg'], val=['1.jpg']), filepath='val2014')
    d['images'].append(dict(d['images'][0], filepath='train2014', split='train', imgid=2, sentences=[dict(raw='One .')]))
    t = read_captions(write(tmp_path/'dataset_coco.json', d))
    assert t.image.tolist() == [str(tmp_path/p) for p in ('val2014/0.jpg', 'val2014/1.jpg', 'train2014/0.jpg')]
    assert t.split.tolist() == ['train', 'valid', 'train']

def test_pictures_of_karpathy_coco_in_one_folder(tmp_path):
    (tmp_path/'all').mkdir()
    for n in CAPTIONS: picture(tmp_path/'all'/n)
    assert len(read_karpathy(write(tmp_path/'dataset_coco.json', karpathy(filepath='val2014')), tmp_path/'all')) == 15

def test_coco_folder(tmp_path):
    base = coco_folder(tmp_path/'coco')
    true = {n: (set(cs), 'train' if int(n[0]) < 5 else 'valid') for n,cs in CAPTIONS.items()}
    for t in (read_coco(base), read_captions(base)):
        assert as_sets(t) == true and len(t) == 15 and not t.attrs['notes']
        assert t.image.iloc[0] == str(base/'train2017'/'0.jpg')

def test_coco_file(folder, tmp_path):
    t = read_coco(write(folder/'mine.json', coco()), valid_pct=0.25, test_pct=0.25, seed=3)
    assert {n: c for n,(c,_) in as_sets(t).items()} == {n: set(cs) for n,cs in CAPTIONS.items()}
    assert t.groupby('split').image.nunique().to_dict() == dict(train=4, valid=2, test=2)
    base = coco_folder(tmp_path/'coco')
    assert set(read_captions(base/'annotations'/'captions_val2017.json').split) == {'valid'}
    t = read_coco(base/'annotations'/'captions_train2017.json', img_path=base/'train2017')
    assert set(t.split) == {'train', 'valid'} and '1 of 5' in t.attrs['notes'][0]

def test_dataloaders(folder, tmp_path):
    kw = dict(size=32, min_freq=1, bs=4, num_workers=0)
    file,base = write(tmp_path/'dataset_x.json', karpathy()),coco_folder(tmp_path/'coco')
    for dls in (CaptionDataLoaders.from_karpathy(file, folder, **kw), CaptionDataLoaders.from_coco(base, **kw), load_dls(base)):
        assert sorted(dls.vocab.itos[4:]) == sorted('a dog runs here there away'.split())
        assert len(dls.one_batch()[0]) == min(dls.bs, len(dls.train_ds))
    assert CaptionDataLoaders.from_coco(write(folder/'mine.json', coco()), valid_pct=0.5, seed=1, **kw).captions.split.nunique() == 2

# Bad files

def json_fails(folder, content, error, *parts, read=(read_captions, load_dls), name='mine.json'):
    file = write(folder/name, content)
    for f in read: fails(error, lambda: f(file), *parts)
    return file

def test_json_cut_short(folder, tmp_path):
    whole = json.dumps(coco(), indent=1)
    n = whole[:len(whole)//2].count('\n') + 1
    file = json_fails(folder, whole[:len(whole)//2], ValueError, folder/'mine.json', f'line {n}', 'cut short', read=(read_captions, read_coco, read_karpathy))
    command_fails(caption_train, ['--data', file, '--out', tmp_path/'out'], file, f'line {n}', 'cut short')
    json_fails(folder, '', ValueError, folder/'mine.json', 'line 1')
    file.write_bytes('{"images": [],\n "annotations": "Mädchen"}'.encode('latin-1'))
    fails(ValueError, lambda: read_captions(file), file, 'line 2', 'UTF-8')

def test_the_other_form(folder):
    json_fails(folder, karpathy(), ValueError, folder/'mine.json', 'read_karpathy', read=[read_coco])
    json_fails(folder, coco(), ValueError, folder/'mine.json', 'read_coco', read=[read_karpathy])

@pytest.mark.parametrize('d', [[], 3, {}, dict(images={}), dict(images=[]), dict(images=[3]), dict(annotations=[]), dict(images=[dict(id=1)])], ids=repr)
def test_json_of_something_else(folder, d):
    json_fails(folder, d, ValueError, folder/'mine.json', 'form', read=(read_captions, read_coco, read_karpathy))

@pytest.mark.parametrize('form,key,change,parts', [
    (karpathy, 'images', dict(filename=None), ['images[1]', 'filename']),
    (karpathy, 'images', dict(sentences='A dog'), ['images[1]', 'sentences']),
    (karpathy, 'images', dict(sentences=[dict(raw='A dog'), dict(tokens=['a'])]), ['images[1], sentences[1]', 'raw']),
    (karpathy, 'images', dict(split='night'), ['images[1]', "'night'"]),
    (karpathy, 'images', dict(sentences=[dict(raw=' ')]), ['images[1]', 'caption is empty']),
    (coco, 'images', dict(id=None), ['images[1]', 'id']),
    (coco, 'images', dict(file_name=3), ['images[1]', 'file_name']),
    (coco, 'annotations', dict(caption=None), ['annotations[1]', 'caption']),
    (coco, 'annotations', dict(image_id=[3]), ['annotations[1]', 'image_id']),
    (coco, 'annotations', dict(caption=''), ['images[', 'caption is empty'])])
def test_record_that_is_none(folder, form, key, change, parts):
    d = form()
    d[key][1].update(change)
    json_fails(folder, d, ValueError, folder, 'mine.json', *parts)

@pytest.mark.parametrize('form,key,change,parts', [
    (karpathy, 'images', dict(filename='0.jpg'), ['2 images', '0.jpg']),
    (karpathy, 'images', dict(imgid=0), ['2 images', 'imgid 0']),
    (karpathy, 'images', dict(sentences=[dict(raw='A dog', sentid=0)]), ['2 sentences', 'sentid 0', 'keep one, or give each one of its own']),
    (coco, 'images', dict(id=100), ['2 images', 'id 100']),
    (coco, 'images', dict(file_name='0.jpg'), ['2 images', '0.jpg']),
    (coco, 'annotations', dict(id=0), ['2 annotations', 'id 0'])])
def test_record_that_is_there_twice(folder, form, key, change, parts):
    d = form()
    d[key][1].update(change)
    json_fails(folder, d, ValueError, folder/'mine.json', *parts)

def test_sentence_of_another_image(folder):
    d = karpathy()
    d['images'][1]['sentences'][1]['imgid'] = 0
    json_fails(folder, d, ValueError, folder/'mine.json', 'images[1], sentences[1]', 'imgid 0', 'image 1')
    for im in d['images']: im.pop('imgid')   # other people's files have none
    assert len(read_captions(write(folder/'mine.json', d))) == 15

@pytest.mark.parametrize('text', ['['*200_000, '{"images": [' + '9'*5000 + ']}'], ids=['brackets', 'digits'])
def test_json_that_python_does_not_read(folder, text): json_fails(folder, text, ValueError, folder/'mine.json', read=(read_captions, read_coco, read_karpathy))

@pytest.mark.parametrize('name', ['a\0.jpg', 'a\0/1.jpg', '\ud800.jpg', '\ud800/1.jpg', 'a'*5000, 'a'*5000 + '/1.jpg', '.', '..', 'Images/.'], ids=lambda n: ascii(n)[:12])
def test_name_that_no_picture_can_have(folder, name):
    for form,key in ((karpathy, 'filename'), (coco, 'file_name')):
        d = form()
        d['images'][1][key] = name
        file = json_fails(folder, d, ValueError, folder, 'mine.json, images[1]', repr(name[:40]))
        assert check_captions(file)['missing'].what.tolist() == [name]
    if name[0] != '.': assert len(read_captions(write(folder/'mine.json', karpathy(filepath=name)))) == 15   # a folder that is not there

def test_image_without_captions(folder, tmp_path):
    k,c = karpathy(),coco()
    for im in k['images'][:2]: im['sentences'] = []
    c['annotations'] = [a for a in c['annotations'] if a['image_id'] > 101]
    for d in (k, c):
        file = json_fails(folder, d, ValueError, folder/'mine.json', "no caption for 2 images ('0.jpg', '1.jpg')", 'skip_missing')
        t = read_captions(file, skip_missing=True)
        assert t.image.nunique() == 6 and '2 images' in t.attrs['notes'][0]

def test_caption_without_image(folder):
    d = coco()
    d['annotations'][2]['image_id'] = 7
    file = json_fails(folder, d, ValueError, folder/'mine.json', 'annotation 2', 'skip_missing')
    t = read_captions(file, skip_missing=True)
    assert len(t) == 14 and 'annotation 2' in t.attrs['notes'][0]

def test_picture_of_a_json_file_that_is_not_there(folder, tmp_path):
    for d in (karpathy(), coco()):
        (folder/'Images'/'3.jpg').unlink(missing_ok=True)
        file = json_fails(folder, d, FileNotFoundError, 'images[3]', "1 image ('3.jpg')", 'skip_missing')
        t = read_captions(file, skip_missing=True)
        assert t.image.nunique() == 7 and "1 image ('3.jpg')" in t.attrs['notes'][0]

@pytest.mark.parametrize('there,named', [('Café.JPG', 'cafe\u0301.jpg'), ('a.jpeg', 'a.jpg'), ('b.jpg', 'b')])
def test_a_picture_of_almost_this_name(tmp_path, there, named):
    "The error names it: case, Unicode form and suffix are what file systems differ in"
    (tmp_path/'Images').mkdir()
    picture(tmp_path/'Images'/there)
    file = tmp_path/'captions.csv'
    file.write_text(f'image,caption\n{named},a dog\n', encoding='utf-8')
    fails(FileNotFoundError, lambda: read_captions(file), 'line 2', f'(did you mean {there}?)', 'skip_missing=True')
    file.write_text('image,caption\nother.jpg,a dog\n')
    with pytest.raises(FileNotFoundError) as e: read_captions(file)
    assert 'did you mean' not in str(e.value)

def test_where_data_sets_are_published(tmp_path):
    coco_page,flickr_page = 'http://images.cocodataset.org/zips/train2017.zip','https://shannon.cs.illinois.edu/DenotationGraph/'
    nowhere = tmp_path/'coco'
    fails(FileNotFoundError, lambda: read_coco(nowhere), nowhere, coco_page, 'annotations_trainval2017.zip', 'val2017/')
    command_fails(caption_train, ['--data', nowhere, '--out', tmp_path/'out'], nowhere, coco_page)
    fails(FileNotFoundError, lambda: read_coco(tmp_path), tmp_path, 'captions_train*.json', coco_page)
    fails(FileNotFoundError, lambda: read_karpathy(tmp_path), tmp_path, 'dataset_*.json', 'caption_datasets.zip')
    for name in ('flickr30k', 'coco', 'flickr8k'):   # the captions are there, the pictures are not
        file,page = write(tmp_path/f'dataset_{name}.json', dict(karpathy(), dataset=name)),dict(flickr30k=flickr_page, coco=coco_page).get(name, 'download_flickr8k')
        fails(FileNotFoundError, lambda: read_captions(file), tmp_path, '8 images', page)
        file.unlink()
        fails(FileNotFoundError, lambda: read_karpathy(file), file, 'caption_datasets.zip', page)
    file = write(tmp_path/'annotations'/'captions_train2017.json', coco())
    fails(FileNotFoundError, lambda: read_coco(file), tmp_path, '8 images', coco_page)
    with pytest.raises(FileNotFoundError) as e: read_coco(write(tmp_path/'mine.json', coco()))
    assert 'http' not in str(e.value)   # these are one's own
    for name,page in (('coco', coco_page), ('COCO2017', coco_page), ('flickr30k', flickr_page), ('Flickr30k', flickr_page)):   # a folder without captions
        (tmp_path/'empty'/name).mkdir(parents=True)
        fails(FileNotFoundError, lambda: read_captions(tmp_path/'empty'/name), name, 'no caption file', page)

@pytest.mark.long
def test_scale_of_coco():
    "A table of COCO's size takes less than a minute of processor time and 1,500 MB"
    from bench_coco import measure
    for name,_,((_,_,secs,mb),) in measure(rounds=1): assert secs < 60 and mb < 1500, (name, secs, mb)

def test_several_files(tmp_path):
    for y in (2014, 2017): write(tmp_path/'annotations'/f'captions_train{y}.json', coco())
    fails(ValueError, lambda: read_coco(tmp_path), 'captions_train2014.json, captions_train2017.json', 'give the path of one')
    for n in ('coco', 'flickr8k'): write(tmp_path/f'dataset_{n}.json', karpathy())
    for read in (read_karpathy, read_captions): fails(ValueError, lambda: read(tmp_path), 'dataset_coco.json, dataset_flickr8k.json', 'give the path of one')

# The download

def archive(files):
    "A zip archive of `files`, a dict of name to text, as bytes"
    b = io.BytesIO()
    with zipfile.ZipFile(b, 'w', zipfile.ZIP_DEFLATED) as z:
        for n,txt in files.items(): z.writestr(n, txt)
    return b.getvalue()

class Handler(BaseHTTPRequestHandler):
    "Sends `files` of the server, all or, if it knows `ranges`, from the byte that is asked for; breaks off after `cut` bytes; tells `lengths`"
    def log_message(self, *args): pass
    def do_GET(self):
        o,asked,start = self.server,self.headers.get('Range'),0
        o.asked.append((self.path[1:], asked))
        if (data := o.files.get(self.path[1:])) is None: return self.send_error(404)
        if asked and o.ranges: start = int(asked.removeprefix('bytes=').removesuffix('-'))
        if start >= len(data):
            self.send_response(416)
            if o.lengths: self.send_header('Content-Range', f'bytes */{len(data)}')
            return self.end_headers()
        self.send_response(206 if start else 200)
        if o.lengths: self.send_header('Content-Length', str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][:o.cut])

TOKENS = ''.join(f'{i}.jpg#{j}\ta dog\n' for i in range(3) for j in range(2))

@pytest.fixture
def server(monkeypatch):
    "A server of the two archives of a Flickr8k of three pictures"
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.files = {'pics.zip': archive({'Flicker8k_Dataset/': '', **{f'Flicker8k_Dataset/{i}.jpg': bytes(range(256))*20 for i in range(3)}, '__MACOSX/._0.jpg': ''}),
               'text.zip': archive({'Flickr8k.token.txt': TOKENS, '__MACOSX/._x': ''})}
    s.ranges,s.lengths,s.cut,s.asked = True,True,None,[]
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown(); s.server_close()

def get(server, path, counts=(3, 6), **kw):
    return download_flickr8k(path, [f'http://127.0.0.1:{server.server_port}/{n}.zip' for n in ('pics', 'text')], counts, **kw)

def test_download_once(server, tmp_path, capsys):
    path = get(server, tmp_path/'new'/'flickr8k')
    assert path == tmp_path/'new'/'flickr8k' and not list(path.rglob('*MACOSX*'))
    assert as_sets(read_flickr8k(path, valid_pct=0))['2.jpg'] == ({'a dog'}, 'train') and len(read_captions(path)) == 6
    assert get(server, path) == path and server.asked == [('pics.zip', None), ('text.zip', None)]
    assert capsys.readouterr() == ('', '')   # the bar is for a terminal
    assert '100%' in (get(server, tmp_path/'shown', show_progress=True) and capsys.readouterr().err)
    (path/'Flicker8k_Dataset'/'0.jpg').unlink()
    get(server, path)   # unpacked again, not fetched again
    for f in path.glob('*.zip'): f.unlink()
    get(server, path)   # what is unpacked is enough
    assert (path/'Flicker8k_Dataset'/'0.jpg').exists() and len(server.asked) == 4

def test_download_by_hand(server, tmp_path):
    for n,data in server.files.items(): (tmp_path/n).write_bytes(data)
    assert len(read_flickr8k(get(server, tmp_path))) == 6 and not server.asked

def test_download_into_the_data_folder_of_fastai(server, tmp_path, monkeypatch):
    monkeypatch.setattr('fastai.data.external.fastai_path', lambda what: tmp_path/what)
    assert get(server, None) == tmp_path/'data'/'flickr8k'

def test_download_goes_on(server, tmp_path):
    url,file = f'http://127.0.0.1:{server.server_port}/pics.zip',tmp_path/'pics.zip'
    server.cut = 50
    fails(ConnectionError, lambda: get(server, tmp_path), url, 'only 50 of', 'call again', file)
    fails(ConnectionError, lambda: get(server, tmp_path), url, 'only 100 of')
    assert not file.exists() and (tmp_path/'pics.zip.part').read_bytes() == server.files['pics.zip'][:100]
    server.cut = None
    get(server, tmp_path)
    assert server.asked == [('pics.zip', None), ('pics.zip', 'bytes=50-'), ('pics.zip', 'bytes=100-'), ('text.zip', None)]
    assert file.read_bytes() == server.files['pics.zip'] and not list(tmp_path.glob('*.part'))

def test_download_starts_anew_where_the_server_cannot_go_on(server, tmp_path):
    (tmp_path/'pics.zip.part').write_bytes(b'x'*30)
    server.ranges = False
    get(server, tmp_path)
    assert server.asked[0] == ('pics.zip', 'bytes=30-')
    assert (tmp_path/'pics.zip').read_bytes() == server.files['pics.zip']

def test_download_with_too_much_of_it(server, tmp_path):
    (tmp_path/'pics.zip.part').write_bytes(server.files['pics.zip'] + b'x')
    get(server, tmp_path)
    assert (tmp_path/'pics.zip').read_bytes() == server.files['pics.zip'] and [r for _,r in server.asked][1] is None

def test_download_that_was_whole(server, tmp_path):
    (tmp_path/'pics.zip.part').write_bytes(server.files['pics.zip'])
    get(server, tmp_path)
    assert server.asked == [('pics.zip', f"bytes={len(server.files['pics.zip'])}-"), ('text.zip', None)] and not list(tmp_path.glob('*.part'))

def test_download_of_unknown_length_goes_on(server, tmp_path):
    server.lengths,server.cut = False,50
    fails(ConnectionError, lambda: get(server, tmp_path), '50 bytes', 'call again')
    server.cut = None
    get(server, tmp_path)
    assert server.asked[:2] == [('pics.zip', None), ('pics.zip', 'bytes=50-')]
    assert (tmp_path/'pics.zip').read_bytes() == server.files['pics.zip']

def test_unpacking_that_breaks_off(server, tmp_path):
    "The place of a split file is taken; what is there then does not count as complete"
    server.files['text.zip'] = archive({'Flickr8k.token.txt': TOKENS, 'Flickr_8k.trainImages.txt': '0.jpg\n1.jpg\n', 'Flickr_8k.testImages.txt': '2.jpg\n'})
    (tmp_path/'Flickr_8k.testImages.txt').mkdir()
    fails(OSError, lambda: get(server, tmp_path), tmp_path/'text.zip', f'into {tmp_path}', 'call again')
    (tmp_path/'Flickr_8k.testImages.txt').rmdir()
    assert as_sets(read_flickr8k(get(server, tmp_path), valid_pct=0))['2.jpg'] == ({'a dog'}, 'test')

def test_no_network(tmp_path, server):
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]   # nobody listens there
    url = f'http://127.0.0.1:{port}/pics.zip'
    fails(ConnectionError, lambda: download_flickr8k(tmp_path, [url]), url, 'by hand', tmp_path/'pics.zip')
    server.files = {}
    fails(ConnectionError, lambda: get(server, tmp_path), 'pics.zip', '404', 'by hand', tmp_path/'pics.zip')

def test_damaged_archive(server, tmp_path):
    whole = server.files['pics.zip']
    middle = whole.index(b'0.jpg') + 30
    for bad in (b'', b'<html>', whole[:-30], whole[:middle] + b'x' + whole[middle+1:]):
        server.files['pics.zip'] = bad
        if bad: fails(ValueError, lambda: get(server, tmp_path), tmp_path/'pics.zip', 'damaged', 'deleted', 'call again')
        else: (tmp_path/'pics.zip').write_bytes(b''); fails(ValueError, lambda: get(server, tmp_path), tmp_path/'pics.zip', 'damaged')
        assert not (tmp_path/'pics.zip').exists() and not (tmp_path/'Flicker8k_Dataset').exists()
    server.files['pics.zip'] = whole
    get(server, tmp_path)

@pytest.mark.parametrize('name', ['../out.txt', '/out.txt', 'a/../../out.txt'])
def test_archive_that_leaves_its_folder(server, tmp_path, name):
    server.files['text.zip'] = archive({'Flickr8k.token.txt': '', name: 'x'})
    fails(ValueError, lambda: get(server, tmp_path/'flickr8k'), 'text.zip', name, 'outside')
    assert not (tmp_path/'out.txt').exists() and not (tmp_path/'flickr8k'/'Flickr8k.token.txt').exists()

def test_wrong_counts(server, tmp_path):
    for counts in ((3, 7), (4, 6)):
        fails(ValueError, lambda: get(server, tmp_path, counts), tmp_path, '3 pictures', '6 captions', *counts)

# Word vectors

def vectors(tmp_path, text, encoding='utf-8'):
    (tmp_path/'v.txt').write_bytes(text.encode(encoding))
    return tmp_path/'v.txt'

@pytest.mark.parametrize('header', ['', '3 2\n'])
@pytest.mark.parametrize('end', ['\n', ' \n', '\r\n'])
def test_vectors(tmp_path, header, end):
    lines = 'dog 1 2', 'at a.com 3 4', 'ein\xa0Mädchen 5 -6e-1', ''
    vecs = read_vectors(vectors(tmp_path, '\ufeff' + header + end.join(lines)))
    assert {w: v.tolist() for w,v in vecs.items()} == {'dog': [1, 2], 'at a.com': [3, 4], 'ein\xa0Mädchen': [5, pytest.approx(-0.6)]}
    assert list(read_vectors(tmp_path/'v.txt', {'dog'})) == ['dog']

def test_first_vector_of_a_word_counts(tmp_path):
    assert read_vectors(vectors(tmp_path, 'dog 1 2\ncat 3 4\ndog 5 6\n'))['dog'].tolist() == [1, 2]
    fails(ValueError, lambda: read_vectors(vectors(tmp_path, 'dog 1 2\ndog 5\n')), 'line 2')

@pytest.mark.parametrize('text,parts', [
    ('dog 1 2 3\ncat 1 2\n', ['line 2', '3 numbers']), ('dog 1 2 3\ncat 1 2 3 4\n', ['line 2', '3 numbers']),
    ('dog 1 2 3\n\nhen 1 2\n', ['line 3', '3 numbers']), ('dog 1 2 3\nhen 1 2 3 4\n', ['line 2', '3 numbers']),   # of a word that nobody asks for
    ('dog 1 2 3\ncat 1 x 3\n', ['line 2']), ('dog 1 2 3\ncat 1 nan 3\n', ['line 2']), ('dog 1 2 3\ncat\n', ['line 2']),
    ('2 4\ndog 1 2 3\n', ['line 2', '4 numbers, as line 1 says']), ('2 2\ndog 1 2 3\n', ['line 2', '2 numbers, as line 1 says']),
    ('dog\ncat\n', ['line 1']), ('hen 1 2 3\n', ['no vector']), ('', ['no vector']), ('1 3\n', ['no vector'])])
def test_broken_vectors(tmp_path, text, parts):
    fails(ValueError, lambda: read_vectors(vectors(tmp_path, text), {'dog', 'cat'}), tmp_path/'v.txt', *parts)

@pytest.mark.parametrize('encoding', ['latin-1', 'utf-16'])
def test_vectors_of_another_encoding(tmp_path, encoding):
    file = vectors(tmp_path, 'dog 1 2\nMädchen 3 4\n', encoding)
    fails(ValueError, lambda: read_vectors(file, {'dog'}), file, 'line 2' if encoding == 'latin-1' else 'line 1', 'UTF-8')
    fails(FileNotFoundError, lambda: read_vectors(tmp_path/'nowhere.txt'), tmp_path/'nowhere.txt', 'check the path')

def test_words_without_a_vector_look_like_those_with_one(capsys):
    torch.manual_seed(0)
    mean,std = torch.tensor([-3., 0., 5.]),torch.tensor([0.01, 1., 10.])
    vocab = Vocab([f'w{i}' for i in range(4000)])
    vecs = {f'w{i}': mean + std*torch.randn(3) for i in range(2000)} | {'stranger': torch.full((3,), 1e6)}
    w = vocab_vectors(vocab, vecs)
    assert capsys.readouterr().out == '2,000 of 4,000 words have a vector (50% of the vocabulary)\n'
    assert torch.equal(w[4:2004], torch.stack(list(vecs.values())[:-1])) and not w[Vocab.pad_idx].any()
    assert ((w[2004:].mean(0) - mean).abs() < 0.1*std).all() and (w[2004:].std(0)/std - 1).abs().max() < 0.1
    vocab_vectors(vocab, vecs, verbose=False)
    assert capsys.readouterr().out == ''
    assert vocab_vectors(vocab, {'w1': torch.ones(3)}).isfinite().all()
    fails(ValueError, lambda: vocab_vectors(vocab, {'stranger': torch.ones(3)}), '4000 words')
    fails(ValueError, lambda: vocab_vectors(vocab, {'w1': torch.ones(3), 'w2': torch.ones(4)}), "'w2' has 4 numbers", "'w1' has 3")
