"Scores: agreement with the COCO code, METEOR with and without Java, files of captions that do not fit"
import json, random, shutil, subprocess, warnings
from inspect import getfile
from pathlib import Path

import numpy as np, pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from caption_fastai import metrics
from caption_fastai.callbacks import BleuMetric
from caption_fastai.metrics import compare, evaluate, read_scored, score_captions, write_scored
from caption_fastai.text import Vocab, tokenize
from helpers import fails

_java = shutil.which('java') and subprocess.run(['java', '-version'], capture_output=True).returncode == 0
HARD = ["A man's dog doesn't run.", "Two-year-old girl in a T-shirt", 'He said "hello" to her', "The children can't see it, they're asleep", "5,000 people at 8:30", 
        "I 'm gonna go", "a boy...a girl", "dogs' toys", "half-pipe; snow -- and ice"]
WORDS = "a dog two cats man's red runs on the grass ball sits with his well-known hat , and ! The".split()

def made_up(n, k=5, seed=0):
    "Captions and `k` references each; most words of a caption are those of a reference"
    rng = random.Random(seed)
    def sentence(): return ' '.join(rng.choices(WORDS, k=rng.randint(4, 14))) + rng.choice(['', '.', ' .'])
    refs = {f'{i}.jpg': [sentence() for _ in range(k)] for i in range(n)}
    return {i: ' '.join(w if rng.random() < 0.8 else 'thing' for w in rng.choice(r).split()[:12]) for i,r in refs.items()},refs

def write(fname, hyps, refs):
    write_scored(fname, hyps, refs)
    return fname

def test_agrees_with_the_code_of_coco():
    "On the same words, 1,000 pictures with five references each"
    hyps,refs = made_up(1000)
    hyps['7.jpg'] = ''
    with pytest.warns(UserWarning, match='7.jpg'): mine = score_captions(hyps, refs, measures=['bleu', 'cider', 'rouge_l'], n_boot=0)
    assert mine['empty'] == 1
    res,gts = ({i: [' '.join(tokenize(t)) for t in ts] for i,ts in o.items()} for o in ({i: [h] for i,h in hyps.items()}, refs))
    theirs = [*Bleu(4).compute_score(gts, res, verbose=0)[0], *(m.compute_score(gts, res)[0] for m in (Cider(), Rouge()))]
    for k,v in zip('bleu1 bleu2 bleu3 bleu4 cider rouge_l'.split(), theirs): assert mine[k] == pytest.approx(100*v, abs=1e-4), k

def test_interval_is_that_of_drawn_pictures():
    "BLEU of a sample of pictures is BLEU of the captions in it"
    hyps,refs = made_up(30)
    counts = metrics._Counts(list(hyps.values()), list(refs.values()), ['bleu'])
    draws = metrics._draws(30, 3)
    assert (draws.sum(1) == 30).all() and (draws[0] == 1).all() and (draws[1] != 1).any()
    names = [i for i,n in zip(hyps, draws[2]) for _ in range(n)]
    sample = metrics.bleu([hyps[i] for i in names], [refs[i] for i in names])
    assert counts.scores(draws)['bleu4'][2] == pytest.approx(sample[3])

def test_intervals_of_shares():
    "Lengths, new captions and top-5 accuracy have an interval that holds the whole sample's; those of one and the same caption have none to each side"
    hyps,refs = made_up(60)
    s = score_captions(hyps, refs, measures=['bleu'], known=list(hyps.values())[:20], top5={i: (n % 3, 3) for n,i in enumerate(hyps)})
    assert s['new'] == pytest.approx(40/60) and s['top5_accuracy'] == pytest.approx(1/3)
    for k in 'mean_length','length_ratio','new','top5_accuracy': assert s['intervals'][k][0] < s[k] < s['intervals'][k][1], k
    low,high = s['intervals']['new']
    assert high - low == pytest.approx(2*1.96*(2/9/60)**.5, rel=0.2)   # as that of a share
    assert s['ref_length'] == np.mean([len(tokenize(t)) for ts in refs.values() for t in ts])
    with pytest.warns(UserWarning, match='different'): same = score_captions(dict.fromkeys(hyps, 'a dog'), refs, measures=['bleu'])
    assert same['intervals']['mean_length'] == (2, 2)

