"What a captioner gets wrong: errors, the order of losses, wrong words, and the page in a real browser"
import math, re, shutil, subprocess

import matplotlib.pyplot as plt
import numpy as np
import pytest, torch
from helpers import fails
from PIL import Image

from caption_fastai.callbacks import CaptionLoss
from caption_fastai import mistakes
from caption_fastai.mistakes import CaptionInterpretation, word_kind, wrong_words

@pytest.fixture(scope='module')
def interp(trained): return CaptionInterpretation.from_learner(trained)

def test_a_split_without_captions_and_too_many_pictures(trained, interp):
    class NoTest:   # the same learner, with data that has no test split
        dls = type('', (), dict(refs=staticmethod(lambda split: {})))
    fails(ValueError, lambda: CaptionInterpretation.from_learner(NoTest, 'test'), "split='test'", 'no captions')
    fails(ValueError, lambda: CaptionInterpretation.from_learner(trained, n=21), 'n=21', '1 to 20')
    fails(ValueError, lambda: CaptionInterpretation.from_learner(trained, n=0), 'n=0', '1 to 20')
    for f in (lambda w: interp.plot([0], width=w), lambda w: interp.plot_right_wrong(1, width=w), lambda w: interp.plot_words(width=w)): fails(ValueError, lambda: f(0), 'width=0: expected more than 0')
    for f in (interp.top_losses, interp.plot_best, interp.plot_worst, interp.plot_right_wrong): fails(ValueError, lambda: f(21), 'k=21', '1 to 20')
    fails(ValueError, lambda: interp.plot_best(1, 'rouge'), "by='rouge'", 'cider')
    fails(ValueError, lambda: interp.plot([20]), 'no row 20')
    fails(ValueError, lambda: interp.scores_by('weather'), "what='weather'", 'objects')

def test_losses_are_those_of_each_picture_alone_and_in_order(trained, interp):
    model,vocab,loss = trained.model.eval(),trained.dls.vocab,CaptionLoss()
    true = []
    for image,refs in zip(interp.table.image[:5], interp.refs):
        x,words,total = trained.dls.pipeline(image)[None],0.,0.
        with torch.no_grad():
            for r in refs:
                caps = torch.tensor([vocab.encode(r)])
                total += loss(model(x, caps)[0], caps).item()*(caps.shape[1] - 1); words += caps.shape[1] - 1
        true.append(total/words)
    found = interp.table.loss.tolist()
    torch.testing.assert_close(torch.tensor(found[:5]), torch.tensor(true), rtol=1e-4, atol=1e-4)
    assert interp.top_losses()[1].tolist() == sorted(range(20), key=lambda i: -found[i])
    assert interp.top_losses(5, largest=False)[1].tolist() == sorted(range(20), key=lambda i: found[i])[:5]

def test_captions_are_those_of_evaluate(trained, interp):
    trained.evaluate(beam_sz=3, measures=['bleu'], n_boot=0)
    assert dict(zip(interp.table.image, interp.table.caption)) == trained.hyps

def test_wrong_words_of_captions_made_by_hand():
    refs = ['A red bird sits on a branch.', 'a bird sitting on two branches', 'red bird']
    assert wrong_words('a blue bird is flying over a branch', refs) == (['red', 'on'], ['blue', 'flying', 'over'])
    assert wrong_words('a red bird on it', refs) == ([], [])
    assert wrong_words('', ['a dog', 'a dog']) == (['dog'], [])
    assert [word_kind(w) for w in 'building running grey four behind the wing sits we big'.split()] == 'object action colour count relation function object action function other'.split()

def test_counts_of_wrong_words_over_pictures(interp):
    by_hand = CaptionInterpretation(None, interp.table[:2].assign(caption=['a red cat', 'a dog']), [], [['a dog', 'one dog'], ['a dog', 'two dogs runs']])
    t = by_hand.words().set_index('word')
    assert t.missed[t.missed > 0].to_dict() == dict(dog=1) and t.made_up[t.made_up > 0].to_dict() == dict(red=1, cat=1)
    assert t.true.dog == 1 and t.said.dog == 1
    with pytest.raises(ValueError, match='no word is missed'): CaptionInterpretation(None, interp.table[:1].assign(caption='a dog'), [], [['a dog']]).plot_words()

def test_groups_hold_every_picture_once(interp):
    for what in ('length', 'rarity', 'objects'): assert interp.scores_by(what).n.sum() == 20

