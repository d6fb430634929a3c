"Properties that hold for any input, tried on what hypothesis makes up: 100 cases each, and 2,000 in the long tests"
import itertools, json, math, os, shutil, signal, warnings
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np, pandas as pd, pytest, torch
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from torch.nn.utils.rnn import pad_sequence

from caption_fastai.captions import SPLITS, from_table, read_captions, read_folder
from caption_fastai.check import check_captions
from caption_fastai.data import PadCaptions, SortishSampler, TensorCaption
from caption_fastai.decoder import Packing, State, targets
from caption_fastai.metrics import CiderReward, bleu, score_captions
from caption_fastai.search import beam_search, greedy_search, sample_captions
from caption_fastai.text import SPECIALS, Vocab, build_vocab, cap_lens, load_vocab, save_vocab, tokenize
from helpers import SPLIT_FILES, picture

@pytest.fixture(scope='session', autouse=True)
def no_files(tmp_path_factory): set_hypothesis_home_dir(tmp_path_factory.mktemp('hypothesis'))

class Hung(BaseException): "No Exception, so that hypothesis does not try the case again"

@contextmanager
def at_most(seconds):
    "`Hung` inside the block after so many seconds, if Python comes to it"
    def stop(*args): raise Hung(f'more than {seconds} s')
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally: signal.setitimer(signal.ITIMER_REAL, 0); signal.signal(signal.SIGALRM, before)

def cases(*examples, **given_by):
    "A test with 100 cases, the same each time, and a long one with 2,000 new ones; one that takes 10 s has hung, and is stopped after 60"
    common = dict(deadline=timedelta(seconds=10), database=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    def tests(f):
        @wraps(f)
        def stopped(*args, **kw):
            with at_most(60): f(*args, **kw)
        def made(n, **kw):
            test = given(**given_by)(stopped)
            for e in examples: test = example(**e)(test)
            return settings(max_examples=n, **common, **kw)(test)
        globals()[f'{f.__name__}_long'] = pytest.mark.long(made(2000))
        return made(100, derandomize=True)
    return tests

# Text as people and broken programs write it
pieces = ['a', 'dog', 'Dogs', "dog's", "can't", 'cannot', 'gonna', '1.5', '#0', '0.jpg', '9.jpg', '.', ',', '"', "''", '``', '-', '...', '_', '\t', '\ufeff', '\x00', '\u2028',
          '\x85', '’', 'é', 'Ã©', 'ß', 'İ', '犬', '\u200d', '\U0001f436', '&amp;', '<b>', *SPECIALS]
texts = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(pieces), max_size=12).map(' '.join), st.lists(st.sampled_from(pieces), max_size=12).map(''.join))
words = st.lists(st.sampled_from('a dog cat runs sees big red two on grass'.split()), min_size=1, max_size=8).map(' '.join)

def test_a_case_that_hangs():
    with pytest.raises(Hung), at_most(0.1):
        while True: pass

# Readers

@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    "Two pictures; each case writes its own caption file beside them"
    d = tmp_path_factory.mktemp('readers')
    for i in range(2): picture(d/f'{i}.jpg', seed=i)
    return d

def ours(f, *args, **kw):
    "What `f` gives, None where it raises an error of the input, in a line"
    try: return f(*args, **kw)
    except (ValueError, OSError) as e:
        assert isinstance(e, OSError) or type(e) is ValueError, f'{type(e).__name__} came through: {e}'
        assert str(e) and '\n' not in str(e), f'not a line: {e}'

def in_order(t):
    "Is `t` what a reader promises?"
    assert len(t) and list(t) == ['image', 'caption', 'split'] and set(t.split) <= set(SPLITS)
    assert all(Path(p).is_file() for p in t.image) and all(c == c.strip() and c for c in t.caption)
    assert (t.groupby('image').split.nunique() == 1).all()

