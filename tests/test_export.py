"Graphs of a captioner say what it says, and the file beside them needs neither PyTorch nor fastai"
import subprocess, sys

import pytest
for package in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(package, reason=f'{package} is not there: pip install "caption_fastai[export]"')

from caption_fastai.caption_onnx import OnnxCaptioner
from caption_fastai.captioner import Captioner
from caption_fastai.export import caption_export
from caption_fastai.learner import caption_learner
from helpers import command_fails, fails, fit

@pytest.fixture(scope='module')
def graphs(captioner_dir, tmp_path_factory):
    "What caption_export writes"
    out = tmp_path_factory.mktemp('graphs')/'onnx'
    caption_export([str(captioner_dir), str(out)])
    return out

@pytest.mark.parametrize('kw', [dict(beam_sz=1), dict(beam_sz=3), dict(beam_sz=5, length_penalty=0.7), dict(beam_sz=3, max_len=2)], ids=str)
def test_graphs_say_what_pytorch_says(graphs, captioner_dir, scenes, kw):
    "The same words with the same scores, for pictures together and one by one"
    photos = sorted((scenes/'Images').iterdir())[::7]
    truth,onnx = Captioner.load(captioner_dir, 'cpu').caption(photos, **kw),OnnxCaptioner(graphs, threads=1)
    for bs in (1, 8):
        made = onnx.caption(photos, bs=bs, **kw)
        assert [o['text'] for o in made] == [c.text for c in truth] and [o['words'] for o in made] == [c.words for c in truth]
        assert [o['score'] for o in made] == pytest.approx([c.score for c in truth], abs=1e-3)
    if 'max_len' not in kw: assert len({c.text for c in truth}) > 3

@pytest.mark.parametrize('system,kw', [('spatial_attention', dict(proj_sz=24)), ('show_attend_tell', dict(cell='gru')), ('show_and_tell', dict(n_layers=2)), ('merge', {})], ids=str)
def test_other_systems_in_sixteen_bits(dls, photos, tmp_path, system, kw):
    "The first one as the captioner in `snapshots`: features through a layer of their own, weights kept in 16 bits"
    learn = caption_learner(dls, 'shapes_cnn', 'SHAPES', system=system, emb_sz=16, n_hid=32, p=0., metrics=[], path=tmp_path, **kw)
    folder = fit(learn, 2, 2e-2).captioner().save(tmp_path/'half', half=True)
    caption_export([str(folder), str(tmp_path/'onnx')])
    for kw in (dict(beam_sz=1), dict(beam_sz=5, length_penalty=0.7)):
        truth,made = Captioner.load(folder, 'cpu').caption(photos, **kw),OnnxCaptioner(tmp_path/'onnx', threads=1).caption(photos, **kw)
        assert [o['text'] for o in made] == [c.text for c in truth]
        assert [o['score'] for o in made] == pytest.approx([c.score for c in truth], abs=1e-3)

def test_eight_bits(graphs, captioner_dir, scenes, tmp_path):
    "A quarter to a half of the size, and most captions the same"
    caption_export([str(captioner_dir), str(tmp_path/'small'), '--bits', '8'])
    def size(folder): return sum(f.stat().st_size for f in folder.glob('*.onnx'))
    assert size(tmp_path/'small') < size(graphs)/2
    photos = sorted((scenes/'Images').iterdir())[:40]
    a,b = (OnnxCaptioner(f, threads=1).caption(photos) for f in (graphs, tmp_path/'small'))
    assert sum(x['text'] == y['text'] for x,y in zip(a, b)) > 25

def test_arguments_of_the_search(graphs, photos):
    c = OnnxCaptioner(graphs, threads=1)
    for kw in dict(beam_sz=0), dict(beam_sz=10**6), dict(max_len=0), dict(length_penalty=-1):
        (name,value), = kw.items()
        fails(ValueError, lambda: c.caption(photos, **kw), f'{name}={value}', 'expected')

def test_the_file_beside_needs_no_pytorch(graphs, captioner_dir, photos):
    "A program of its own, which imports numpy, PIL and onnxruntime"
    code = f'''
import runpy, sys
sys.argv = {['caption_onnx.py', *map(str, photos)]!r}
runpy.run_path({str(graphs/'caption_onnx.py')!r}, run_name='__main__')
assert not {{'torch', 'torchvision', 'fastai', 'caption_fastai', 'nltk', 'matplotlib'}} & set(sys.modules)
'''
    run = subprocess.run([sys.executable, '-I', '-c', code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    captions = [c.text for c in Captioner.load(captioner_dir, 'cpu').caption(photos)]
    assert run.stdout == ''.join(f'{p}\t{c}\n' for p,c in zip(photos, captions))
    assert len((graphs/'caption_onnx.py').read_text().splitlines()) < 130

def test_errors_of_the_command(captioner_dir, tmp_path, monkeypatch):
    command_fails(caption_export, [tmp_path/'nowhere', tmp_path/'out'], tmp_path/'nowhere')
    command_fails(caption_export, [captioner_dir, tmp_path/'out', '--bits', 16], 'bits=16')
    monkeypatch.setitem(sys.modules, 'onnx', None)
    command_fails(caption_export, [captioner_dir, tmp_path/'out'], 'caption_fastai[export]')
    assert not (tmp_path/'out').exists()
