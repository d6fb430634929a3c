"What several tests need"
import random, socket, threading, time
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import pytest, torch
from PIL import Image

from caption_fastai.data import CaptionDataLoaders
from caption_fastai.learner import caption_learner

SPLIT_FILES = dict(train='Flickr_8k.trainImages.txt', valid='Flickr_8k.devImages.txt', test='Flickr_8k.testImages.txt')

def picture(path, size=(40, 30), seed=0, **kw):
    "Save a picture of soft coloured noise; returns its path"
    rng = random.Random(seed)
    small = Image.frombytes('RGB', (4, 3), bytes(rng.randrange(256) for _ in range(36)))
    small.resize(size, Image.Resampling.BILINEAR).save(path, **kw)
    return path

def flickr_folder(
    path, # is made
    captions, # dict of an image's name to its captions
    splits=None, # dict of split to names of images
    images=None # names of the pictures that are there, by default all that have captions
):
    "A small data set in Flickr8k's layout"
    path = Path(path); (path/'Images').mkdir(parents=True)
    for i,n in enumerate(captions if images is None else images): picture(path/'Images'/n, seed=i)
    lines = [f'{n}#{i}\t{c}\n' for n,cs in captions.items() for i,c in enumerate(cs)]
    (path/'Flickr8k.token.txt').write_text(''.join(lines), encoding='utf-8')
    for s,names in (splits or {}).items(): (path/SPLIT_FILES[s]).write_text(''.join(f'{n}\n' for n in names))
    return path

def some_captions(n): return {f'{i}.jpg': [f'a dog runs {w}' for w in ('here', 'there')] for i in range(n)}

def load_dls(path, **kw):
    "DataLoaders of a folder, in this process, every word known"
    return CaptionDataLoaders.from_flickr8k(path, **{**dict(size=96, min_freq=1, bs=16, num_workers=0, seed=1), **kw})

LEARNERS = None # set for each session by `conftest.py`
def new_path(): return mkdtemp(dir=LEARNERS)

def tiny_learner(dls, weights='SHAPES', arch='shapes_cnn', **kw):
    "A learner small enough for a test"
    return caption_learner(dls, arch, weights, **{**dict(emb_sz=16, attn_sz=16, n_hid=32, p=0., metrics=[], path=new_path()), **kw})

def fit(learn, *args, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(*args, **kw)
    return learn

def tensors(module): return {k: v.detach().cpu().clone() for k,v in module.state_dict().items()}
def changed(before, after): return {k for k in before if not torch.equal(before[k], after[k])}

def check_message(message, *parts):
    "One line that holds all `parts`"
    message = str(message)
    assert message and '\n' not in message and 'Traceback' not in message
    for p in parts: assert str(p) in message, f'{p!r} is not in {message!r}'

def fails(error, f, *parts):
    "`f()` raises `error` with a message of one line that holds `parts`"
    with pytest.raises(error) as e: f()
    check_message(e.value, *parts)

def warns(f, *parts):
    "What `f()` gives, and its warnings of pictures that are left out, each a line; together they hold `parts`"
    with pytest.warns(UserWarning, match='left out') as found: res = f()
    said = [m for w in found if 'left out' in (m := str(w.message))]
    for m in said: check_message(m)
    for p in parts: assert any(str(p) in m for m in said)
    return res,said

def command_fails(command, argv, *parts):
    "The command ends with one line that starts with its name and holds `parts`"
    with pytest.raises(SystemExit) as e: command([str(o) for o in argv])
    assert str(e.value.code).startswith(f'{command.__name__}: ')
    check_message(e.value.code, *parts)

@contextmanager
def server(app, seconds=20.): # after which an idle connection is closed
    "The web demo on a free port; gives its address"
    import uvicorn
    from caption_fastai.serve import _protocol
    sock = socket.create_server(('127.0.0.1', 0))
    s = uvicorn.Server(uvicorn.Config(app, http=_protocol(seconds), ws='none', log_level='error'))
    thread = threading.Thread(target=s.run, args=([sock],)); thread.start()
    while not s.started: time.sleep(0.01)
    try: yield sock.getsockname()
    finally: s.should_exit = True; thread.join(10)
