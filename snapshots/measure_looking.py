"""Measures rows of snapshots/looking.csv: `python snapshots/measure_looking.py OUT SEED VARIANT ...`, VARIANT one or more of VARIANTS

Each variant of attention is trained by the recipe `scenes`, on the same scenes. It reads one true caption of every test scene, one with a relation word if there is one, and its maps are measured by the pointing game (`14c_attribution`).
Scores and right captions are of its own captions of the test scenes, with a beam of 3. One thread."""
import sys
from pathlib import Path

import pandas as pd, torch
from fastai.torch_core import set_seed

from caption_fastai.attribution import forced_caption, pointing_game, pointing_table
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.learner import caption_learner
from caption_fastai.recipes import recipe_data
from caption_fastai.shapes import read_scenes, score_scenes
from pointing import asked

ROWS = Path(__file__).with_name('looking.csv')
VARIANTS = {
    'show_attend_tell': {},
    'show_attend_tell, lambda_attn=1': dict(lambda_attn=1.),
    "show_attend_tell, cell='gru'": dict(cell='gru'),
    'spatial_attention': dict(system='spatial_attention'),
    'spatial_attention, lambda_attn=1': dict(system='spatial_attention', lambda_attn=1.),
}


def main(out, seed, *variants):
    torch.set_num_threads(1)
    out,seed = Path(out),int(seed)
    dls = CaptionDataLoaders.from_shapes(out/'scenes', seed=seed, num_workers=0, **recipe_data('scenes'))
    scenes = read_scenes(out/'scenes')
    texts = asked(dls.refs('test'))
    for variant in variants:
        set_seed(seed)
        learn = caption_learner(dls, recipe='scenes', path=out, metrics=[], **VARIANTS[variant])
        with learn.no_bar(), learn.no_logging(): learn.fit_stages()
        captioner = learn.captioner()
        game = pointing_game(captioner, {p: scenes[Path(p).name] for p in texts}, ['alpha'], [forced_caption(captioner, *o) for o in texts.items()])
        t = pointing_table(game).loc['alpha']
        s = learn.evaluate('test', beam_sz=3, measures=['bleu'], top5=False)
        row = dict(variant=variant, seed=seed, bleu4=s['bleu4'], right=score_scenes({Path(k).name: v for k,v in learn.hyps.items()}, scenes)['ok'],
                   **{f'{k}_{c}': t.loc[k, c] for k in t.index for c in ('words', 'hit', 'near', 'drop')})
        pd.DataFrame([row]).round(4).to_csv(ROWS, mode='a', header=not ROWS.exists(), index=False)


if __name__ == '__main__': main(*sys.argv[1:])
