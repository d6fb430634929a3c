"""Speed against a textbook implementation (`textbook.py`): ratios of medians of interleaved rounds, after checking that both give the same numbers.

    python tests/bench_speed.py [--data FLICKR8K] [--rounds 5] [--json FILE] [--plot FILE.png]

D 2048, embedding, attention and state 512, 2,500 words, lengths of captions as in Flickr8k. What needs photographs (the stage-1 epoch,
the cache, memory) is left out without --data."""
import argparse, json, random, statistics, subprocess, sys, tempfile, time, warnings
from pathlib import Path

import torch
from torch.nn import functional as F

from caption_fastai.callbacks import CaptionLoss
from caption_fastai.decoder import AttentionDecoder
from caption_fastai.encoder import Encoder
from caption_fastai.images import ImagePipeline
from caption_fastai.search import search
from caption_fastai.text import Vocab
from textbook import TextbookDecoder, TextbookEncoder, load_picture

K,D,SZ = 2500,2048,512
# How many of 1,000 training captions of Flickr8k have so many tokens, BOS and EOS counted
LENS = {5:4, 6:12, 7:29, 8:65, 9:85, 10:98, 11:111, 12:111, 13:104, 14:93, 15:77, 16:62, 17:44, 18:33, 19:22, 20:17, 21:12, 22:7, 23:5, 24:4, 25:2, 26:2, 27:1, 28:1}

