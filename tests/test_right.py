"What keeps the results right, from data to scores"
import itertools, math, random
from collections import Counter

import pandas as pd, pytest, torch
from fastai.torch_core import set_seed

from caption_fastai import text
from caption_fastai.callbacks import CaptionLoss, attention_penalty
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.decoder import AttentionDecoder, Packing
from caption_fastai.learner import Stage
from caption_fastai.metrics import score_captions
from caption_fastai.model import SYSTEMS
from caption_fastai.search import beam_search, caption_images, greedy_search, search
from caption_fastai.text import Vocab, cap_lens
from helpers import changed, fit, flickr_folder, load_dls, some_captions, tensors, tiny_learner

# A frozen encoder is frozen

encoders = pytest.mark.parametrize('arch,weights,pretrained', [
    ('shapes_cnn', 'SHAPES', None), ('shapes_cnn', None, None), ('mobilenet_v3_small', None, True)])

def is_statistic(name): return 'running_' in name or 'num_batches' in name

@encoders
def test_frozen_encoder_is_bit_identical(dls, arch, weights, pretrained):
    "After a first stage the encoder is the same to the last bit, the statistics of its batch normalisation included"
    learn = tiny_learner(dls, weights, arch, pretrained=pretrained)
    learn.freeze()
    encoder,decoder = tensors(learn.model.encoder),tensors(learn.model.decoder)
    assert any(map(is_statistic, encoder))
    fit(learn, 1, 1e-2)
    assert not changed(encoder, tensors(learn.model.encoder))
    assert {'out.weight', 'attention.key.weight'} <= changed(decoder, tensors(learn.model.decoder))

def test_frozen_again_is_bit_identical(dls):
    "The same holds for an encoder that is frozen after it was trained"
    learn = tiny_learner(dls)
    learn.unfreeze(); fit(learn, 1, 1e-3)
    learn.freeze()
    encoder = tensors(learn.model.encoder)
    fit(learn, 1, 1e-3)
    assert not changed(encoder, tensors(learn.model.encoder))

@encoders
def test_batch_norm_of_stage_two(dls, arch, weights, pretrained):
    "When the encoder trains, the statistics of a pretrained one stay, and those of a random one move"
    learn = tiny_learner(dls, weights, arch, pretrained=pretrained)
    learn.unfreeze()
    before = tensors(learn.model.encoder)
    fit(learn, 1, 1e-3)
    moved = changed(before, tensors(learn.model.encoder))
    assert {k for k in before if before[k].ndim == 4} <= moved   # convolutions
    statistics = {k for k in before if is_statistic(k)}
    assert moved & statistics == (set() if weights or pretrained else statistics)

# The fast decoder equals the textbook loop