def check_data(data, read=read_captions, *args):
    "Reading `data`, with and without the doctor, gives a table that is in order or an error of ours"
    for skip_missing in (False, True):
        if (t := ours(read, data, *args, skip_missing=skip_missing)) is not None: in_order(t)
    report = ours(check_captions, data, *args, workers=1)
    if report is not None: json.dumps(report.to_dict()), repr(report)
    assert t is None or report is not None, 'the doctor cannot read what the reader can'
    if report is not None and report.ok: assert 'train' in set(read(data, *args).split)

def check_reading(file, raw):
    "`check_data` of a file of the bytes `raw`"
    file.write_bytes(raw)
    try: check_data(file)
    finally: file.unlink()

token_lines = st.one_of(texts, st.tuples(st.sampled_from(['0.jpg#0', '1.jpg', '0.jpg#x', '2.jpg#0', '/', '..', '', '#1']), texts).map('\t'.join))
newline = st.sampled_from(['\n', '\r\n', '\r', '\n\n'])

@cases(lines=st.lists(token_lines, max_size=6), nl=newline)
def test_token_file(folder, lines, nl): check_reading(folder/'Flickr8k.token.txt', nl.join(lines).encode('utf-8', 'surrogatepass'))

@cases(raw=st.binary(max_size=80), name=st.sampled_from(['Flickr8k.token.txt', 'captions.txt', 'c.csv', 'dataset_x.json']))
def test_any_bytes(folder, raw, name): check_reading(folder/name, raw)

csv_fields = st.one_of(texts, texts.map(lambda t: '"' + t.replace('"', '""') + '"'), st.sampled_from(['0.jpg', '1.jpg', 'train', 'val', 'test', '"', '']))

@cases(dict(header='', rows=['"a\nb",c'], nl='\n'), header=st.sampled_from(['image,caption', 'image,caption,split', '\ufeffimage,caption', 'image,image,caption', 'caption', 'image,caption,', '']),
       rows=st.lists(st.lists(csv_fields, min_size=1, max_size=4).map(','.join), max_size=5), nl=newline)
def test_csv(folder, header, rows, nl): check_reading(folder/'c.csv', nl.join([header, *rows]).encode('utf-8', 'surrogatepass'))

values = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.floats(), texts, st.sampled_from(['0.jpg', '1.jpg', 'train', 'restval'])),
                      lambda v: st.lists(v, max_size=3), max_leaves=4)
def record(**kw): return st.fixed_dictionaries({}, optional={k: st.one_of(v, v, v, values) for k,v in kw.items()})
names = st.sampled_from(['0.jpg', '1.jpg', '2.jpg'])
karpathy = record(images=st.lists(record(filename=names, filepath=st.sampled_from(['', 'a']), split=st.sampled_from(['train', 'val', 'restval', 'x']),
                                         sentences=st.lists(record(raw=texts), max_size=3)), max_size=3))
coco = record(images=st.lists(record(id=st.integers(0, 3), file_name=names), max_size=3),
              annotations=st.lists(record(id=st.integers(0, 3), image_id=st.integers(0, 3), caption=texts), max_size=4))

@cases(dict(d=dict(images=[], annotations=['\n']), name='captions.json'), dict(d=dict(images=[], annotations=[dict(id='\n', image_id=0, caption='a')]), name='captions.json'),
       d=st.one_of(karpathy, coco, values), name=st.sampled_from(['dataset_x.json', 'captions_val2017.json', 'captions.json']))
def test_json(folder, d, name): check_reading(folder/name, json.dumps(d).encode())

@cases(d=karpathy | coco, cut=st.integers(0, 300))
def test_json_cut_short(folder, d, cut): check_reading(folder/'dataset_x.json', json.dumps(d).encode()[:cut])

