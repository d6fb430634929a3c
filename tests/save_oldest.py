"""Train a small captioner on scenes and save it in `tests/saved_oldest`, by the oldest fastai and PyTorch that settings.ini admits:

    make oldest && OMP_NUM_THREADS=1 MPLBACKEND=Agg build/oldest/bin/python tests/save_oldest.py

`test_captioner.py` holds what it must say. It is there to be read by all later versions: another one goes beside it, into a folder of its own."""
import sys, tempfile
from pathlib import Path

from fastai.vision.all import set_seed

from caption_fastai.captioner import Captioner
from caption_fastai.shapes import draw_scene, make_scene, write_shapes
from helpers import fit, load_dls, tiny_learner

if (folder := Path(__file__).parent/'saved_oldest').exists(): sys.exit(f'{folder}: is there already; name another folder')
set_seed(1, reproducible=True)
with tempfile.TemporaryDirectory() as tmp:
    learn = tiny_learner(load_dls(write_shapes(Path(tmp)/'scenes', n_train=600, n_valid=20, n_test=20)), p=0.1)
    fit(learn, 8, 1e-2)
learn.captioner().save(folder, half=True)
for seed in range(100_000, 100_012):
    first,second = Captioner.load(folder, 'cpu').caption(draw_scene(make_scene(seed)), n_best=2)
    print(seed, repr(first.text), f'{first.score:.3f}', f'{second.score:.3f}')
