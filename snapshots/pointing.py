"""Measures snapshots/pointing.csv: `python snapshots/pointing.py STAGE1 STAGE2 N`

STAGE1 and STAGE2 are folders that `caption_train --data shapes --seed 1` wrote, STAGE1 with `--epochs 2` and so after the decoder alone.
The first N test scenes of STAGE2 are asked, by LIME every fourth; the table is written every ten scenes, so that it can be stopped."""
import sys
from pathlib import Path

import pandas as pd
from fastai.torch_core import set_seed

from caption_fastai.attribution import METHODS, RELATIONS, forced_caption, pointing_game, pointing_table
from caption_fastai.captioner import Captioner
from caption_fastai.captions import read_flickr8k, refs_of
from caption_fastai.shapes import read_scenes


def asked(refs):
    "Of the true captions of each picture, one with a relation word if there is one"
    return {picture: next((t for t in texts if RELATIONS & set(t.lower().split())), texts[0]) for picture,texts in refs.items()}


def main(*runs, n):
    folder = Path(runs[-1])/'scenes'
    captioners,scenes = {i: Captioner.load(r) for i,r in enumerate(runs, 1)},read_scenes(folder)
    games = []
    for k,(picture,text) in enumerate(list(asked(refs_of(read_flickr8k(folder), 'test')).items())[:n]):
        for stage,c in captioners.items():
            set_seed(42)
            methods = [m for m in METHODS if m != 'lime' or k%4 == 0]
            games.append(pointing_game(c, {picture: scenes[Path(picture).name]}, methods, [forced_caption(c, picture, text)]).assign(stage=stage))
        if k%10 == 9: write(pd.concat(games))


def write(game):
    tables = {stage: pointing_table(g).assign(scenes=g.groupby(['method', 'kind']).picture.nunique()) for stage,g in game.groupby('stage')}
    t = pd.concat(tables, names=['stage']).reset_index()
    t.insert(t.columns.get_loc('hit') + 1, 'hits', (t.hit*t.words).round(1))   # of chance, those to be expected
    t.round(4).to_csv(Path(__file__).parent/'pointing.csv', index=False)


if __name__ == '__main__': main(*sys.argv[1:3], n=int(sys.argv[3]))
