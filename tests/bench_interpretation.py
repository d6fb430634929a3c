"""Time of `CaptionInterpretation.from_learner` beside that of `learn.evaluate`, both with a beam of 3, over the validation split, by medians of interleaved rounds.

    OMP_NUM_THREADS=1 python tests/bench_interpretation.py --data flickr8k [--captioner snapshots/flickr8k] [--rounds 3]"""
import argparse
from pathlib import Path

from bench_speed import interleaved
from caption_fastai.captioner import Captioner
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.learner import caption_learner
from caption_fastai.metrics import WITHOUT_JAVA
from caption_fastai.mistakes import CaptionInterpretation

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', help='folder or file of captions', required=True)
    p.add_argument('--captioner', default=str(Path(__file__).parents[1]/'snapshots'/'flickr8k'))
    p.add_argument('--rounds', type=int, default=3)
    o = p.parse_args()
    captioner = Captioner.load(o.captioner)
    learn = caption_learner(CaptionDataLoaders.from_flickr8k(o.data, grouped=True, num_workers=0, **captioner.data_args()), captioner)
    seconds = interleaved(o.rounds, evaluate=lambda r: learn.evaluate(beam_sz=3, measures=WITHOUT_JAVA, n_boot=0), interpret=lambda r: CaptionInterpretation.from_learner(learn, beam_sz=3))
    n = len(learn.dls.refs('valid'))
    print(f"{n} pictures: evaluate {seconds['evaluate']:.0f} s, CaptionInterpretation {seconds['interpret']:.0f} s, {seconds['interpret']/seconds['evaluate']:.2f} times as long")

if __name__ == '__main__': main()
