"A captioner's folder may come from a stranger: loading it runs nothing, stays small, reads nothing else; and it drags nothing in"
import io, json, os, pickle, resource, shutil, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np, pytest, torch
from fastcore.foundation import L
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from caption_fastai.captioner import Captioner
from caption_fastai.images import ImagePipeline
from caption_fastai.model import caption_model
from caption_fastai.shapes import draw_scene, make_scene
from caption_fastai.text import MAX_VOCAB, Vocab
from helpers import fails

SIZES = dict(emb_sz=16, attn_sz=16, n_hid=32)

@pytest.fixture(scope='module')
def good(tmp_path_factory):
    "A captioner as `save` leaves it"
    model = caption_model(12, 'shapes_cnn', weights=None, **SIZES)
    return Captioner(model.eval(), Vocab(list('abcdefgh')), ImagePipeline(48)).save(tmp_path_factory.mktemp('good')/'captioner')

@pytest.fixture
def folder(good, tmp_path): return shutil.copytree(good, tmp_path/'captioner')

def change(folder, part, **fields):
    "Write other fields into the configuration"
    f = folder/'config.json'
    config = json.loads(f.read_text())
    config[part].update(fields)
    f.write_text(json.dumps(config))
    return folder

def refused(folder, *parts): fails(ValueError, lambda: Captioner.load(folder, 'cpu'), *parts)

class Bomb:
    "Runs a command where it is unpickled"
    def __init__(self, command): self.command = command
    def __reduce__(self): return os.system, (self.command,)

def test_a_full_disk(folder):
    "The file that does not fit is named, and those that are there stay"
    captioner,before = Captioner.load(folder, 'cpu'),{f.name: f.read_bytes() for f in folder.iterdir()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))   # of each file there is room for 100 bytes
    try: fails(OSError, lambda: captioner.save(folder), folder/'model.safetensors', 'MB to write', 'MB free')
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,)*2)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before

def test_files_of_one_mode(folder):
    "The user of a container may read the weights where it may read the rest"
    assert len({f.stat().st_mode for f in Captioner.load(folder, 'cpu').save(folder).iterdir()}) == 1

def test_saved_over_another_and_stopped_between(folder, monkeypatch):
    "Weights beside a vocabulary of the same size that is not theirs are refused; weights that do not say whose they are load; each file is on the disk before it has its name"
    captioner,done = Captioner.load(folder, 'cpu'),[]
    fsync,replace = os.fsync,os.replace
    def stop(*args):
        if done.count('replace'): raise KeyboardInterrupt
        done.append('replace'); replace(*args)
    monkeypatch.setattr(os, 'fsync', lambda fd: done.append('fsync') or fsync(fd)); monkeypatch.setattr(os, 'replace', stop)
    captioner.vocab = Vocab(list('hgfedcba'))
    with pytest.raises(KeyboardInterrupt): captioner.save(folder)
    assert done == ['fsync', 'replace', 'fsync'] and len(list(folder.iterdir())) == 3
    refused(folder, 'model.safetensors', 'another vocabulary', 'vocab.json')
    save_file(load_file(folder/'model.safetensors'), folder/'model.safetensors')
    assert Captioner.load(folder, 'cpu').vocab == Vocab(list('abcdefgh'))

# Nothing is run

@pytest.mark.parametrize('kind', ['pickle', 'torch'])
@pytest.mark.parametrize('name', ['model.safetensors', 'config.json', 'vocab.json'])
def test_a_pickle_under_another_name(folder, tmp_path, kind, name):
    bomb,ran = Bomb(f'touch {tmp_path}/ran'),tmp_path/'ran'
    with open(folder/name, 'wb') as f: (pickle.dump if kind == 'pickle' else torch.save)(bomb, f)
    refused(folder, name)
    assert not ran.exists()
    with open(folder/name, 'rb') as f: (pickle.load if kind == 'pickle' else lambda f: torch.load(f, weights_only=False))(f)
    assert ran.exists()   # it would have been

NAMES = '../../etc/passwd', '/etc/passwd', 'hf-hub:user/model', 'local-dir:/tmp', 'shapes_cnn\n', 'a b', '', 'x'*200, None, 3, ['shapes_cnn'], 'os.system', '__import__'

@pytest.mark.parametrize('field', ['arch', 'system'])
@pytest.mark.parametrize('name', NAMES, ids=str)
def test_a_name_that_is_none(folder, field, name): refused(change(folder, 'model', **{field: name}), 'config.json')