file_names = st.one_of(st.sampled_from(['0.jpg', '1.jpg', '0.png', '1.JPG', '0.txt', '1.txt', '0.TXT', '.txt', '.jpg', '0.jpg.txt', 'captions.txt', 'x.csv', 'Images']),
                       st.tuples(texts, st.sampled_from(['.jpg', '.txt', '.tif', ''])).map(''.join))

def can_be_there(name):
    "Can a file be called so? Line breaks are left out: messages give names as they are"
    try: return os.fsencode(name)[:256] == os.fsencode(name) and not {*'/\0\n'} & set(name) and name not in ('', '.', '..')
    except UnicodeEncodeError: return False

@cases(files=st.dictionaries(file_names.filter(can_be_there), st.one_of(st.none(), st.none(), texts, st.lists(texts, max_size=3).map('\n'.join), st.binary(max_size=20), st.just([])), max_size=6))
def test_folder(folder, files):
    "A folder of pictures, texts and folders under any names"
    with TemporaryDirectory() as d:
        for n,what in files.items():
            if what is None: shutil.copy(folder/'0.jpg', f'{d}/{n}')
            elif what == []: os.mkdir(f'{d}/{n}')
            else: Path(d, n).write_bytes(what.encode('utf-8', 'surrogatepass') if isinstance(what, str) else what)
        for read in (read_captions, read_folder):
            for skip_missing in (False, True):
                if (t := ours(read, d, skip_missing=skip_missing)) is not None: in_order(t)
        check_data(Path(d))

split_lines = st.lists(st.one_of(st.sampled_from(['0.jpg', '1.jpg', '0.jpg', '1.jpg', '2.jpg', '0.jpg#0', ' 0.jpg ', '/', '..', 'a/0.jpg']), texts), max_size=4)

@cases(splits=st.dictionaries(st.sampled_from([*SPLIT_FILES.values()]), st.tuples(split_lines, newline).map(lambda o: o[1].join(o[0]).encode('utf-8', 'surrogatepass')) | st.binary(max_size=20)),
       captions=st.sampled_from(['Flickr8k.token.txt', 'captions.txt']))
def test_split_files(folder, splits, captions):
    "Flickr8k's lists of images beside two captions"
    for n,raw in splits.items(): (folder/n).write_bytes(raw)
    try: check_reading(folder/captions, b'0.jpg#0\ta dog runs here\n1.jpg#0\ta cat sits here\n' if 'token' in captions else b'image,caption\n0.jpg,a dog runs here\n1.jpg,a cat sits here\n')
    finally:
        for n in splits: (folder/n).unlink()

cells = st.one_of(texts, st.sampled_from(['0.jpg', '1.jpg', '2.jpg', 'train', 'val', '']), st.none(), st.just(pd.NA), st.just(pd.NaT), st.floats(), st.integers(), st.booleans(), st.binary(max_size=4),
                  st.just(Path('0.jpg')), st.lists(texts | st.none(), max_size=3), st.lists(texts, max_size=2).map(tuple), st.lists(texts, max_size=2).map(np.array), st.dictionaries(texts, texts, max_size=2), st.sets(texts, max_size=2))
def column(usual): return st.lists(st.one_of(usual, usual, usual, cells), min_size=4, max_size=4)
pictures = st.sampled_from(['0.jpg', '1.jpg'])
def table(columns, n, labels, more):
    df = pd.DataFrame({k: pd.Series(v[:n], dtype=object) for k,v in columns.items()})
    if labels: df.index = labels[:n]
    return pd.concat([df, df[df.columns[:1]]], axis=1) if more else df

@cases(df=st.builds(table, st.fixed_dictionaries(dict(image=column(pictures)), optional=dict(caption=column(words), split=column(st.sampled_from(['train', 'dev', 'test', None])), other=column(cells))),
                    st.integers(0, 4), st.one_of(st.none(), st.just([0, 0, 1, 1]), st.lists(st.floats() | words, min_size=4, max_size=4)), st.booleans()))
def test_table(folder, df): check_data(df, from_table, folder)