def test_objects_are_not_grouped_and_many_groups_can_be_read(interp, monkeypatch):
    monkeypatch.setitem(mistakes._what, 'objects', (lambda self: [i%5 for i in range(20)], 'objects'))
    monkeypatch.setitem(mistakes._what, 'length', (lambda self: [1000 + i/20 for i in range(20)], 'length'))
    assert interp.scores_by('objects', bins=2).index.tolist() == list('01234')
    for bins in (4, 20):
        fig = interp.plot_scores_by(['objects', 'length'], bins=bins)
        fig.draw_without_rendering()
        for ax in fig.axes:
            labels = [l.get_window_extent() for l in ax.get_xticklabels()]
            assert len(labels) == len(ax.patches) and not any(a.overlaps(b) for a,b in zip(labels, labels[1:]))
        plt.close(fig)

@pytest.mark.parametrize('maps', [0, 1, 2])
def test_right_beside_wrong_with_attention(interp, maps):
    fig = interp.plot_right_wrong(3, maps=maps)
    assert [ax.get_title(loc='left') for ax in fig.axes[::maps + 3]] == ['best by CIDEr', 'worst by CIDEr'] + ['']*4
    idxs = [i for pair in zip(interp.ranked(3, 'cider'), interp.ranked(3, 'cider', False)) for i in pair]
    for i,own in zip(idxs, np.split(np.array(fig.axes), 6)):
        cap = interp.caption(i)
        assert own[0].images and [ax.get_title() for ax in own[2:] if ax.images] == [cap.words[t] for t in mistakes._map_words(cap, maps)]
    plt.close(fig)

def _text_boxes(fig):
    fig.draw_without_rendering()
    return [t.get_window_extent() for ax in fig.axes for t in ax.texts]

@pytest.mark.parametrize('size', [(40, 160), *(pytest.param(s, marks=pytest.mark.long) for s in ((160, 40), (8, 8)))])
def test_no_text_lies_on_another(interp, tmp_path, size):
    Image.new('RGB', size, 'teal').save(tmp_path/'a.png')
    dollars = 'for $\\x$ '   # as TeX an error
    long = dollars + ' '.join(['a very small dog with a ball runs beside the water']*3)
    two = CaptionInterpretation(interp.learn, interp.table[:2].assign(image=str(tmp_path/'a.png'), caption=[long, 'dog']), interp.hyps[:2], [[long]*5, ['a cat']*5])
    for fig in (two.plot([0, 1]), two.plot_right_wrong(2)):
        boxes = _text_boxes(fig)
        assert not any(a.overlaps(b) for i,a in enumerate(boxes) for b in boxes[:i])
        plt.close(fig)

@pytest.mark.parametrize('maps,width', [(3, 13), (6, 13), (0, 13), (3, 7)])
def test_no_text_lies_on_a_picture(interp, maps, width):
    caption = 'a black and white dog is running through the grass'
    some = CaptionInterpretation(interp.learn, interp.table[:2].assign(caption=caption), interp.hyps[:2], [[f'{caption} .']*7]*2)
    for fig in (some.plot([0, 1], maps, width), some.plot_right_wrong(2, 'bleu', maps, width)):
        fig.draw_without_rendering()
        boxes = [ax.get_window_extent() for ax in fig.axes if ax.images]
        for t in (t for ax in fig.axes for t in ax.texts):
            b = t.get_window_extent()
            assert not any(b.overlaps(o) for o in boxes) and b.x1 <= fig.bbox.x1
        refs = [t.get_text() for ax in fig.axes for t in ax.texts if t.get_text().startswith('–')]
        assert len(refs) >= 2 and all(r.endswith('and 2 more') and '.' not in map(str.strip, r.split('\n')) for r in refs)
        plt.close(fig)

def test_kinds_of_words_side_by_side_or_below(interp):
    odd = CaptionInterpretation(None, interp.table[:1].assign(caption='a red dog running on two rocks'), None, [['one blue skyscraper under climbing']])
    for width,ncols in ((13, 5), (6, 2), (3, 1)):
        fig = odd.plot_words(width=width)
        fig.draw_without_rendering()
        shown = [ax for ax in fig.axes if ax.get_title()]
        boxes = [ax.title.get_window_extent() for ax in shown] + [l.get_window_extent() for l in fig.legends]
        assert len(shown) == 5 and len({round(ax.get_position().x0, 2) for ax in fig.axes}) == ncols
        assert all(0 <= b.x0 and b.x1 <= fig.bbox.x1 for b in boxes) and not any(a.overlaps(b) for i,a in enumerate(boxes) for b in boxes[:i])
        plt.close(fig)

