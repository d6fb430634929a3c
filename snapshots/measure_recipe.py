"""Measures snapshots/flickr8k_seeds.csv: `python snapshots/measure_recipe.py DATA OUT SEED [THREADS]`

Trains the recipe flickr8k as `caption_train --cache_features` does and scores it on the validation split after each stage in which it learns to speak, with beams of 1, 3 and 5.
`minutes` are those since this call began, features on disk included, scores left out; the captioner after each stage is in OUT, and training.png.
A row is written as soon as it is known; a run that was interrupted goes on when it is called again."""
import sys, time
from pathlib import Path

import pandas as pd, torch
from fastai.vision.all import Callback, set_seed

import caption_fastai.interpret  # noqa: F401 - gives learners their plots
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.learner import caption_learner
from caption_fastai.recipes import recipe_data

ROWS = Path(__file__).with_name('flickr8k_seeds.csv')
INTERVALS = 'bleu1', 'bleu2', 'bleu3', 'bleu4', 'cider', 'rouge_l', 'meteor'
OTHERS = 'mean_length', 'length_ratio', 'distinct', 'n_words', 'new', 'top5_accuracy'


class Score(Callback):
    "Captioner and scores after each stage"
    order = 70
    def __init__(self, out, seed): self.out,self.seed,self.start = out,seed,time.time()
    def after_fit(self):
        if hasattr(self, 'bag_of_words'): return
        stage,minutes,begun = self.history.stage,(time.time() - self.start)/60,time.time()
        self.learn.captioner().save(self.out/f'stage{stage}')
        for beam in 1,3,5:
            s = self.learn.evaluate(beam_sz=beam, length_penalty=0.7)
            row = dict(seed=self.seed, stage=stage, beam_sz=beam, minutes=round(minutes),
                       **{n: round(v, 2) for k in INTERVALS if k in s for n,v in zip((k, f'{k}_low', f'{k}_high'), (s[k], *s['intervals'][k]))},
                       **{k: round(s[k], 3) for k in OTHERS if k in s}, signature=s['signature'])
            pd.DataFrame([row]).to_csv(ROWS, mode='a', header=not ROWS.exists(), index=False)
        self.start += time.time() - begun


def main(data, out, seed, threads=1):
    torch.set_num_threads(int(threads))
    out,seed = Path(out),int(seed)
    set_seed(seed)
    dls = CaptionDataLoaders.from_flickr8k(data, seed=seed, num_workers=1, **recipe_data('flickr8k'))
    report = Score(out, seed)
    learn = caption_learner(dls, recipe='flickr8k', weights='IMAGENET1K_V1', path=out, history=out/'history.csv')
    with learn.no_bar(): learn.fit_stages(cbs=report, resume=(out/'models').exists(), cache_features=True)
    learn.plot_training().savefig(out/'training.png', dpi=80, bbox_inches='tight')


if __name__ == '__main__': main(*sys.argv[1:])
