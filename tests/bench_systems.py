"""Time of the systems that `22_tutorial.systems` compares: an epoch of Flickr8k from features on disk and 1,000 captions, by medians of interleaved rounds.

    OMP_NUM_THREADS=1 python tests/bench_systems.py [--rounds 3] [--csv FILE]

16 photographs with five captions a batch, word vectors of 300, a state of 512, 2,539 words, 1,280 features in 49 places or pooled; made-up
features and captions, whose lengths are those of Flickr8k. With --csv the seconds go into a table of `run_grid`."""
import argparse
from functools import partial

import pandas as pd, torch

from bench_speed import Trainer, batches, captions, fast_loss, interleaved, make_endings
from caption_fastai.model import SYSTEMS
from caption_fastai.search import search

K,D,L,BEAMS = 2539,1280,49,(1, 3, 5)

def learn(trainer, feats, caps, r):
    for c in caps: trainer(feats, c)

@torch.no_grad()
def caption(dec, feats, beam_sz, r): search(dec, dec.init_state(feats), beam_sz=beam_sz, length_penalty=0.7)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--csv', help='table of run_grid, whose seconds are replaced by these')
    o = p.parse_args()
    caps = [captions(lens, K) for lens in batches(16, 5, 10)]
    jobs = {}
    for name,cls in SYSTEMS.items():
        torch.manual_seed(0)
        trained,speaks = (cls(K, D, emb_sz=300, n_hid=512, p=0.3) for _ in range(2))
        feats = torch.randn(64, *(() if cls.pooled else (L,)), D).relu()
        feats *= torch.rand(64, *[1]*(feats.ndim - 1))*3   # pictures that differ
        make_endings(speaks, feats)
        jobs[f'{name} epoch'] = partial(learn, Trainer(trained, fast_loss), feats[:16], caps)
        for b in BEAMS: jobs[f'{name} {b}'] = partial(caption, speaks, feats, b)
    seconds = interleaved(o.rounds, **jobs)
    rows = {n: dict(epoch_s=seconds[f'{n} epoch']*6000/16/len(caps), **{f'beam {b}': seconds[f'{n} {b}']*1000/64 for b in BEAMS}) for n in SYSTEMS}
    table = pd.DataFrame(rows).T
    print(f'seconds an epoch and for 1,000 captions:\n{table.round(1)}\n\nthe same as a multiple of {table.index[0]}:\n{(table/table.iloc[0]).round(2)}')
    if not o.csv: return
    grid = pd.read_csv(o.csv)
    grid['epoch_s'] = [round(rows[s]['epoch_s'], 1) for s in grid.system]
    grid['s_per_1000'] = [round(rows[s][f'beam {b}'], 1) for s,b in zip(grid.system, grid.beam_sz)]
    grid.to_csv(o.csv, index=False)

if __name__ == '__main__': main()