def test_one_picture_has_no_standard_error(interp):
    t = interp.scores_by('length', bins=20)
    fig = interp.plot_scores_by('length', bins=20)
    ends = np.concatenate([np.ma.filled(np.ma.asarray(l.get_ydata(), float), np.nan) for l in fig.axes[0].lines])
    assert (t.n == 1).any() and np.isfinite(ends).sum() == 2*(t.n > 1).sum()
    plt.close(fig)

def test_the_page_holds_every_picture_and_nothing_from_outside(interp, tmp_path):
    odd = CaptionInterpretation(interp.learn, interp.table[:3].assign(caption=['</script><b>red', 'a "blue" & cat', 'x']), interp.hyps[:3], [['<i>a dog']]*3)
    page = odd.gallery(tmp_path/'odd.html').read_text(encoding='utf-8')
    assert page.count('</script>') == 2 and '<b>red' not in page and '<i>' not in page
    page = interp.gallery(tmp_path/'a.html').read_text(encoding='utf-8')
    assert page.count('"jpeg": ') == 20
    without = re.sub(r'"jpeg": "[^"]*"', '', page)
    assert len(without) < len(page)/2 and not re.search(r'https?:|//[a-z]|src=["\'](?!data:)|@import|url\(', without)

def _shown(page, fragment, folder):
    cmd = [shutil.which('chromium'), '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={folder}', '--virtual-time-budget=3000', '--dump-dom', f'{page.as_uri()}#{fragment}']
    dom = subprocess.run(cmd, capture_output=True, text=True, timeout=120).stdout
    names = re.findall(r'<article([^>]*)>.*?title="([^"]*)"', dom, flags=re.S)
    return [n for attrs,n in names if 'hidden' not in attrs], re.search(r'<output[^>]*>([^<]*)', dom)[1]

@pytest.mark.skipif(shutil.which('chromium') is None, reason='chromium is not installed')
def test_the_page_finds_words_with_a_hyphen_and_shows_a_loss_that_is_no_number(interp, tmp_path):
    refs = [['a t-shirt hangs', 'one t-shirt'], ['a dog', 'one dog'], ['a dog', 'one dog']]
    odd = CaptionInterpretation(interp.learn, interp.table[:3].assign(caption=['a dog', 'a t-shirt', 'a dog'], loss=[math.nan, 1., 2.]), interp.hyps[:3], refs)
    page,names = odd.gallery(tmp_path/'odd.html'),[i.rsplit('/', 1)[-1] for i in odd.table.image]
    assert _shown(page, 'by=loss', tmp_path/'p')[0] == [names[0], names[2], names[1]]
    for where,name in (('missed', names[0]), ('made', names[1])): assert _shown(page, f'q=t-shirt&in={where}', tmp_path/'p')[0] == [name]

@pytest.mark.long
@pytest.mark.skipif(shutil.which('chromium') is None, reason='chromium is not installed')
def test_the_page_filters_in_a_browser(interp, tmp_path):
    page = interp.gallery(tmp_path/'a.html')
    name = lambda i: interp.table.image[i].rsplit('/', 1)[-1]
    assert len(_shown(page, '', tmp_path/'p')[0]) == 20
    red = [i for i in range(20) if 'red' in interp.table.caption[i].split()]
    got,says = _shown(page, 'q=red&in=caption&order=up&by=loss', tmp_path/'p')
    assert got == [name(i) for i in interp.ranked(None, 'loss', False) if i in red] and says == f'{len(red)} of 20 pictures'
    lo = sorted(interp.table.cider)[9]
    assert set(_shown(page, f'by=cider&lo={lo + 0.06}', tmp_path/'p')[0]) == {name(i) for i in range(20) if round(interp.table.cider[i], 1) >= lo + 0.06}
    missed = [i for i in range(20) if 'circle' in wrong_words(interp.table.caption[i], interp.refs[i])[0]]
    assert set(_shown(page, 'q=circle&in=missed', tmp_path/'p')[0]) == {name(i) for i in missed}