@cases(df=st.builds(table, st.fixed_dictionaries({0: column(pictures), ('a', None): column(words)}, optional={'split': column(st.sampled_from(['train', 'dev', 'test', None]))}), st.integers(0, 4), st.none(), st.just(False)),
       cols=st.lists(st.sampled_from([0, ('a', None), 'split', 'x', None]), min_size=3, max_size=3), valid_pct=st.floats(), test_pct=st.floats(), seed=st.integers(-1, 2**33))
def test_arguments_of_a_table(folder, df, cols, valid_pct, test_pct, seed):
    "Any columns, any shares"
    if (t := ours(from_table, df, folder, *cols, True, valid_pct, test_pct, seed)) is not None: in_order(t)

def written(name, text):
    Path(name).write_text(text)
    return read_captions(name)

def as_json(of, **more): return json.dumps(dict(images=[dict(id=i, file_name=n, filename=n, sentences=[dict(raw=c) for c in cs]) for i,(n,cs) in enumerate(of.items())], **more))

def as_texts(d, of):
    for n,cs in of.items(): (d/n).with_suffix('.txt').write_text('\n'.join(cs))
    return read_folder(d)

FORMS = dict( # each reads captions, pairs of a picture and its caption, that it has written into folder `d`; `of` has those of each picture
    token=lambda d, caps, of: written(d/'Flickr8k.token.txt', ''.join(f'{n}#{i}\t{c}\n' for i,(n,c) in enumerate(caps))),
    csv=lambda d, caps, of: written(d/'c.csv', '\n'.join(['image,caption', *map(','.join, caps)])),
    karpathy=lambda d, caps, of: written(d/'dataset_x.json', as_json(of)),
    coco=lambda d, caps, of: written(d/'x.json', as_json(of, annotations=[dict(id=j, image_id=[*of].index(n), caption=c) for j,(n,c) in enumerate(caps)])),
    rows=lambda d, caps, of: from_table(pd.DataFrame(caps, columns=['image', 'caption']), d),
    lists=lambda d, caps, of: from_table(pd.DataFrame(dict(image=of.keys(), caption=of.values())), d),
    folder=lambda d, caps, of: as_texts(d, of))

@cases(rest=st.lists(st.tuples(pictures, words), max_size=6), form=st.sampled_from([*FORMS]))
def test_nothing_is_lost(folder, rest, form):
    "Every caption comes back, under its image and in its order, whatever it is read from"
    caps = [('0.jpg', 'a dog'), ('1.jpg', 'a cat'), *rest]
    of = {n: [c for m,c in caps if m == n] for n in dict(caps)}
    with TemporaryDirectory() as d:
        for n in of: shutil.copy(folder/n, d)
        t = FORMS[form](Path(d), caps, of)
    for n in of: assert [c for i,c in zip(t.image, t.caption) if Path(i).name == n] == of[n]

# Words

@cases(dict(text='a xxeos dog xxpad', lower=True, punct=False), text=texts, lower=st.booleans(), punct=st.booleans())
def test_vocab_round_trip(text, lower, punct):
    "Ids of known words are these words; special tokens are never words of a caption; the order holds"
    toks = tokenize(text, lower, punct)
    assert all(toks) and all(t == t.strip() for t in toks)
    vocab = Vocab(list(dict.fromkeys(t for t in toks if t not in SPECIALS)), lower=lower, punct=punct)
    ids = vocab.encode(text)
    assert len(ids) == len(toks) + 2 and ids[0] == vocab.bos_idx and ids[-1] == vocab.eos_idx
    assert not {vocab.bos_idx, vocab.eos_idx, vocab.pad_idx} & set(ids[1:-1])
    assert vocab.words(ids) == [t if t not in SPECIALS else 'xxunk' for t in toks]
    assert vocab.encode(text, 3) == [*ids[:-1][:4], vocab.eos_idx]
    assert isinstance(vocab.decode(ids), str)