@pytest.mark.parametrize('fields', [dict(run='os.system'), dict(versions=['1']), dict(versions=dict(torch='2\n3')), dict(versions=dict(torch='9'*200))], ids=str)
def test_a_field_beside_the_others(folder, fields):
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps({**config, **fields}))
    refused(folder, 'config.json')

def test_a_model_that_is_too_large(folder):
    fails(ValueError, lambda: Captioner.load(folder, 'cpu', max_bytes=10_000), 'config.json', 'max_bytes=10,000')
    with open(change(folder, 'model', emb_sz=8192, n_hid=8192, vocab_sz=12, attn_sz=8192)/'model.safetensors', 'r+b') as f: f.truncate(10**10)   # a file of holes
    fails(ValueError, lambda: Captioner.load(folder, 'cpu', max_bytes=10**9), 'a model of ', 'max_bytes=1,000,000,000')

# Sizes

BAD = [('model', dict(n_hid=10**12)), ('model', dict(n_hid=8193)), ('model', dict(emb_sz=-1)), ('model', dict(emb_sz=1.5)), ('model', dict(attn_sz='512')), ('model', dict(attn_sz=True)),
       ('model', dict(vocab_sz=10**9)), ('model', dict(vocab_sz=0)), ('model', dict(grid=10**6)), ('model', dict(p=float('nan'))), ('model', dict(p=2)), ('model', dict(nf=10**9)),
       ('model', dict(pretrained='yes')), ('model', dict(other=1)), ('model', dict(deep_output=0)),
       ('pipeline', dict(size=10**9)), ('pipeline', dict(size=7)), ('pipeline', dict(max_pixels=10**15)), ('pipeline', dict(std=[0, 0, 0])), ('pipeline', dict(mean=[float('inf')]*3)),
       ('pipeline', dict(mean=[0.]*10**3)), ('pipeline', dict(resize='../x')), ('pipeline', dict(resize='tile')), ('pipeline', dict(other=1))]

@pytest.mark.parametrize('part,fields', BAD, ids=str)
def test_a_field_out_of_range(folder, part, fields): refused(change(folder, part, **fields), 'config.json')

@pytest.mark.parametrize('text', ['', '{', '[]', '[' * 10**5, '{"format": ' + '9'*10**4 + '}', '{"format": "caption_fastai captioner 1"}', '{"format": "caption_fastai captioner 1", "model": null}', ' '*2**17])
def test_a_damaged_configuration(folder, text):
    (folder/'config.json').write_text(text)
    refused(folder, 'config.json')

@pytest.mark.parametrize('words', [['w'], ['w']*8, list('abcdefg') + [7], list('abcdefg') + [''], list('abcdefg') + ['\x1b[2J'], list('abcdefg') + ['\u202e'], list('abcdefg') + ['h'*101], 'abcdefgh', None], ids=str)
def test_a_vocabulary_of_something_else(folder, words):
    (folder/'vocab.json').write_text(json.dumps(dict(lower=True, punct=False, words=words)))
    refused(folder, 'vocab.json')

@pytest.mark.parametrize('n', [10**6, 2*10**6])
def test_a_vocabulary_of_a_million_lines(folder, n):
    (folder/'vocab.json').write_text(json.dumps(dict(lower=True, punct=False, words=[f'w{i}' for i in range(n)]), indent=0))
    refused(folder, 'vocab.json', str(MAX_VOCAB))

def header(n, text=b''): return n.to_bytes(8, 'little') + text

@pytest.mark.parametrize('content', [b'', b'abc', header(2**63), header(2**22 + 1), header(100), header(2, b'{}'), header(60, b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,4]}}' % 2**60)], ids=range(7))
def test_damaged_weights(folder, content):
    (folder/'model.safetensors').write_bytes(content)
    refused(folder, 'model.safetensors')

@pytest.mark.parametrize('weights', [{}, {'decoder.out.bias': torch.zeros(10**6)}, {'decoder.out.bias': torch.zeros(12, dtype=torch.int64)}], ids=['none', 'large', 'whole numbers'])
def test_weights_of_another_model(folder, weights):
    save_file(weights, folder/'model.safetensors')
    refused(folder, 'model.safetensors', 'another model')

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('name', ['decoder.out.bias', 'encoder.body.1.running_mean'])
def test_weights_that_are_no_numbers(folder, name, value):
    "One of them is enough, in statistics too"
    weights = load_file(folder/'model.safetensors')
    name = next(k for k in weights if k == name or k.endswith('running_mean') and name.endswith('running_mean'))
    weights[name][0] = value
    save_file(weights, folder/'model.safetensors')
    refused(folder, 'model.safetensors', name, 'no finite numbers')

