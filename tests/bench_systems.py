"""Time of the systems that `22_tutorial.systems` compares: an epoch of Flickr8k from features on disk and 1,000 captions, by medians of interleaved rounds.

    OMP_NUM_THREADS=1 python tests/bench_systems.py [--rounds 5]

16 photographs with five captions a batch, word vectors of 300, a state of 512, 2,539 words, 1,280 features in 49 places or pooled; made-up
features and captions, whose lengths are those of Flickr8k."""
import argparse

import torch

from bench_speed import Trainer, batches, captions, fast_loss, interleaved, make_endings
from caption_fastai.model import SYSTEMS
from caption_fastai.search import search

K,D,L = 2539,1280,49

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=5)
    rounds = p.parse_args().rounds
    caps = [captions(lens, K) for lens in batches(16, 5, 10)]
    train,say = {},{}
    for name,cls in SYSTEMS.items():
        torch.manual_seed(0)
        shape = (D,) if cls.pooled else (L, D)
        dec,other = (cls(K, D, emb_sz=300, n_hid=512, p=0.3) for _ in range(2))
        trainer,feats = Trainer(dec, fast_loss),torch.randn(16, *shape).relu()
        def learn(r, trainer=trainer, feats=feats):
            for c in caps: trainer(feats, c)
        pictures = torch.randn(64, *shape).relu()*torch.rand(64, *[1]*len(shape))*3
        make_endings(other, pictures)
        @torch.no_grad()
        def caption(r, dec=other, pictures=pictures): search(dec, dec.init_state(pictures), beam_sz=5)
        train[name],say[name] = learn,caption
    epoch,caption = ({k: s*times for k,s in interleaved(rounds, **jobs).items()} for jobs,times in ((train, 6000/16/len(caps)), (say, 1000/64)))
    first = next(iter(SYSTEMS))
    for k in SYSTEMS:
        print(f'{k}: an epoch {epoch[k]:.0f} s, {epoch[k]/epoch[first]:.2f} times {first}; 1,000 captions with a beam of 5 {caption[k]:.1f} s, {caption[k]/caption[first]:.2f} times')

if __name__ == '__main__': main()
