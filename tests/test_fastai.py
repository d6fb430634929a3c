"What fastai users know does here what it does elsewhere, or says why not"
import matplotlib.pyplot as plt, pytest
from fastai.callback.schedule import slide, valley
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import load_learner
from torch import nn
import fastai.callback.schedule, fastai.vision.learner   # noqa: F401, which give learners `fit_one_cycle` and `tta`

from caption_fastai.callbacks import BleuMetric
from caption_fastai.learner import Stage, caption_learner
from caption_fastai.metrics import evaluate
from helpers import fails, fit, tiny_learner

def quiet(learn, f):
    with learn.no_bar(), learn.no_logging(): return f(learn)

# Pictures and words

def test_rows_and_columns(dls, trained):
    "`nrows`, `ncols` and `figsize` are those of fastai's `show_batch`"
    for show in dls.show_batch, dls.valid.show_batch, trained.show_results:
        for kw,shape in (dict(nrows=1), (1, 4)), (dict(nrows=2), (2, 2)), (dict(ncols=4), (1, 4)), (dict(nrows=2, ncols=3), (2, 3)), ({}, (2, 3)):
            show(max_n=4, **kw)
            assert plt.gcf().axes[0].get_gridspec().get_geometry() == shape
            plt.close('all')
    dls.show_batch(max_n=2, figsize=(5, 4))
    assert list(plt.gcf().get_size_inches()) == [5, 4]
    plt.close('all')

def test_words_by_number(dls):
    "A vocabulary is read like the list that fastai has in its place"
    v = dls.vocab
    assert (v[4], v[:4], list(v)) == (v.itos[4], v.itos[:4], v.itos) and v[4] in v and 'zebra' not in v

# Networks

def test_not_pretrained(dls):
    "`pretrained=False` is that of `vision_learner`: random numbers, all of which train"
    learn = tiny_learner(dls, 'DEFAULT', 'mobilenet_v3_small', pretrained=False)
    assert learn.model.config['weights'] is None and learn.opt is None or learn.opt.frozen_idx == 0
    assert all(p.requires_grad for p in learn.model.parameters())

@pytest.mark.parametrize('net', [nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Linear(2, 2)])
def test_network_of_ones_own(dls, net):
    "Where a network is given in place of a name, the error says how it gets one"
    fails(ValueError, lambda: caption_learner(dls, net), 'arch', type(net).__name__, "CNNS['mine']")

# Scores while training

def test_scores_of_what_is_validated(dls, trained):
    "Validated on other pictures, the score is of those"
    learn = tiny_learner(dls, metrics=[BleuMetric(measure='bleu1')])
    learn.model.load_state_dict(trained.model.state_dict())
    for i,split in enumerate(('train', 'valid')):
        want,_ = evaluate(learn.model, dls.vocab, dls.pipeline, dls.refs(split), measures=['bleu'], top5=False)
        assert quiet(learn, lambda l: l.validate(i))[1] == pytest.approx(want['bleu1'])
    some = learn.dls.test_dl(dls.train_ds.items[:10], with_labels=True)
    images = {o.image for o in dls.train_ds.items[:10]}
    want,_ = evaluate(learn.model, dls.vocab, dls.pipeline, {i: r for i,r in dls.refs('train').items() if i in images}, measures=['bleu'], top5=False)
    assert quiet(learn, lambda l: l.validate(dl=some))[1] == pytest.approx(want['bleu1'])

def test_the_best_by_cider(dls, tmp_path):
    "Another measure than BLEU-4 has a column of its name, by which callbacks go"
    learn = tiny_learner(dls, metrics=[BleuMetric(8, 'cider')], path=tmp_path)
    quiet(learn, lambda l: l.fit(2, 1e-2, cbs=SaveModelCallback('cider')))
    want = learn.evaluate(n=8, measures=['cider'])['cider']
    assert list(learn.history.table.columns)[4] == 'cider' and max(learn.history.table.cider) == pytest.approx(want)
    quiet(learn, lambda l: l.fit_stages([Stage(1, 1e-3, freeze=True)]))   # whose best weights are those of BLEU-4, where that is scored
    fails(ValueError, lambda: BleuMetric(measure='spice'), 'spice', 'bleu4', 'cider')

@pytest.mark.parametrize('opt_func', ['adamw', 'adam'])
def test_tensorboard(dls, tmp_path, opt_func):
    "fastai's own callback takes the optimiser's settings"
    pytest.importorskip('tensorboard')
    from fastai.callback.tensorboard import TensorBoardCallback
    quiet(tiny_learner(dls, opt_func=opt_func), lambda l: l.fit(1, 1e-3, cbs=TensorBoardCallback(tmp_path, trace_model=False, log_preds=False)))
    assert any(tmp_path.iterdir())

# Predictions

def test_predictions_of_pictures(dls, trained):
    "Of pictures alone they are captions, in the order of the pictures"
    files = [o.image for o in dls.valid_ds.items[:20:5]]
    ids = quiet(trained, lambda l: l.get_preds(dl=dls.test_dl(files)))[0]
    assert [dls.vocab.decode(i) for i in ids] == [c.text for c in trained.captioner().caption(files, beam_sz=1)]

def test_predictions_of_captions(dls, trained):
    "Of true captions they are scores of words, which cannot be put into the order of the pictures: an error says what there is instead; losses can"
    for f in lambda l: l.get_preds(), lambda l: l.get_preds(with_loss=True), lambda l: l.tta(n=1):
        with pytest.raises(ValueError, match='test_dl.*evaluate.*with_preds=False'): quiet(trained, f)
    losses = quiet(trained, lambda l: l.get_preds(with_loss=True, with_preds=False, with_targs=False))[-1]
    assert len(losses) == len(dls.valid_ds)

# A learner that comes back

def test_learner_without_its_data(trained, dls, tmp_path):
    "What `load_learner` gives has no pictures: it captions, says what it lacks for the rest, and gets on once it has some"
    quiet(trained, lambda l: l.export(tmp_path/'e.pkl'))
    with pytest.warns(UserWarning): again = load_learner(tmp_path/'e.pkl')
    pic = dls.valid_ds.items[0].image
    assert again.captioner().caption(pic).text == trained.captioner().caption(pic).text
    for f in lambda l: l.fit(1), lambda l: l.fit_stages([Stage(1)]), lambda l: l.evaluate(), lambda l: l.cache_features(tmp_path/'f'), lambda l: l.dls.summary():
        fails(ValueError, lambda: quiet(again, f), 'load_learner', 'learn.dls = dls')
    again.dls = dls
    fit(again, 1, 1e-4)

def test_suggested_rates_are_told_apart_without_colours(dls):
    "Each has a marker of its own, on the curve and in the legend; where nothing is drawn, nothing is left"
    learn,before = tiny_learner(dls),plt.get_fignums()
    assert quiet(learn, lambda learn: learn.lr_find(num_it=30, show_plot=False)).valley > 0 and plt.get_fignums() == before
    quiet(learn, lambda learn: learn.lr_find(num_it=30, suggest_funcs=(valley, slide)))
    ax = plt.gca()
    for dots in ax.lines[1:], ax.get_legend().legend_handles: assert [o.get_marker() for o in dots] == ['o', 's']
    plt.close('all')