@cases(caps=st.lists(texts | st.just('a dog' + 's'*99), max_size=6), min_freq=st.integers(1, 3), max_vocab=st.integers(0, 12))
def test_build_vocab(folder, caps, min_freq, max_vocab):
    "It is no larger than it may be, holds what is frequent enough, and can be kept"
    vocab = ours(build_vocab, caps, min_freq, max_vocab)
    if vocab is None: return
    toks = [t for c in caps for t in tokenize(c)]
    assert len(vocab) <= max(max_vocab, 4) and all(toks.count(w) >= min_freq for w in vocab.itos[4:])
    save_vocab(vocab, folder/'vocab')
    assert load_vocab(folder/'vocab') == vocab

@cases(toks=st.lists(texts.filter(bool), unique=True, max_size=6), lower=st.booleans())
def test_saved_vocab(folder, toks, lower):
    "A vocabulary comes back from its file as it was"
    toks = list(dict.fromkeys(w for t in toks for w in tokenize(t, lower) if w not in SPECIALS))
    save_vocab(Vocab(toks, lower), folder/'vocab')
    assert load_vocab(folder/'vocab') == Vocab(toks, lower)

@cases(raw=st.binary(max_size=60) | values.map(lambda v: json.dumps(dict(lower=True, punct=False, words=v)).encode()))
def test_any_vocab_file(folder, raw):
    (folder/'vocab').write_bytes(raw)
    ours(load_vocab, folder/'vocab')

# Batches

captions = st.lists(st.integers(1, 9), max_size=6).map(lambda ws: [2, *[w if w > 3 else 1 for w in ws], 3])

def padded(rows): return pad_sequence([torch.tensor(r) for r in rows], batch_first=True)

@cases(caps=st.lists(captions, min_size=1, max_size=6))
def test_pad(caps):
    "Each caption with `PAD` behind it, as long as the longest; decoding one gives it back"
    batch = PadCaptions()([(0, TensorCaption(c)) for c in caps])
    assert {len(c) for _,c in batch} == {max(map(len, caps))}
    for (_,p),c in zip(batch, caps): assert p.tolist() == c + [0]*(len(p) - len(c)) and int(cap_lens(p)) == len(c)
    for o,c in zip(batch, caps): assert PadCaptions().decode(o)[1].tolist() == c

@cases(groups=st.lists(st.lists(captions, min_size=1, max_size=3), min_size=1, max_size=4))
def test_pad_grouped(groups):
    batch = PadCaptions()([(0, TensorCaption(padded(g))) for g in groups])
    assert len({p.shape for _,p in batch}) == 1
    for (_,p),g in zip(batch, groups): assert [r[r != 0].tolist() for r in p] == g + [[]]*(len(p) - len(g))

@cases(groups=st.lists(st.lists(captions, min_size=1, max_size=3), min_size=1, max_size=4), nf=st.integers(1, 3))
def test_packing(groups, nf):
    "What is packed comes back to its place, and nothing else does; the words that go on are always the first"
    k = max(map(len, groups))
    caps = torch.stack([torch.stack([torch.tensor((c + [0]*9)[:9]) for c in g + [[]]*(k - len(g))]) for g in groups])   # (bs,k,9)
    packing,shape = Packing(cap_lens(caps)),caps[...,1:].shape
    packed = packing.pack(caps[...,1:])
    assert len(packed) == sum(len(c) - 1 for g in groups for c in g) == sum(packing.sizes) and (packed != 0).all()
    assert packing.sizes == sorted(packing.sizes, reverse=True) and torch.equal(packed, targets(caps))
    assert torch.equal(packing.unpack(packed, shape), caps[...,1:])
    x = torch.randn(len(packed), nf)
    out = packing.unpack(x, shape)
    assert torch.equal((out != 0).any(-1), caps[...,1:] != 0) and math.isclose(out.sum(), x.sum(), abs_tol=1e-4)