def batches(n_img, k, n):
    "Lengths (n_img,k) of `n` batches as sortish sampling gives them, from all over an epoch"
    rng = random.Random(0)
    images = sorted((rng.choices(list(LENS), LENS.values(), k=k) for _ in range(1600)), key=lambda l: -sorted(l)[k//2])
    starts = [int((i + 0.5)/n*(1600 - n_img)) for i in range(n)]
    return [torch.tensor(images[s:s+n_img]) for s in starts]

def captions(lens, vocab_sz=K):
    caps = torch.zeros(*lens.shape, int(lens.max()), dtype=torch.long)
    for c,l in zip(caps.flatten(0, -2), lens.flatten().tolist()):
        c[0],c[1:l-1],c[l-1] = Vocab.bos_idx,torch.randint(4, vocab_sz, (l-2,)),Vocab.eos_idx
    return caps

def pool_up(feats): return F.adaptive_avg_pool2d(feats.transpose(1, 2).unflatten(2, (7, 7)), 14).flatten(2).transpose(1, 2)

def decoders(vocab_sz=K, nf=D, seed=0):
    torch.manual_seed(seed)
    dec = AttentionDecoder(vocab_sz, nf, SZ, SZ, SZ, p=0.)
    return dec,TextbookDecoder(dec)

def fast_loss(dec, feats, caps): return CaptionLoss()(dec(feats, caps)[0], caps)
def text_loss(text, feats, caps):
    "A copy of the features for each caption"
    k = caps[0].numel()//caps.shape[-1]
    rows = caps.flatten(0, -2)
    logits,targs,_ = text(feats.repeat_interleave(k, 0), rows, (rows != Vocab.pad_idx).sum(1))
    return F.cross_entropy(logits, targs)

class Trainer:
    "Forward, backward, clip, step: the same for both"
    def __init__(self, module, loss): self.module,self.loss,self.opt = module,loss,torch.optim.Adam(module.parameters(), 1e-5)
    def __call__(self, feats, caps):
        self.opt.zero_grad()
        self.loss(self.module, feats, caps).backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 5.)
        self.opt.step()

speeds = {}   # captions a second of this and of the textbook, of `epoch_stage1` seconds

def seconds(f, *args):
    start = time.perf_counter(); f(*args)
    return time.perf_counter() - start

def interleaved(rounds, **jobs):
    "Median seconds of each job (a function of the round); a first round warms up"
    times = {k: [] for k in jobs}
    for r in range(-1, rounds):
        for k,f in jobs.items():
            s = seconds(f, max(r, 0))
            if r >= 0: times[k].append(s)
    return {k: statistics.median(t) for k,t in times.items()}

def check_training():
    dec,text = decoders()
    feats,caps = torch.randn(4, 49, D).relu(),captions(batches(4, 5, 3)[1])
    for a,b in ((feats, feats), (feats, pool_up(feats))):
        fast,slow = fast_loss(dec, a, caps),text_loss(text, b, caps)
        shared = ('attention.key.weight', 'encoder_att.weight'), ('out.weight', 'fc.weight'), ('gate.weight', 'f_beta.weight'), ('embedding.weight', 'embedding.weight')
        grads = [torch.autograd.grad(l, [m.get_parameter(p) for p in ps]) for l,m,ps in zip((fast, slow), (dec, text), zip(*shared))]
        worst = max(((x - y).abs().max()/y.abs().max()).item() for x,y in zip(*grads))
        assert abs(fast - slow) < 1e-5 and worst < 1e-4, (fast, slow, worst)
    print('training: the same loss and gradients, on 7x7 and on 14x14 pooled up from it')

def training(rounds):
    (dec,text),res = decoders(),{}
    fast,slow = Trainer(dec, fast_loss),Trainer(text, text_loss)
    for key,k,side in (('train_same_32', 1, 14), ('train_5cap_14', 5, 14), ('train_5cap_7', 5, 7)):
        small = torch.randn(32, 49, D).relu()
        feats,own = pool_up(small),small if side == 7 else pool_up(small)
        caps = [captions(l) for l in batches(32, k, rounds)]
        some = [c if k == 1 else c.flatten(0, 1)[torch.randperm(32*k)[:32]] for c in caps]   # the textbook takes 32 captions at a time
        t = interleaved(rounds, fast=lambda r: fast(own, caps[r]), text=lambda r: slow(feats, some[r]))
        speeds[key] = 32*k/t['fast'],32/t['text']
        res[key] = speeds[key][0]/speeds[key][1]
        print(f"{key}: {res[key]:.1f} times the textbook ({speeds[key][0]:.0f} captions a second, the textbook {speeds[key][1]:.1f})", flush=True)
    return res

@torch.no_grad()
def make_endings(dec, feats):
    "Let captions of a new decoder differ, and end after some ten words, as those of a trained one do"
    dec.eval()
    dec.out.weight.mul_(30); dec.out.bias[[Vocab.pad_idx, Vocab.unk_idx, Vocab.bos_idx]] = -1e9
    for bias in torch.arange(0., 100., 0.5):
        dec.out.bias[Vocab.eos_idx] = bias
        if sum(len(h[0].ids) for h in search(dec, dec.init_state(feats), beam_sz=3)) <= 11*len(feats): return

def searching(rounds):
    feats,res = torch.randn(64, 196, D).relu()*torch.rand(64, 1, D)*3,{}   # pictures that differ
    dec,text = decoders()
    make_endings(dec, feats[:16])
    for key,k,n in (('beam3_64', 3, 64), ('beam5_64', 5, 64), ('beam3_1', 3, 1)):
        def fast(r, imgs=None):
            with torch.no_grad(): return search(dec, dec.init_state(feats[:n] if imgs is None else imgs), beam_sz=k)
        def slow(r): return [text.beam_search(feats[i:i+1], k) for i in range(0, n, 8)]   # some of them, one at a time
        found = [h[0] for h in fast(0)]
        true = slow(0)
        assert [h.ids for h in found[::8]] == [ids for ids,_ in true] and all(abs(h.score - s) < 1e-3 for h,(_,s) in zip(found[::8], true))
        t = interleaved(rounds, fast=fast, text=slow)
        speeds[key] = n/t['fast'],len(true)/t['text']
        res[key] = speeds[key][0]/speeds[key][1]
        words = sum(len(h.ids) for h in found)/n
        print(f"{key}: {res[key]:.1f} times the textbook ({speeds[key][0]:.1f} captions a second of {words:.1f} words, the same as the textbook's at {speeds[key][1]:.2f})", flush=True)
    return res

def flickr(data, path, **kw):
    "A learner on Flickr8k with MobileNetV2, five captions an item"
    from caption_fastai.data import CaptionDataLoaders
    from caption_fastai.learner import caption_learner
    dls = CaptionDataLoaders.from_flickr8k(data, grouped=True, bs=32, num_workers=1, seed=1, **kw)
    return caption_learner(dls, 'mobilenet_v2', WEIGHTS, emb_sz=SZ, metrics=[], path=path)

WEIGHTS = 'IMAGENET1K_V1'

def cache(data, path, n=1024):
    "Rate of making features, as a share of the encoder's own rate on pictures that are already tensors"
    from caption_fastai.features import build_features
    encoder,pipeline = Encoder('mobilenet_v2', WEIGHTS).eval(),ImagePipeline()
    images = sorted(map(str, (Path(data)/'Images').iterdir()))[:n]
    imgs = torch.stack([pipeline(i) for i in images[:64]])
    @torch.no_grad()
    def bare(r):
        for _ in range(n//64): encoder(imgs)
    t = interleaved(3, bare=bare, build=lambda r: build_features(encoder, pipeline, images, path/'rate', rebuild=True))
    print(f"cache_build: {t['bare']/t['build']:.0%} of the encoder's own rate ({n/t['build']:.0f} pictures a second, bare {n/t['bare']:.0f})", flush=True)
    return dict(cache_build=t['bare']/t['build'])

def products(lens, vocab_sz, nf):
    "The matrix products of a batch alone, forward and backward: what no rearrangement of the decoder leaves out"
    rows = [int((lens > t).sum()) for t in range(1, int(lens.max()))]
    mm = lambda m, i, o: (torch.randn(m, i), torch.randn(i, o), torch.randn(m, o))
    image,whole = mm(len(lens)*49, nf, SZ),[mm(sum(rows), i, o) for i,o in ((SZ, 4*SZ), (SZ, vocab_sz), (SZ, SZ), (SZ, nf), (nf, 4*SZ), (SZ, 4*SZ))]
    steps = [[(x[:m], w, g[:m]) for x,w,g in whole[2:]] for m in rows]
    def run():
        x,w,g = image; x@w, x.T@g                                            # features take no gradient
        for x,w,g in [*whole[:2], *(o for step in steps for o in step)]: x@w, g@w.T
        for x,_,g in whole: x.T@g                                            # gradients of weights, all steps at once
    return run

def epoch(data, path):
    "A stage-1 epoch from the cache against the textbook's, put together from its parts"
    learn = flickr(data, path)
    learn.cache_features()
    learn.dls.valid.get_idxs = lambda: []
    with learn.no_bar(), learn.no_logging(): fast = seconds(learn.fit, 1)
    n = sum(len(o.ids) for o in learn.dls.train_ds.items)
    encoder = TextbookEncoder('mobilenet_v2', WEIGHTS).eval()
    dec,text = decoders(len(learn.dls.vocab), learn.model.encoder.nf)
    images = [o.image for o in learn.dls.train_ds.items[:32]]
    from PIL import Image
    def load(r): return torch.stack([load_picture(Image.open(i).convert('RGB')) for i in images])
    imgs,step,caps = load(0),Trainer(text, text_loss),[captions(l) for l in batches(32, 1, 3)]
    least = [products(l, len(learn.dls.vocab), learn.model.encoder.nf) for l in batches(32, 5, 3)]
    with torch.no_grad(): feats = encoder(imgs)
    @torch.no_grad()
    def encode(r): encoder(imgs)
    t = interleaved(3, load=load, encode=encode, step=lambda r: step(feats, caps[r]), products=lambda r: least[r]())
    slow = n/32*(t['load']/2 + t['encode'] + t['step'])   # a second process loads on the second core
    alone = n/160*t['products']
    print(f"epoch_stage1: {slow/fast:.1f} times the textbook ({fast:.0f} s for {n} captions; the textbook {slow:.0f} s: a batch of 32 "
          f"{t['load']/2:.2f} s to load, {t['encode']:.2f} s to encode, {t['step']:.2f} s to train). "
          f"The matrix products alone, which both need, take {alone:.0f} s: {slow/alone:.1f} times", flush=True)
    speeds['epoch_stage1'] = fast,slow
    return dict(epoch_stage1=slow/fast)

_MEMORY = """
import sys, threading, time, warnings; warnings.simplefilter('ignore')
peak,on = 0,True
def watch():
    global peak
    while on:
        peak = max(peak, next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon')))
        time.sleep(0.05)
sys.path.insert(0, sys.argv[1])
from bench_speed import flickr
from pathlib import Path
threading.Thread(target=watch, daemon=True).start()
learn = flickr(sys.argv[2], Path(sys.argv[3]))
learn.cache_features()
n = int(sys.argv[4])
learn.dls.train.get_idxs,learn.dls.valid.get_idxs = lambda idxs=learn.dls.train.get_idxs: list(idxs())[:n],lambda: []
with learn.no_bar(), learn.no_logging(): learn.fit(1)
print(peak*1024/1e9)
"""

def memory(data, path):
    "Peak anonymous memory of a stage-1 epoch from the cache (Linux); pages of the mapped file are not counted"
    def peak(n):
        return float(subprocess.run([sys.executable, '-c', _MEMORY, str(Path(__file__).parent), str(data), str(path), str(n)],
                                    capture_output=True, text=True, check=True).stdout.split()[-1])
    small,whole = peak(1000),peak(6000)
    print(f'rss_gb: {whole:.2f} GB with 6,000 images, {small:.2f} GB with 1,000', flush=True)
    return dict(rss_gb=whole)

def scaling(data, path, rounds):
    "Time per caption of a stage-1 epoch against the number of images, and time per step against the vocabulary"
    rows = []
    learn = flickr(data, path)
    learn.cache_features()
    idxs = list(learn.dls.train.get_idxs())
    learn.dls.valid.get_idxs = lambda: []
    sizes = 1000, 2000, 4000, 6000
    ms = {n: [] for n in sizes}
    for n in (*sizes, *sizes[::-1]):   # there and back, so that a machine that grows faster or slower does not bend the line
        learn.dls.train.get_idxs = lambda: idxs[:n]
        with learn.no_bar(), learn.no_logging(): ms[n].append(1000*seconds(learn.fit, 1)/(5*n))
    for n,t in ms.items():
        rows.append(('images', n, statistics.mean(t)))
        print(f"{n} images: {rows[-1][-1]:.2f} ms a caption ({t[0]:.2f} and {t[1]:.2f})", flush=True)
    trainers = {k: Trainer(decoders(k)[0], fast_loss) for k in (2500, 10000, 30000)}
    feats,lens = torch.randn(32, 49, D).relu(),batches(32, 5, rounds)
    caps = {k: [captions(l, k) for l in lens] for k in trainers}
    t = interleaved(rounds, **{str(k): lambda r,k=k,f=f: f(feats, caps[k][r]) for k,f in trainers.items()})
    for k,s in t.items():
        rows.append(('vocabulary', int(k), 1000*s))
        print(f'{k} words: {1000*s:.0f} ms a step of 160 captions', flush=True)
    return rows

def plot(fname):
    "The time of an epoch, and captions a second, of the textbook and of this"
    import matplotlib; matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    names = dict(train_same_32='training,\n1 caption a\npicture, 14x14', train_5cap_14='training,\n5 captions a\npicture, 14x14', train_5cap_7='training,\n5 captions a\npicture, 7x7',
                 beam3_64='beam 3,\n64 pictures', beam5_64='beam 5,\n64 pictures', beam3_1='beam 3,\n1 picture')
    fig,(left,right) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(1, 5), layout='constrained')
    for i,(name,color) in enumerate((('caption_fastai', 'tab:blue'), ('textbook', '0.65'))):
        v = [speeds[k][i] for k in names]
        bars = right.bar([j + 0.4*i for j in range(len(v))], v, 0.4, color=color, label=name)
        right.bar_label(bars, [f'{x:.2g}' if x < 100 else f'{x:.0f}' for x in v], fontsize=9)
        if 'epoch_stage1' in speeds: left.bar_label(left.bar(i, speeds['epoch_stage1'][i]/60, color=color), fmt='%.1f', fontsize=9)
    left.set_xticks([]); left.margins(y=0.08); left.set_title('minutes an epoch,\nstage 1 on Flickr8k', fontsize=10)
    right.set_xticks([j + 0.2 for j in range(len(names))], names.values(), fontsize=8); right.set_yscale('log'); right.set_title('captions a second', fontsize=10); right.legend(frameon=False)
    for ax in (left, right): ax.spines[['top', 'right']].set_visible(False)
    fig.savefig(fname, dpi=110)

def plot_scaling(rows, fname):
    "Time a caption against the number of images, time a step against the vocabulary"
    import matplotlib; matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    fig,axs = plt.subplots(1, 2, figsize=(9, 2.8), layout='constrained')
    for ax,what,label in zip(axs, ('images', 'vocabulary'), ('ms a caption', 'ms a step of 160 captions')):
        sizes,ms = zip(*[r[1:] for r in rows if r[0] == what])
        ax.plot(sizes, ms, 'o-')
        ax.set(xlabel=what, ylabel=label, xlim=0, ylim=(0, 1.15*max(ms))); ax.spines[['top', 'right']].set_visible(False); ax.grid(alpha=0.3)
    fig.savefig(fname, dpi=110)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', help='folder of Flickr8k')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--json', help='file for the ratios')
    p.add_argument('--plot', help='file for a picture')
    p.add_argument('--scaling', help='CSV file for the cost against size, with a picture beside it; needs --data')
    o = p.parse_args()
    warnings.filterwarnings('ignore')
    check_training()
    res = {**training(o.rounds), **searching(o.rounds)}
    if o.data:
        with tempfile.TemporaryDirectory() as path:
            path = Path(path)
            res = {**res, **cache(o.data, path), **epoch(o.data, path), **memory(o.data, path)}
            if o.scaling:
                rows = scaling(o.data, path, o.rounds)
                Path(o.scaling).write_text('what,size,ms\n' + ''.join(f'{a},{b},{c:.3f}\n' for a,b,c in rows))
                plot_scaling(rows, Path(o.scaling).with_suffix('.png'))
    if o.json: Path(o.json).write_text(json.dumps(res, indent=1))
    if o.plot: plot(o.plot)

if __name__ == '__main__': main()