def textbook(dec, feats, caps):
    "Logits (bs*k,sl-1,K) and alphas (bs*k,sl-1,L), one caption and one word after the other"
    caps = caps.flatten(0, -2)
    def linear(name, x):
        w = dec.get_parameter(f'{name}.weight')
        return x @ w.T + (dec.get_parameter(f'{name}.bias') if dec.get_submodule(name).bias is not None else 0)
    k,logits,alphas = len(caps)//len(feats),[],[]
    for row,cap in enumerate(caps):
        a = feats[row//k]                                                                            # (L,D)
        h,c = (torch.tanh(linear(o, a.sum(0)/len(a))) for o in ('init_h', 'init_c'))
        for word in cap[:-1]:
            seen = [torch.tanh(linear('attention.key', l) + linear('attention.query', h)) for l in a]
            e = torch.stack([linear('attention.score', o)[0] for o in seen])
            alpha = e.exp()/e.exp().sum()
            z = torch.sigmoid(linear('gate', h))*sum(w*l for w,l in zip(alpha, a))
            emb = dec.embedding.weight[word]
            i,f,g,o = (linear('cell_x', emb) + linear('cell_z', z) + linear('cell_h', h)).split(len(h))
            c = torch.sigmoid(f)*c + torch.sigmoid(i)*torch.tanh(g)
            h = torch.sigmoid(o)*torch.tanh(c)
            top = torch.tanh(emb + linear('out_h', h) + linear('out_z', z)) if dec.deep_output else h
            logits.append(linear('out', top)); alphas.append(alpha)
    shape = len(caps),caps.shape[1]-1,-1
    return torch.stack(logits).view(shape),torch.stack(alphas).view(shape)

def plain_loss(logits, alphas, caps):
    "Mean over the words of -log p(word), and the doubly stochastic penalty, by their definitions"
    caps = caps.flatten(0, -2)
    words = [(i, t) for i,cap in enumerate(caps) for t in range(len(cap)-1) if cap[t+1] != Vocab.pad_idx]
    nll = -sum(logits[i,t,caps[i,t+1]] - logits[i,t].exp().sum().log() for i,t in words)/len(words)
    pens = []
    for i in range(len(caps)):
        seen = [alphas[i,t] for j,t in words if j == i]
        pens += [(len(seen)/alphas.shape[-1] - sum(o[l] for o in seen))**2 for l in range(alphas.shape[-1])]
    return nll + sum(pens)/len(pens)

def run_decoder(forward, loss, dec, feats, caps):
    "Loss, and its gradients for features and parameters"
    feats = feats.clone().requires_grad_()
    l = loss(*forward(dec, feats, caps), caps)
    return l,torch.autograd.grad(l, [feats, *dec.parameters()])

@pytest.mark.parametrize('deep_output', [False, True])
@pytest.mark.parametrize('dtype,tol_loss,tol_grad', [(torch.float32, 1e-6, 1e-5), (torch.float64, 1e-10, 1e-10)])
def test_decoder_equals_textbook(deep_output, dtype, tol_loss, tol_grad):
    "The fast decoder has the loss and the gradients of a plain loop; two images with three captions each"
    dec = AttentionDecoder(11, 5, emb_sz=4, attn_sz=3, n_hid=6, p=0., deep_output=deep_output).to(dtype)
    with torch.no_grad():
        for p in dec.parameters(): p.normal_(0, 0.5)
    feats = torch.randn(2, 7, 5, dtype=dtype)
    caps = torch.tensor([[[2,4,5,6,7,3], [2,10,9,3,0,0], [2,8,4,9,3,0]], [[2,5,3,0,0,0], [2,1,6,5,3,0], [2,7,7,7,7,3]]])
    packing = Packing(cap_lens(caps))
    def unpacked(d, f, c):
        logits,alphas = d(f, c)
        return packing.unpack(logits, c[...,1:].shape).flatten(0, 1),alphas.flatten(0, 1)
    fast,fast_grads = run_decoder(unpacked, plain_loss, dec, feats, caps)
    slow,slow_grads = run_decoder(textbook, plain_loss, dec, feats, caps)
    assert abs(fast - slow) <= tol_loss
    for a,b in zip(fast_grads, slow_grads, strict=True): assert (a - b).abs().max() <= tol_grad
    own = lambda logits, alphas, caps: CaptionLoss()(logits, caps) + attention_penalty(alphas, caps)
    assert abs(run_decoder(lambda d,f,c: d(f, c), own, dec, feats, caps)[0] - slow) <= 1e-6

def test_grouped_captions_give_the_same(scenes):
    "All captions of a picture in one item: the loss and the gradients of the same captions one by one, on pictures and for each caption"
    grouped = load_dls(scenes, grouped=True, bs=8)
    learn = tiny_learner(grouped)
    imgs,caps = grouped.one_batch()
    caps[1,3:] = Vocab.pad_idx; caps[2,0] = Vocab.pad_idx   # captions that are not there
    caps.lens = None
    rows = caps.as_subclass(torch.Tensor).flatten(0, 1)
    real = rows[:,0] != Vocab.pad_idx
    params,res = list(learn.model.decoder.parameters()),[]
    for x,y in ((imgs, caps), (imgs.repeat_interleave(5, 0)[real], rows[real])):
        logits,alphas = learn.model.eval()(x, y)
        loss = learn.loss_func(logits, y) + attention_penalty(alphas, y.as_subclass(torch.Tensor))
        res.append([loss.detach(), *torch.autograd.grad(loss, params), CaptionLoss(reduction='none')(logits, y).flatten()])
    assert (res[0][-1][~real] == 0).all()
    res[0][-1] = res[0][-1][real]
    for a,b in zip(*res, strict=True): torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-4, atol=1e-6)

