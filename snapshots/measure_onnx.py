"""Measures snapshots/onnx.csv: `python snapshots/measure_onnx.py CAPTIONER DATA N`

The captioner is exported in 32 and in 8 bits; PyTorch and both graphs caption the first N pictures of the validation split of DATA, one thread each.
They take turns, 20 pictures at a time, in another order each time; `ms` is CPU time for a picture, opening it included.
`ties`: captions that differ while their scores, each by its own program, are closer than 1e-4."""
import sys, time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd, torch

from caption_fastai.caption_onnx import OnnxCaptioner
from caption_fastai.captioner import Captioner
from caption_fastai.captions import read_captions, refs_of
from caption_fastai.export import export_onnx
from caption_fastai.metrics import score_captions

SEARCHES = dict(beam_sz=3, length_penalty=0.), dict(beam_sz=5, length_penalty=0.7)


def by_torch(captioner): return lambda pictures, **kw: [(c.text, c.score) for c in captioner.caption(pictures, bs=16, **kw)]
def by_onnx(folder):
    captioner = OnnxCaptioner(folder, threads=1)
    return lambda pictures, **kw: [(o['text'], o['score']) for o in captioner.caption(pictures, bs=16, **kw)]

def megabytes(folder, pattern): return sum(f.stat().st_size for f in Path(folder).glob(pattern))/1e6


def in_turns(systems, pictures, kw):
    "Captions with scores, and CPU seconds, by system"
    said,seconds = {n: [] for n in systems},dict.fromkeys(systems, 0.)
    for i in range(0, len(pictures), 20):
        order = list(systems)[i//20 % len(systems):] + list(systems)[:i//20 % len(systems)]
        for n in order:
            start = time.process_time()
            said[n] += systems[n](pictures[i:i+20], **kw)
            seconds[n] += time.process_time() - start
    return said,seconds


def measure(folder, data, n, tmp):
    torch.set_num_threads(1)
    captioner,refs = Captioner.load(folder, 'cpu'),refs_of(read_captions(data), 'valid')
    refs = dict(list(refs.items())[:n])
    systems,mb = dict(torch=by_torch(captioner)),dict(torch=megabytes(folder, '*.safetensors'))
    for bits in (32, 8):
        out = export_onnx(captioner, Path(tmp)/str(bits), bits)
        systems[f'onnx {bits}'],mb[f'onnx {bits}'] = by_onnx(out),megabytes(out, '*.onnx')
    for f in systems.values(): f(list(refs)[:2])   # first calls are slow
    for kw in SEARCHES:
        said,seconds = in_turns(systems, list(refs), kw)
        for name,mine in said.items():
            pairs = [(abs(a[1] - b[1]), a[0] == b[0]) for a,b in zip(said['torch'], mine)]
            scores = score_captions({p: text for p,(text,_) in zip(refs, mine)}, refs, measures=('bleu', 'cider'))
            low,high = scores['intervals']['bleu4']
            yield dict(**kw, program=name, mb=mb[name], pictures=len(pairs), equal=sum(same for _,same in pairs), ties=sum(d < 1e-4 and not same for d,same in pairs),
                       score_difference=max((d for d,same in pairs if same), default=0.), ms=1e3*seconds[name]/len(pairs), times_torch=seconds['torch']/seconds[name],
                       bleu4=scores['bleu4'], bleu4_low=low, bleu4_high=high, cider=scores['cider'])
        for p,a,b in zip(refs, said['torch'], said['onnx 32']):
            if a[0] != b[0]: print(f'{kw} {Path(p).name}:\n  torch {a}\n  onnx  {b}', flush=True)


def write(rows):
    digits = {**dict.fromkeys(('mb', 'ms', 'bleu4', 'bleu4_low', 'bleu4_high', 'cider'), 1), 'times_torch': 2, 'score_difference': 6}
    pd.DataFrame(rows).round(digits).to_csv(Path(__file__).parent/'onnx.csv', index=False)


if __name__ == '__main__':
    rows = []
    with TemporaryDirectory() as tmp:
        for row in measure(*sys.argv[1:3], int(sys.argv[3]), tmp):
            rows.append(row)
            write(rows)   # it can be stopped