def test_weights_too_large_for_sixteen_bits(folder):
    weights = load_file(folder/'model.safetensors')
    weights['decoder.out.bias'][0] = 1e30
    save_file(weights, folder/'model.safetensors')
    Captioner.load(folder, 'cpu')
    fails(ValueError, lambda: Captioner.load(folder, 'cpu', torch.float16), 'decoder.out.bias', 'torch.float16')

# Other versions

@pytest.mark.parametrize('n', [2, 17])
def test_a_later_format(folder, n):
    f = folder/'config.json'
    f.write_text(f.read_text().replace('captioner 1', f'captioner {n}'))
    refused(folder, 'config.json', f'captioner {n}', 'captioner 1', 'pip install -U caption_fastai')

def without(folder, part, field):
    config = json.loads((folder/'config.json').read_text())
    del config[part][field]
    (folder/'config.json').write_text(json.dumps(config))
    return folder

def test_fields_that_came_later_have_defaults(folder):
    "max_pixels, and what a decoder's class has a default for; without the others nobody would know what the encoder saw"
    c = Captioner.load(without(folder, 'pipeline', 'max_pixels'), 'cpu')
    assert c.pipeline == ImagePipeline(48) and 'proj_sz' not in c.model.config and 'cell' not in c.model.config
    for part,field in (('model', 'arch'), ('model', 'grid'), ('pipeline', 'mean'), ('pipeline', 'size')):
        config = (folder/'config.json').read_text()
        refused(without(folder, part, field), 'config.json', part, field)
        (folder/'config.json').write_text(config)

SAVED_OLDEST = {100_002: ('a little orange triangle', -3.102), 100_003: ('here is a red heart and a red circle', -7.608), 100_010: ('a yellow circle', -2.700)}   # seeds of scenes

def test_a_captioner_of_the_oldest_versions():
    "What `save_oldest.py` saved with fastai 2.8.7 and PyTorch 2.7 says the same words, whatever has changed since"
    c = Captioner.load(Path(__file__).parent/'saved_oldest', 'cpu')
    for cap,(text,score) in zip(c.caption([draw_scene(make_scene(seed)) for seed in SAVED_OLDEST]), SAVED_OLDEST.values()):
        assert cap.text == text and cap.score == pytest.approx(score, abs=0.02) and cap.maps.shape == (len(cap.words), 6, 6)

# Other files

@pytest.mark.parametrize('name', ['model.safetensors', 'config.json', 'vocab.json'])
def test_a_link_to_another_file(folder, tmp_path, name):
    os.replace(folder/name, tmp_path/'secret')
    (folder/name).symlink_to(tmp_path/'secret')
    refused(folder, name, 'link')
    (folder/name).unlink(); (folder/name).symlink_to('/dev/zero')
    fails(FileNotFoundError, lambda: Captioner.load(folder, 'cpu'), name)
    (folder/name).unlink(); os.replace(tmp_path/'secret', folder/'beside'); (folder/name).symlink_to('beside')
    Captioner.load(folder, 'cpu')   # it stays in the folder

# A process of its own

CODE = '''
import json, sys, resource
events = []
watched = 'os.system', 'subprocess.Popen', 'socket.connect', 'pickle.find_class', 'os.exec'
from caption_fastai.captioner import Captioner
imported = [m for m in ('fastai', 'fastcore', 'matplotlib', 'pandas', 'nltk', 'spacy', 'timm', 'IPython', 'notebook') if m in sys.modules]
sys.addaudithook(lambda e, args: events.append(e) if e in watched else None)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
good,image,*bad = sys.argv[1:]
captions = Captioner.load(good, 'cpu').caption([image]*2, max_len=3)
before,errors = peak(),[]
for f in bad:
    try: Captioner.load(f, 'cpu')
    except ValueError as e: errors.append(str(e))
after = [m for m in ('fastai', 'matplotlib', 'nltk', 'spacy') if m in sys.modules]
print(json.dumps(dict(imported=imported, after=after, events=events, errors=errors, mb=(peak() - before)/1024, captions=len(captions))))
'''