def test_pads_cost_little():
    "Of the decoder's arithmetic less than a tenth goes into pads, for Flickr8k's lengths, 32 images with five captions a batch"
    rng = random.Random(0)
    images = sorted(([max(4, round(rng.gauss(12.8, 3.3))) for _ in range(5)] for _ in range(1600)), key=lambda l: -sorted(l)[2])
    K,D,m,A,n,L = 2500,2048,300,512,512,196
    word,place = 2*(n*D + D*4*n + n*4*n + m*4*n + n*K), 2*(n*A + L*A + L*D)   # multiplications and additions
    useful = spent = 0
    for i in range(0, 1600, 32):
        packing = Packing(torch.tensor(images[i:i+32]))
        places = sum(len(s.places) for s in packing.steps('cpu'))
        useful += sum(packing.sizes)*(word + place); spent += sum(packing.sizes)*word + places*place
    assert sum(packing.sizes) == sum(len_ - 1 for im in images[-32:] for len_ in im)
    assert 1 - useful/spent < 0.1

# Search

@pytest.fixture(scope='module')
def searched(trained):
    "The decoder of a trained model, and the state of pictures that it has not seen"
    model = trained.model.eval()
    images = list(trained.dls.refs('test'))
    x = torch.stack([trained.dls.pipeline(i) for i in images]).to(next(model.parameters()).device)
    with torch.no_grad(): return model.decoder,model(x)

def same_hypotheses(a, b):
    assert [h.ids for h in a] == [h.ids for h in b]
    for x,y in zip(a, b):
        assert x.score == pytest.approx(y.score, abs=1e-4)
        torch.testing.assert_close(x.alphas, y.alphas, atol=1e-4, rtol=0)

def test_beam_of_one_is_greedy(searched):
    "A beam of one finds what greedy search finds, on a trained model"
    dec,state = searched
    greedy = greedy_search(dec.step, state)
    assert len({tuple(h.ids) for h in greedy}) > 3 and {h.ids[-1] for h in greedy} == {Vocab.eos_idx}
    same_hypotheses([h[0] for h in beam_search(dec.step, state, beam_sz=1)], greedy)

def tiny_vocab_decoder(n_words, K, system):
    "A decoder of K tokens of which only `EOS` and `n_words` words can come, and the state of 2 images"
    dec = SYSTEMS[system](K, 5, emb_sz=4, n_hid=6, p=0.).eval()
    with torch.no_grad():
        for p in dec.parameters(): p.normal_(0, 0.8)
        dec.out.bias[4+n_words:] = -torch.inf
        return dec,dec.init_state(torch.randn(2, 5) if dec.pooled else torch.randn(2, 4, 5))

@torch.no_grad()
def all_captions(dec, state, max_len, n_words):
    "Every caption there can be (of a word at least), with its log probability among all K tokens"
    words,found = range(4, 4+n_words),{}
    for n in range(max_len):
        for body in itertools.product(words, repeat=n):
            ends = [Vocab.eos_idx]*(n > 0) + [w for w in words if n == max_len-1]
            for ids in (list(body) + [e] for e in ends):
                s,total,last = state,0.,Vocab.bos_idx
                for w in ids:
                    logits,s,_ = dec.step(torch.tensor([last]), s)
                    total,last = total + logits.log_softmax(-1)[0,w].item(),w
                found[tuple(ids)] = total
    return found

@pytest.mark.parametrize('length_penalty', [0., 0.7, 1.])
@pytest.mark.parametrize('system', SYSTEMS)
def test_beam_equals_brute_force(system, length_penalty):
    "A beam as wide as there are captions of a tiny vocabulary ranks them all as scoring each of them does"
    dec,state = tiny_vocab_decoder(n_words=3, K=40, system=system)   # 3 + 9 end before the third word, 27 with it or later
    hyps = beam_search(dec.step, state, beam_sz=40, max_len=3, length_penalty=length_penalty, n_best=40)
    best = beam_search(dec.step, state, beam_sz=40, max_len=3, length_penalty=length_penalty)
    for i,found in enumerate(hyps):
        scores = all_captions(dec, state.pick_images(torch.tensor([i])), 3, 3)
        assert len(scores) == 39
        scores = {k: v/len(k)**length_penalty for k,v in scores.items()}
        assert [tuple(h.ids) for h in found] == sorted(scores, key=scores.get, reverse=True)
        for h in found: assert h.score == pytest.approx(scores[tuple(h.ids)], abs=1e-5)
        assert [h.ids for h in best[i]] == [found[0].ids]