@pytest.mark.skipif(not _java, reason='there is no Java here')
def test_words_are_those_of_the_code_of_coco(tmp_path):
    "Of sentences that tokenisers differ on; signs as & and full stops of abbreviations it keeps, see `tokenize`"
    jar = Path(getfile(Rouge)).parents[1]/'tokenizer/stanford-corenlp-3.4.1.jar'
    (tmp_path/'in.txt').write_text('\n'.join(HARD) + '\n')
    out = subprocess.run(['java', '-cp', jar, 'edu.stanford.nlp.process.PTBTokenizer', '-preserveLines', '-lowerCase', tmp_path/'in.txt'], capture_output=True, text=True, check=True).stdout
    left_out = {"''", "'", '``', '`', '.', '?', '!', ',', ':', '-', '--', '...', ';'}   # as `PTBTokenizer` of pycocoevalcap leaves them out
    theirs = [[w for w in line.split() if w not in left_out] for line in out.splitlines()]
    assert [tokenize(h) for h in HARD] == theirs

def test_an_empty_caption_scores_nothing():
    "Also where a reference is nothing but punctuation"
    refs = {'a': ['...', 'a cat'], 'b': ['a dog runs']}
    with pytest.warns(UserWarning, match='^a has an empty caption'): s = score_captions({'a': '', 'b': 'a dog runs'}, refs, n_boot=0)
    with pytest.warns(UserWarning, match='a and 1 more have an empty caption'): none = score_captions({'a': '', 'b': '!'}, refs, n_boot=0)
    assert s['rouge_l'] == pytest.approx(50) and none['empty'] == 2
    assert not any(none[k] for k in ('bleu1', 'bleu4', 'cider', 'rouge_l', 'meteor'))

def test_same_caption_for_all_is_told_of():
    hyps,refs = made_up(40)
    with pytest.warns(UserWarning, match='only 2.5% of 40 captions are different'): s = score_captions(dict.fromkeys(hyps, 'a dog'), refs, measures=['bleu'])
    assert s['distinct'] == 1/40

def test_what_does_not_fit():
    hyps,refs = made_up(3)
    fails(ValueError, lambda: score_captions({}, refs), 'no captions')
    fails(ValueError, lambda: score_captions(hyps, {**refs, '9.jpg': ['a']}), 'hyps', '9.jpg has no caption')
    for none in [],['', '!']: fails(ValueError, lambda r=none: score_captions(hyps, {**refs, '1.jpg': r}), 'refs: 1.jpg has no reference with a word')
    fails(ValueError, lambda: score_captions(hyps, refs, measures=['spice']), 'spice', 'rouge_l')
    fails(ValueError, lambda: score_captions(hyps, {**refs, '1.jpg': 'a dog'}), 'refs', '1.jpg', "'a dog'", 'list')
    fails(ValueError, lambda: score_captions({**hyps, '1.jpg': None}, refs), 'hyps', '1.jpg', 'None')
    fails(ValueError, lambda: score_captions(hyps, refs, n_boot=-1), 'n_boot=-1')
    fails(ValueError, lambda: score_captions(hyps, refs, top5={'0.jpg': (1, 2)}), 'top5: 1.jpg and 1 more have no counts')
    fails(ValueError, lambda: evaluate(None, Vocab([]), None, {**refs, '1.jpg': []}), 'refs: 1.jpg has no reference')   # before anything is captioned

@pytest.fixture
def no_meteor_yet():
    metrics._meteor_program.cache_clear()
    yield
    metrics._meteor_program.cache_clear()