@cases(lens=st.lists(st.integers(2, 30), min_size=1, max_size=120), bs=st.integers(1, 9), seed=st.integers(0, 99), shuffle=st.booleans())
def test_sampler(lens, bs, seed, shuffle):
    "No item is lost or doubled; a seed and an epoch give one order; without shuffling the longest come first"
    def order(epoch):
        dl = SortishSampler(lens, bs=bs, shuffle=shuffle, num_workers=0, drop_last=False, res=lens, val_res=lens)
        dl.seed,dl.epoch = seed,epoch
        return list(map(int, dl.get_idxs())),[b.tolist() for b in dl]
    idxs,batches = order(1)
    assert sorted(idxs) == list(range(len(lens))) and (idxs, batches) == order(1)
    assert sorted(l for b in batches for l in b) == sorted(lens) and len(batches) == math.ceil(len(lens)/bs)
    if not shuffle: assert [lens[i] for i in idxs] == sorted(lens, reverse=True)

# Search

class Chain:
    "A decoder whose next word depends on the last one alone"
    def __init__(self, seed, bs, K, sharp): self.table = torch.randn(bs, K, K, generator=torch.Generator().manual_seed(seed))*sharp
    @property
    def state(self): return State((torch.zeros(len(self.table), 1),), (self.table,))
    def step(self, ids, state):
        table = state.image[0]
        img = torch.arange(len(table)).repeat_interleave(len(ids)//len(table))
        return table[img, ids].clone(),state,torch.ones(len(ids), 2)/2
    def log_p(self, i, ids):
        "Log probability of a caption of image `i`"
        logp,last = 0.,Vocab.bos_idx
        for w in ids: logp,last = logp + float(self.table[i, last].log_softmax(-1)[w]),w
        return logp

def check_hypothesis(h, max_len):
    assert 1 <= len(h.ids) <= max_len and h.ids[0] != Vocab.eos_idx and Vocab.eos_idx not in h.ids[:-1]
    assert not {Vocab.pad_idx, Vocab.bos_idx, Vocab.unk_idx} & set(h.ids) and len(h.alphas) == len(h.ids)

chains = dict(seed=st.integers(0, 10**6), bs=st.integers(1, 4), K=st.integers(5, 9), sharp=st.sampled_from([0., .1, 1., 5., 30.]), max_len=st.integers(1, 7))

@cases(beam_sz=st.integers(1, 5), n_best=st.integers(1, 5), length_penalty=st.sampled_from([0., .5, 1., 2.]), **chains)
def test_beam(seed, bs, K, sharp, max_len, beam_sz, n_best, length_penalty):
    "Captions are well formed, differ, come best first and have the score that their words give; images do not touch each other; a beam of 1 is greedy"
    assume(n_best <= beam_sz)
    c = Chain(seed, bs, K, sharp)
    found = beam_search(c.step, c.state, beam_sz, max_len, length_penalty, n_best)
    assert len(found) == bs
    for i,hyps in enumerate(found):
        assert 1 <= len(hyps) <= n_best and len({tuple(h.ids) for h in hyps}) == len(hyps)
        assert [h.score for h in hyps] == sorted((h.score for h in hyps), reverse=True)
        for h in hyps:
            check_hypothesis(h, max_len)
            assert math.isclose(h.score, c.log_p(i, h.ids)/len(h.ids)**length_penalty, rel_tol=1e-4, abs_tol=1e-4)
        alone = State((torch.zeros(1, 1),), (c.table[i:i+1],))
        assert [h.ids for h in beam_search(c.step, alone, beam_sz, max_len, length_penalty, n_best)[0]] == [h.ids for h in hyps]
    greedy = greedy_search(c.step, c.state, max_len)
    for h in greedy: check_hypothesis(h, max_len)
    if beam_sz == 1 and sharp: assert [h.ids for h in greedy] == [hs[0].ids for hs in found]

@cases(seed=st.integers(0, 10**6), sharp=st.sampled_from([.1, 1., 5.]), max_len=st.integers(1, 3), length_penalty=st.sampled_from([0., 1.]))
def test_wide_beam(seed, sharp, max_len, length_penalty):
    "A beam that holds every caption of two words and an end finds the best of all"
    c,end = Chain(seed, 1, 6, sharp),Vocab.eos_idx
    every = [ws + (end,) for n in range(1, max_len) for ws in itertools.product((4, 5), repeat=n)] + list(itertools.product((4, 5), repeat=max_len))
    best = max(c.log_p(0, ids)/len(ids)**length_penalty for ids in every)
    h = beam_search(c.step, c.state, 6, max_len, length_penalty)[0][0]
    assert math.isclose(h.score, best, rel_tol=1e-4, abs_tol=1e-4)

@cases(k=st.integers(1, 3), **chains)
def test_sampled(seed, bs, K, sharp, max_len, k):
    "Drawn captions begin with `BOS`, end once, and hold only words"
    torch.manual_seed(seed)
    c = Chain(seed, bs, K, sharp)
    for ids in sample_captions(c.step, c.state, k, max_len).flatten(0, 1).tolist():
        ids = ids[:ids.index(Vocab.eos_idx) + 1] if (ended := Vocab.eos_idx in ids) else ids
        assert ids[0] == Vocab.bos_idx and 2 <= len(ids) <= max_len + 1
        assert not {Vocab.pad_idx, Vocab.bos_idx, Vocab.unk_idx} & set(ids[1:]) and (ended or len(ids) == max_len + 1)

# Scores

pairs = st.lists(st.tuples(texts | words, st.lists(texts | words, min_size=1, max_size=3)), min_size=1, max_size=5)

def scores(pairs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # of captions that are empty or all alike
        return ours(score_captions, {i: h for i,(h,_) in enumerate(pairs)}, {i: r for i,(_,r) in enumerate(pairs)}, measures=('bleu', 'cider', 'rouge_l'), n_boot=5)

@cases(pairs=pairs, order=st.randoms(use_true_random=False))
def test_scores(pairs, order):
    "Scores are numbers within their bounds; neither the order of images nor that of references changes them"
    if (s := scores(pairs)) is None: assert not all(any(map(tokenize, rs)) for _,rs in pairs); return
    for k,top in dict(bleu1=100, bleu2=100, bleu3=100, bleu4=100, rouge_l=100, cider=1000, distinct=1).items(): assert 0 <= s[k] <= top + 1e-6, (k, s[k])
    for lo,hi in s['intervals'].values(): assert lo <= hi
    other = [(h, order.sample(rs, len(rs))) for h,rs in order.sample(pairs, len(pairs))]
    t = scores(other)
    for k in ('bleu1', 'bleu4', 'cider', 'rouge_l', 'mean_length', 'length_ratio', 'distinct', 'n_words', 'empty'): assert math.isclose(s[k], t[k], rel_tol=1e-9, abs_tol=1e-6), k

@cases(caps=st.lists(words, min_size=1, max_size=4))
def test_perfect_score(caps):
    "A reference as caption is perfect, up to the longest n-grams that there are"
    n = min(4, max(len(c.split()) for c in caps))
    assert all(math.isclose(b, 100) for b in bleu(caps, [[c, 'another one'] for c in caps])[:n])

ids = st.lists(st.integers(4, 9), max_size=6)

@cases(refs=st.lists(st.lists(ids, min_size=1, max_size=3), min_size=1, max_size=4), hyps=st.lists(ids, min_size=1, max_size=3))
def test_reward(refs, hyps):
    reward = CiderReward(refs)
    for rs in refs: assert all(0 <= r <= 10 + 1e-9 for r in reward(hyps, rs))