@pytest.mark.parametrize('kw', [dict(beam_sz=1), dict(beam_sz=4, n_best=3), dict(beam_sz=4, length_penalty=0.8)], ids=str)
def test_batched_equals_one_by_one(trained, kw):
    "Pictures captioned all at once get what each gets alone"
    model,pipeline,images = trained.model,trained.dls.pipeline,list(trained.dls.refs('test'))
    model.train()   # captions are made in evaluation mode, and then it goes on training
    together = dict(caption_images(model, pipeline, images, bs=len(images), **kw))
    assert model.training
    assert list(together) == list(range(len(images)))
    for i,image in enumerate(images):
        (_,alone), = caption_images(model, pipeline, [image], **kw)
        same_hypotheses(together[i], alone)

@pytest.mark.parametrize('beam_sz', [1, 3])
def test_search_that_never_ends(searched, beam_sz):
    "Where the end never comes, the best so far is returned at the greatest length"
    dec,state = searched
    bias = dec.out.bias.data.clone()
    try:
        dec.out.bias.data[Vocab.eos_idx] = -1e9
        hyps = search(dec, state, beam_sz=beam_sz, max_len=8, n_best=beam_sz)
    finally: dec.out.bias.data.copy_(bias)
    assert len(hyps) == len(state.image[0])
    for found in hyps:
        assert len(found) == beam_sz
        for h in found: assert len(h.ids) == len(h.alphas) == 8 and Vocab.eos_idx not in h.ids and math.isfinite(h.score)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)

# Loss and gradient

@pytest.mark.parametrize('kw', [{}, dict(deep_output=True), dict(weights=None)], ids=str)
def test_loss_at_the_start(dls, kw):
    "Before training all words are about as likely: the loss is log(vocabulary) within 5%"
    learn = tiny_learner(dls, emb_sz=300, attn_sz=512, n_hid=512, **kw)
    with learn.no_bar(), learn.no_logging(): loss = learn.validate()[0]
    assert loss == pytest.approx(math.log(len(dls.vocab)), rel=0.05)

@pytest.mark.parametrize('label_smoothing', [0., 0.1])
def test_gradient_past_the_pad_is_zero(dls, label_smoothing):
    "Neither scores nor attention get a gradient where a caption is padded, and both do where it is not"
    learn = tiny_learner(dls, label_smoothing=label_smoothing)
    x,caps = dls.one_batch()
    logits,alphas = learn.model(x, caps)
    logits.retain_grad(); alphas.retain_grad()
    (learn.loss_func(logits, caps) + attention_penalty(alphas, caps.as_subclass(torch.Tensor))).backward()
    pads = caps[:,1:].as_subclass(torch.Tensor) == Vocab.pad_idx
    assert pads.any() and len(logits) == (~pads).sum()   # there are no scores where there is no word
    for grad in (Packing(cap_lens(caps)).unpack(logits.grad, pads.shape), alphas.grad):
        assert (grad[pads] == 0).all()
        assert grad[~pads].abs().sum(-1).min() > 0

# Splits

def word_folder(path, splits):
    "Pictures whose captions hold a word of their own, one of their split, and one of all"
    split = {n: s for s,names in splits.items() for n in names}
    return flickr_folder(path, {n: [f'common {s} own{n[:-4]}']*3 for n,s in split.items()}, splits)

def test_vocabulary_is_of_training_captions(tmp_path):
    "No word of the validation or test split is known for being there, and none is counted there"
    folder = word_folder(tmp_path/'a', dict(train=['0.jpg', '1.jpg'], valid=['2.jpg'], test=['3.jpg']))
    dls = load_dls(folder, size=32)
    assert set(dls.vocab.itos[4:]) == {'common', 'train', 'own0', 'own1'}
    assert dls.vocab.itos[4:6] == ['common', 'train']
    assert load_dls(folder, size=32, min_freq=6).vocab.itos[4:] == ['common', 'train']
    # 'common' is there 12 times in all, 6 of them in training
    with pytest.raises(ValueError, match='min_freq=7'): load_dls(folder, size=32, min_freq=7)
    assert all(dls.vocab.unk_idx in o.ids for o in dls.valid_ds.items)