def test_meteor_without_java(monkeypatch, tmp_path, no_meteor_yet):
    "Where Java is missing or broken, all other scores are there, and the signature says what is left out"
    hyps,refs = made_up(30)
    monkeypatch.setenv('PATH', str(tmp_path))
    s = score_captions(hyps, refs)
    assert s['meteor'] is None and 'METEOR left out, Java was not found' in s['signature'] and s['cider'] > 0
    (tmp_path/'java').write_text('#!/bin/sh\nexit 1\n'); (tmp_path/'java').chmod(0o755)
    s = score_captions(hyps, refs)
    assert s['meteor'] is None and 'METEOR left out, Java does not run' in s['signature']
    (tmp_path/'java').write_bytes(b'\x7fELF, but of another machine')
    s = score_captions(hyps, refs)
    assert s['meteor'] is None and 'METEOR left out, Java does not run' in s['signature']
    (tmp_path/'java').write_text('#!/bin/sh\ncase "$1" in -version) exit 0;; esac\nread line; exit 1\n')
    s = score_captions(hyps, refs)
    assert s['meteor'] is None and 'METEOR left out, its program broke off' in s['signature']
    monkeypatch.setattr(metrics, '_patience', 0.5)
    for silent,why in (('-x', 'its program broke off'), ('-version', 'Java does not run')):   # as is one that says nothing
        (tmp_path/'java').write_text(f'#!/bin/sh\n[ "$1" = -version ] && [ "$1" != {silent} ] && exit 0\nexec /bin/sleep 60\n')
        assert f'METEOR left out, {why}' in score_captions(hyps, refs, measures=['meteor'])['signature']
    (tmp_path/'java').unlink()
    fails(ValueError, lambda: BleuMetric(measure='meteor'), "measure='meteor'", 'Java was not found')

@pytest.mark.skipif(not _java, reason='there is no Java here')
def test_meteor(no_meteor_yet):
    "A caption that is its reference scores, one without a common word does not, and asking twice gives the same"
    s = score_captions({'a': 'a dog runs over the grass', 'b': 'xylophone'}, {'a': ['A dog runs over the grass.'], 'b': ['two cats sleep']}, measures=['meteor'])
    assert 0 < s['meteor'] < 100 and 'meteor by pycocoevalcap' in s['signature']
    hyps,refs = made_up(20)
    assert score_captions(hyps, refs, measures=['meteor'])['meteor'] == score_captions(hyps, refs, measures=['meteor'])['meteor']

def test_compare_files(tmp_path):
    hyps,refs = made_up(100)
    a = write(tmp_path/'a.json', hyps, refs)
    b = write(tmp_path/'b.json', {i: refs[i][0] if n % 2 else h for n,(i,h) in enumerate(hyps.items())}, refs)
    t = compare(a, b)
    assert list(t.index) == 'bleu1 bleu2 bleu3 bleu4 cider rouge_l'.split()
    assert (t.difference == t.b - t.a).all() and (t.low > 0).all() and (t.p < 0.05).all()
    back = compare(b, a)
    assert np.allclose(back.difference, -t.difference) and (back.high < 0).all()
    shuffled = write(tmp_path/'c.json', dict(reversed(hyps.items())), refs)   # another order of the same captions is no difference
    assert (compare(a, shuffled).difference == 0).all() and (compare(a, shuffled).p == 1).all()