@pytest.mark.skipif(sys.platform != 'linux', reason='memory is counted in units of its own elsewhere')
def test_a_process_that_only_captions(good, tmp_path):
    "It imports neither fastai nor what fastai needs, and folders that claim 1 to 3 GB cost it nothing"
    claims = [dict(emb_sz=8192, attn_sz=8192, n_hid=8192), dict(arch='regnet_y_128gf')]
    bad = [change(shutil.copytree(good, tmp_path/str(i)), 'model', **o) for i,o in enumerate(claims)]
    image = tmp_path/'a.png'; Image.new('RGB', (60, 50), 'red').save(image)
    run = subprocess.run([sys.executable, '-c', CODE, str(good), str(image), *map(str, bad)], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said['imported'] == said['after'] == said['events'] == []
    assert len(said['errors']) == len(bad) and all('another model' in e for e in said['errors'])
    assert said['mb'] < 200 and said['captions'] == 2

def test_a_network_that_counts_with_tensors(tmp_path):
    model = caption_model(12, 'regnet_y_400mf', weights=None, **SIZES).eval()
    Captioner.load(Captioner(model, Vocab(list('abcdefgh')), ImagePipeline(48)).save(tmp_path), 'cpu')

def test_sixteen_bits_of_a_captioner_of_usual_size(tmp_path):
    "MobileNetV2 and 2,540 words take less than 25 MB, and come back in 32 bits"
    model = caption_model(2540, 'mobilenet_v2', weights=None, proj_sz=512).eval()
    folder = Captioner(model, Vocab([f'w{i}' for i in range(2536)]), ImagePipeline()).save(tmp_path/'half', half=True)
    assert (folder/'model.safetensors').stat().st_size < 25e6
    again = Captioner.load(folder, 'cpu').model.state_dict()
    for k,v in model.state_dict().items():
        assert again[k].dtype == v.dtype
        torch.testing.assert_close(again[k], v, rtol=1e-3, atol=1e-6)

def test_two_streams_of_a_model_in_training(good, photos):
    "As long as one of them goes on there is no dropout; then training goes on"
    c = Captioner.load(good, 'cpu')
    c.model.train()
    first,second = (c.stream(list(photos), bs=1, max_len=3) for _ in range(2))
    next(first); next(second)
    assert len(list(first)) == len(photos) - 1 and not c.model.training
    assert len(list(second)) == len(photos) - 1 and c.model.training

def test_threads_of_a_captioner(good, photos):
    "Eight of them at once, each with a beam of its own, get what one alone gets"
    c = Captioner.load(good, 'cpu')
    def said(i): return [(o.text, o.score) for _ in range(5) for o in c.caption(list(photos), beam_sz=1 + i, max_len=5, length_penalty=i/8)]
    with ThreadPoolExecutor(8) as pool: together = list(pool.map(said, range(8)))
    for a,b in zip(together, map(said, range(8))): assert [t for t,_ in a] == [t for t,_ in b] and [s for _,s in a] == pytest.approx([s for _,s in b], abs=1e-4)

def test_what_a_list_is(good, photos):
    "fastai's `L`, a generator and a tuple are lists; a name, bytes, a file that is open, an array or a tensor is one picture (a file may be decoded at a half, which the latter two are not)"
    c = Captioner.load(good, 'cpu')
    want = [o.text for o in c.caption([str(p) for p in photos], max_len=3)]
    for many in L(photos), (p for p in photos), tuple(photos): assert [o.text for o in c.caption(many, max_len=3)] == want
    for one in photos[0], str(photos[0]), photos[0].read_bytes(), io.BytesIO(photos[0].read_bytes()): assert c.caption(one, max_len=3).text == want[0]
    img = Image.open(photos[0]).convert('RGB')
    array = np.array(img)
    for one in array, torch.from_numpy(array).permute(2, 0, 1): assert c.caption(one, max_len=3).text == c.caption([img], max_len=3)[0].text

def test_captioner_to_start_from(photos):
    "The captioner in `snapshots` is small, in 16 bits, and captions"
    folder = Path(__file__).parents[1]/'snapshots'/'flickr8k'
    assert sum(f.stat().st_size for f in folder.iterdir()) < 25e6
    with safe_open(folder/'model.safetensors', 'pt') as f: assert {f.get_slice(k).get_dtype() for k in f.keys()} <= {'F16', 'I64'}
    c = Captioner.load(folder, 'cpu')
    cap = c.caption(photos[0], beam_sz=5, length_penalty=0.7)
    assert len(cap.words) > 2 and set(cap.words) <= set(c.vocab.itos) and cap.alphas.shape == (len(cap.words), 64)