def test_a_caption_is_split_into_words_once(tmp_path, monkeypatch):
    "For vocabulary, ids, mirroring and the scores of two evaluations"
    split,tokenizer = Counter(),text._tokenizer()
    class Counting:
        def tokenize(self, caption): split[caption] += 1; return tokenizer.tokenize(caption)
    monkeypatch.setattr(text, '_tokenizer', Counting)
    folder = word_folder(tmp_path/'a', dict(train=['0.jpg', '1.jpg'], valid=['2.jpg'], test=['3.jpg']))
    text._tokens.cache_clear()
    dls = load_dls(folder, size=32)
    refs,known = dls.refs('valid'),[c for cs in dls.refs('train').values() for c in cs]
    for _ in range(2): score_captions({i: 'common valid' for i in refs}, refs, known=known, measures=['bleu'])
    assert set(split) == {'common train own0', 'common train own1', 'common valid own2', 'common valid'} and set(split.values()) == {1}

@pytest.mark.parametrize('splits', [{}, dict(train=range(12)), dict(train=range(8), valid=range(8, 12)),
                                    dict(train=range(8), test=range(8, 12))], ids=str)
def test_captions_of_an_image_are_in_one_split(tmp_path, splits):
    "Drawn or named, a split is one of images: all captions of an image are in it, and no image is in two"
    named = {s: [f'{i}.jpg' for i in r] for s,r in splits.items()}
    folder = flickr_folder(tmp_path/'a', {f'{i}.jpg': [f'a b c{j}' for j in range(5)] for i in range(12)}, named)
    dls = load_dls(folder, size=32)
    captions = dls.captions
    assert (captions.groupby('image').split.nunique() == 1).all() and (captions.groupby('image').size() == 5).all()
    train,valid = ({o.image for o in ds.items} for ds in (dls.train_ds, dls.valid_ds))
    assert train and valid and not train & valid
    assert not (train | valid) & (set(dls.refs('test')) if 'test' in splits else set())

def test_an_image_under_two_names_is_in_one_split(tmp_path):
    "An image that the file names in two ways is still one image"
    folder = flickr_folder(tmp_path/'a', some_captions(10))
    rows = [(f'{p}{i}.jpg', f'a b {i}') for i in range(10) for p in ('', 'Images/', './')]
    dls = CaptionDataLoaders.from_df(pd.DataFrame(rows, columns=['image', 'caption']), folder, valid_pct=0.5, min_freq=1, size=32)
    assert (dls.captions.groupby('image').size() == 3).all()
    assert not set(dls.refs('train')) & set(dls.refs('valid'))

# Seeds

def two_stages(scenes, seed, weights):
    set_seed(seed)
    learn = tiny_learner(load_dls(scenes, seed=seed, aug=True, bs=32), weights, p=0.3)
    with learn.no_bar(), learn.no_logging(): learn.fit_stages([Stage(1, 1e-3, freeze=True), Stage(1, slice(1e-5, 1e-3), bs=16)])
    return tensors(learn.model),[float(l) for l in learn.history.losses]

def test_a_seed_gives_the_same_run_twice(scenes):
    "Two stages with augmentation and dropout: the same seed gives the same weights bit for bit, another one does not"
    weights,losses = two_stages(scenes, 3, None)
    random.random(); torch.rand(5)   # what was drawn in between does not count
    again,losses_again = two_stages(scenes, 3, None)
    assert not changed(weights, again) and losses == losses_again
    assert two_stages(scenes, 4, None)[1] != losses

def batches(scenes, num_workers, epoch=0, **kw):
    "The training batches of an epoch"
    random.seed(num_workers); torch.manual_seed(num_workers)   # must not matter
    dl = load_dls(scenes, aug=True, num_workers=num_workers, **kw).train
    dl.epoch = epoch
    return [(x.cpu(), y.cpu()) for x,y in dl]

def same_batches(a, b): return len(a) == len(b) and all(torch.equal(x, y) for p,q in zip(a, b) for x,y in zip(p, q))

@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2); yield
    torch.set_num_threads(before)