def test_files_that_cannot_be_compared(tmp_path):
    hyps,refs = made_up(3)
    a = write(tmp_path/'a.json', hyps, refs)
    fails(FileNotFoundError, lambda: read_scored(tmp_path/'none.json'), 'none.json', 'caption_evaluate --out')
    b = write(tmp_path/'b.json', {i: h for i,h in hyps.items() if i != '2.jpg'}, refs)
    fails(ValueError, lambda: compare(a, b), 'a.json', '2.jpg is only here')
    b = write(tmp_path/'b.json', hyps, {**refs, '1.jpg': ['another']})
    fails(ValueError, lambda: compare(a, b), 'b.json', 'other references of 1.jpg')
    b.write_text(json.dumps(json.loads(a.read_text())*2))
    fails(ValueError, lambda: compare(a, b), 'b.json', '0.jpg is there twice')
    b.write_text(a.read_text()[:-30])
    fails(ValueError, lambda: compare(a, b), 'b.json, line 32', 'not JSON')
    b.write_text('[{"image": "x.jpg"}]')
    fails(ValueError, lambda: compare(a, b), 'b.json, entry 1', 'hypothesis')
    b.write_bytes(b'["\xff"]')
    fails(ValueError, lambda: compare(a, b), 'b.json', 'UTF-8')
    for none in [],['!']:
        b = write(tmp_path/'b.json', hyps, {**refs, '1.jpg': none})
        fails(ValueError, lambda: compare(b, b), 'b.json', '1.jpg has no reference')
    b.write_text('[]')
    fails(ValueError, lambda: compare(b, b), 'b.json', 'no captions')
    for wrong in ['spice'],'spice': fails(ValueError, lambda w=wrong: compare(a, a, measures=w), "there is no 'spice'", 'rouge_l')
    assert list(compare(a, a, measures='cider').index) == ['cider']
    fails(ValueError, lambda: compare(a, a, n_boot=0), 'n_boot=0')
    b = write(tmp_path/'b.json', {**hyps, '1.jpg': ' '}, {i: r[::-1] for i,r in refs.items()})   # the same references in another order
    with pytest.warns(UserWarning, match='^1.jpg has an empty caption, which scores 0'): t = compare(a, b)
    assert t.difference['bleu1'] < 0 and 'bleu' in t.attrs['signature'].lower()

def test_same_names_in_two_folders(tmp_path):
    "Pictures are told apart by their folders where they have to be"
    hyps = {str(tmp_path/'data'/f/'1.jpg'): h for f,h in dict(x='a dog runs', y='two cats').items()}
    refs = {i: [h, 'a dog'] for i,h in hyps.items()}
    write_scored(f := tmp_path/'a.json', hyps, refs)
    assert read_scored(f)[0] == {'x/1.jpg': 'a dog runs', 'y/1.jpg': 'two cats'} and (compare(f, f).p == 1).all()

def test_references_given_twice():
    "is told of, as their number in the signature is not that of captions; two people who said the same are none"
    hyps,refs = made_up(3)
    plain = score_captions(hyps, refs, measures='bleu', n_boot=0)
    with pytest.warns(UserWarning, match='^0.jpg and 2 more have each reference twice'): s = score_captions(hyps, {i: 2*r for i,r in refs.items()}, measures='bleu', n_boot=0)
    assert s['bleu4'] == plain['bleu4'] and s['signature'] != plain['signature']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        score_captions(hyps, {i: [r[0], *r] for i,r in refs.items()}, measures='bleu', n_boot=0)

def test_lists_of_captions():
    "What is at hand as lists is scored as lists: a caption and its references in the same place"
    hyps,refs = made_up(20)
    by_name = score_captions(hyps, refs, measures='cider', n_boot=0)
    by_place = score_captions(list(hyps.values()), list(refs.values()), measures=['cider'], n_boot=0)
    assert by_place == by_name and by_name['cider'] > 0
    fails(ValueError, lambda: score_captions(list(hyps.values()), list(refs.values())[:-1]), 'refs', '19 has no reference')
    fails(ValueError, lambda: score_captions(list(hyps.values()), refs), 'hyps', 'refs', 'both')

def test_bleu_of_what_does_not_fit():
    "References that are texts would be read letter by letter, and lists of different length be cut"
    hyps,refs = ['a dog runs', 'two cats'],[['A dog runs.'], ['Two cats sleep.', 'cats']]
    for h,r,*parts in ((hyps, ['A dog runs.', 'two cats'], 'a list of texts', "'A dog runs.'"), (hyps, refs[:1], '1 has no reference'), (hyps[:1], refs, '1 has no caption'),
                       ([], [], 'no captions'), ('a dog', 'a dog', 'a list of texts'), (hyps, [['a dog'], []], '1 has no reference'), ([['a', 'dog'], 'b'], refs, 'hyps', "['a', 'dog']")):
        fails(ValueError, lambda h=h, r=r: metrics.bleu(h, r), *parts)
    assert metrics.bleu(dict(a='a dog runs'), dict(a=['A dog runs.'])) == metrics.bleu(hyps[:1], refs[:1])