@pytest.mark.parametrize('system,kw,pr_force', [*((s, {}, 1.) for s in SYSTEMS), ('show_attend_tell', dict(cell='gru'), 1.), ('show_attend_tell', {}, 0.5)], ids=str)
def test_gradients_are_the_same_bit_for_bit_with_several_threads(system, kw, pr_force, two_threads):
    "Threads may not add up the gradients of an image's captions in the order in which they come to an end"
    dec,k = SYSTEMS[system](50, 64, 64, n_hid=512, p=0.5, **kw),5
    dec.pr_force = pr_force
    feats,caps = torch.randn(16, *[] if dec.pooled else [9], 64),torch.randint(4, 50, (16, k, 8))
    caps[torch.arange(8) >= torch.randint(3, 9, (16, k, 1))] = Vocab.pad_idx
    def grads():
        torch.manual_seed(1); dec.zero_grad()
        CaptionLoss()(dec(feats, caps)[0], caps).backward()
        return {n: p.grad.clone() for n,p in dec.named_parameters()}
    first = grads()
    for _ in range(5): assert not changed(first, grads())

@pytest.mark.parametrize('system', SYSTEMS)
def test_own_words_are_read_in_training_alone(system):
    "Whatever probability of teacher forcing training has left, as without validation or at Ctrl-C"
    dec = SYSTEMS[system](50, 8, emb_sz=6, n_hid=7, p=0.)
    feats,caps = torch.randn(2, *[] if dec.pooled else [9], 8),torch.randint(4, 50, (2, 8))
    logits = lambda pr: setattr(dec, 'pr_force', pr) or dec(feats, caps)[0]
    dec.eval(); assert torch.equal(logits(0.), logits(1.))
    dec.train(); assert not torch.allclose(logits(0.), logits(1.))

def test_random_numbers_come_from_seed_epoch_and_item(scenes):
    "Order and augmentation depend on these three: not on the number of workers, nor on epochs before"
    alone = batches(scenes, 0)
    assert same_batches(alone, batches(scenes, 2))
    assert not same_batches(alone, batches(scenes, 0, epoch=1))
    assert not same_batches(alone, batches(scenes, 0, seed=2))
    assert same_batches(batches(scenes, 0, epoch=1), batches(scenes, 2, epoch=1))

def test_an_item_is_augmented_alike_in_every_batch_size(scenes):
    "What an item looks like in an epoch does not hang on the batch in which it comes; item, epoch and seed each change it"
    dls = load_dls(scenes, aug=True)
    small,other = dls.with_bs(5),load_dls(scenes, aug=True, seed=2)
    def look(dls, epoch, item):
        dls.train.epoch = epoch
        return dls.train.do_item(item)[0]
    for epoch in (0, 1):
        for item in (0, 7, 99): assert torch.equal(look(dls, epoch, item), look(small, epoch, item))
    assert dls.train_ds.items[0].image == dls.train_ds.items[1].image
    for d,epoch,item in ((dls, 0, 1), (dls, 1, 0), (other, 0, 0)): assert not torch.equal(look(dls, 0, 0), look(d, epoch, item))

def test_every_epoch_has_an_order_of_its_own(scenes):
    "Seed and epoch give the order of the items, and nothing else does"
    def order(epoch, **kw):
        dl = load_dls(scenes, **kw).train
        dl.epoch = epoch
        return list(dl.get_idxs())
    assert order(0) == order(0) and sorted(order(0)) == list(range(500))
    assert order(0) != order(1) and order(0) != order(0, seed=2)

def test_training_counts_its_epochs(dls):
    "Each epoch of a training has random numbers of its own, over several fits"
    learn,seen = tiny_learner(dls),[]
    dl,get_idxs = learn.dls.train,learn.dls.train.get_idxs
    dl.get_idxs = lambda: seen.append(dl.epoch) or get_idxs()
    try: fit(learn, 2, 1e-3); fit(learn, 1, 1e-3)
    finally: del dl.get_idxs
    assert [e for i,e in enumerate(seen) if e not in seen[:i]] == [0, 1, 2]

def test_validation_is_no_epoch(dls, tmp_path):
    "`learn.validate()` leaves the table of epochs as it is"
    learn = fit(tiny_learner(dls, metrics=None, path=tmp_path), 1, 1e-3)
    before = learn.history.table.to_string(),learn.history.stage
    learn.validate()
    assert (learn.history.table.to_string(), learn.history.stage) == before and len(learn.history.rows) == 1
