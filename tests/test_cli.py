"The three commands from end to end: what they write, what they print, and how they end"
import csv, io, json, os, shutil, subprocess, sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest, torch
from PIL import Image

from caption_fastai import app, predict
from caption_fastai.app import caption_evaluate, caption_train
from caption_fastai.captioner import Captioner
from caption_fastai.images import ImagePipeline
from caption_fastai.model import caption_model
from caption_fastai.predict import caption_predict
from caption_fastai.recipes import Stage, recipes
from caption_fastai.shapes import write_shapes
from caption_fastai.text import Vocab
from helpers import command_fails

def start(command, *args):
    "Start an installed console script"
    argv = [str(o) for o in (Path(sys.executable).parent/command, *args)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding='utf-8')

def finish(process):
    "Standard output and standard error of a script that ends well"
    out,err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out,err

def test_console_scripts(captioner_dir, scenes, photos, tmp_path):
    "caption_predict prints an object a line and draws a figure, caption_evaluate prints one object and writes every caption"
    figure,rows_file = tmp_path/'a.png',tmp_path/'rows.json'
    predict = start('caption_predict', captioner_dir, *photos, '--json', '--attention', figure)
    evaluate = start('caption_evaluate', captioner_dir, '--data', scenes, '--split', 'test', '--beam_sz', 2, '--out', rows_file)
    out,err = finish(predict)
    said = [json.loads(l) for l in out.splitlines()]
    assert err == ''
    assert [o['image'] for o in said] == [str(p) for p in photos]
    assert all(o.keys() == {'image', 'caption', 'score'} and o['caption'] and o['score'] < 0 for o in said)
    assert min(Image.open(figure).size) > 100

    out,err = finish(evaluate)
    scores,rows = json.loads(out),json.loads(rows_file.read_text(encoding='utf-8'))
    assert err == '' and len(out.splitlines()) == 1
    assert {'bleu1', 'bleu2', 'bleu3', 'bleu4', 'n', 'signature'} <= scores.keys()
    assert scores['n'] == len(rows) == 20 and 'beam 2' in scores['signature'] and '5 references' in scores['signature']
    assert all(r.keys() == {'image', 'hypothesis', 'references'} and len(r['references']) == 5 for r in rows)
    assert {r['image'] for r in rows} == set((scenes/'Flickr_8k.testImages.txt').read_text().split())
    captions = {tuple(l.split('\t')) for l in (scenes/'Flickr8k.token.txt').read_text().splitlines()}
    said_true = {(f"{r['image']}#{i}", c) for r in rows for i,c in enumerate(r['references'])}
    assert said_true <= captions   # as they stand in the file
    assert {Path(o['image']).name for o in said} <= {r['image'] for r in rows}

def test_predict_prints_a_caption_a_line(captioner_dir, photos, capsys):
    "One picture gives its caption alone; several give name, tab, caption"
    captions = [c.text for c in Captioner.load(captioner_dir).caption(list(map(str, photos)), beam_sz=2)]
    caption_predict([str(captioner_dir), str(photos[0]), '--beam_sz', '2'])
    assert capsys.readouterr().out == f'{captions[0]}\n'
    caption_predict([str(captioner_dir), *map(str, photos), '--beam_sz', '2'])
    assert capsys.readouterr().out == ''.join(f'{p}\t{c}\n' for p,c in zip(photos, captions))

def test_predict_takes_files_folders_and_patterns(captioner_dir, photos, tmp_path, capsys):
    "Each picture once, a folder with what is below it in order; what is no picture there is left alone"
    (tmp_path/'a'/'b').mkdir(parents=True); (tmp_path/'empty').mkdir()
    names = ['a/2.jpg', 'a/b/1.jpg', 'a/[3].jpg', 'z.jpg']
    for n in names: shutil.copy(photos[0], tmp_path/n)
    (tmp_path/'a'/'notes.txt').write_text('no picture')
    def said(*args):
        caption_predict([str(captioner_dir), *(str(tmp_path/a) for a in args), '--beam_sz', '1'])
        return [l.split('\t')[0].removeprefix(f'{tmp_path}/') for l in capsys.readouterr().out.splitlines()]
    assert said('a', 'z.jpg') == ['a/2.jpg', 'a/[3].jpg', 'a/b/1.jpg', 'z.jpg']
    assert said('**/*.jpg', 'z.jpg') == ['a/2.jpg', 'a/[3].jpg', 'a/b/1.jpg', 'z.jpg']
    assert said('a/[3].jpg', 'z.*') == ['a/[3].jpg', 'z.jpg']
    command_fails(caption_predict, [captioner_dir, tmp_path/'empty'], 'empty', 'no picture in this folder')
    with pytest.raises(SystemExit): said('*.png')
    assert '*.png: there is no such picture' in capsys.readouterr().err

ROWS = dict(text=lambda f: [tuple(l.split('\t')) for l in f.read_text().splitlines()], json=lambda f: [(o['image'], o['caption']) for o in map(json.loads, f.read_text().splitlines())],
            csv=lambda f: [(o['image'], o['caption']) for o in csv.DictReader(f.open(newline=''))])

@pytest.mark.parametrize('form', ROWS)
def test_predict_goes_on_with_a_file(captioner_dir, scenes, tmp_path, form, capsys, monkeypatch):
    "Wherever a run was broken off, --resume makes the file whole, does nothing twice, and tries again what could not be read"
    folder,out = tmp_path/'a, "b"',tmp_path/'out'
    folder.mkdir()
    for p in sorted((scenes/'Images').iterdir())[:5]: shutil.copy(p, folder)
    argv = [str(captioner_dir), str(folder), '--beam_sz', '1', '--out', str(out), *([f'--{form}'] if form != 'text' else [])]
    caption_predict(argv)
    whole,rows = out.read_bytes(),ROWS[form](out)
    assert [Path(n).name for n,_ in rows] == sorted(p.name for p in folder.iterdir())
    assert capsys.readouterr().err.splitlines()[-1] == 'caption_predict: 5 captioned, 0 could not be read'
    asked,stream = [],Captioner.stream
    monkeypatch.setattr(Captioner, 'stream', lambda self, pictures, **kw: (asked.append(len(pictures)), stream(self, pictures, **kw))[1])
    for n in 3, len(whole)//2, len(whole) - 1, len(whole):
        out.write_bytes(whole[:n])
        caption_predict([*argv, '--resume'])
        assert ROWS[form](out) == rows and asked[-1] <= 5 - max(0, whole[:n].count(b'\n') - (form == 'csv'))
    assert capsys.readouterr().err.splitlines()[-1] == 'caption_predict: 0 captioned, 0 could not be read, 5 were there already'

    (folder/'zz.jpg').write_text('broken')
    for _ in range(2):
        with pytest.raises(SystemExit) as e: caption_predict([*argv, '--resume'])
        assert e.value.code == 1 and ROWS[form](out) == rows
        assert capsys.readouterr().err.splitlines()[-1] == 'caption_predict: 0 captioned, 1 could not be read, 5 were there already'

def test_predict_a_name_that_is_no_utf8(captioner_dir, photos, tmp_path):
    "Its caption has the name as the system has it, and the next picture is captioned, too"
    names = [os.fsencode(tmp_path) + b'/' + n for n in (b'a\xff.jpg', b'b.jpg')]
    for n in names: shutil.copy(photos[0], n)
    run = subprocess.run([Path(sys.executable).parent/'caption_predict', captioner_dir, tmp_path], capture_output=True, env={**os.environ, 'PYTHONIOENCODING': 'utf-8'}, timeout=300)
    assert run.returncode == 0, run.stderr
    assert [l.split(b'\t')[0] for l in run.stdout.splitlines()] == names

def test_predict_what_it_does_not_do(captioner_dir, scenes, photos, tmp_path):
    "Write over a picture, or draw the attention of a system that has none; pictures that it cannot read are told of"
    shutil.copy(photos[0], tmp_path/'a.jpg')
    command_fails(caption_predict, [captioner_dir, tmp_path/'a.jpg', '--out', tmp_path/'a.jpg'], '--out', 'is one of the pictures')
    assert (tmp_path/'a.jpg').read_bytes() == photos[0].read_bytes()
    model = caption_model(12, 'shapes_cnn', None, 'merge', emb_sz=16, n_hid=32).eval()
    Captioner(model, Vocab(list('abcdefgh')), ImagePipeline(48)).save(tmp_path/'merge')
    command_fails(caption_predict, [tmp_path/'merge', tmp_path/'a.jpg', '--attention', tmp_path/'a.png'], '--attention', 'merge')
    (tmp_path/'b.HEIC').write_bytes(b'x')
    run = subprocess.run([Path(sys.executable).parent/'caption_predict', captioner_dir, tmp_path], capture_output=True, text=True, timeout=300)
    assert '1 HEIC pictures are left out' in run.stderr and len(run.stdout.splitlines()) == 1

@pytest.mark.parametrize('form', ROWS)
def test_predict_leaves_another_file_alone(captioner_dir, photos, tmp_path, form):
    "What --out did not write is not gone on with, and not changed; nor does --resume stand alone"
    for content in b'notes\nof mine\nand more', b'\x89PNG\r\n\x1a\n\0\xff', b'["a"]\n':
        (tmp_path/'out').write_bytes(content)
        argv = [captioner_dir, photos[0], '--resume', '--out', tmp_path/'out', *([f'--{form}'] if form != 'text' else [])]
        command_fails(caption_predict, argv, 'out: not what these options write')
        assert (tmp_path/'out').read_bytes() == content
    command_fails(caption_predict, [captioner_dir, photos[0], '--resume'], '--resume', '--out')

def test_predict_leaves_a_note_alone(captioner_dir, photos, tmp_path):
    "Nor one of a single line, or a table or rows of something else"
    for form,content in ('text', b'a note'), ('text', b'a\tb\nc'), ('csv', b'a note'), ('csv', b'a,b,c\n1,2,3\n4'), ('json', b'{"a": 1}'), ('json', b'a note'):
        (tmp_path/'out').write_bytes(content)
        argv = [captioner_dir, photos[0], '--resume', '--out', tmp_path/'out', *([f'--{form}'] if form != 'text' else [])]
        command_fails(caption_predict, argv, 'out: not what these options write')
        assert (tmp_path/'out').read_bytes() == content

@pytest.mark.parametrize('form', ROWS)
def test_predict_names_of_two_lines(captioner_dir, photos, tmp_path, form, capsys):
    "Or with a tab, quotes, what a terminal obeys or what is no UTF-8: each form stays what it is, and is gone on with wherever it was cut off"
    folder,out = tmp_path/'a',tmp_path/'out'
    folder.mkdir()
    names = ['1\n2.jpg', '3\r4.jpg', '5\t6.jpg', '7\u20288.jpg', '9\x1b[31m.jpg', 'a\x85b.jpg', 'c"\n.jpg', 'd\\n.jpg', 'e\n\udcff.jpg']
    for n in names: shutil.copy(photos[0], folder/n)
    argv = [str(captioner_dir), str(folder), '--beam_sz', '1', '--max_len', '2', '--out', str(out), *([f'--{form}'] if form != 'text' else [])]
    caption_predict(argv)
    def rows():   # scores differ in the last digits, alone or together
        said = out.read_bytes().decode(errors='surrogateescape')
        if form == 'csv': found = [(r['image'], r['caption']) for r in csv.DictReader(io.StringIO(said, newline=''))]
        elif form == 'json': found = [(o['image'], o['caption']) for o in map(json.loads, said.splitlines())]
        else: found = [(json.loads(n) if n.startswith('"') else n, c) for n,c in (l.split('\t') for l in said.splitlines())]
        return [(Path(n).name, c) for n,c in found]
    whole,before = out.read_bytes(),rows()
    assert [n for n,_ in before] == names and (form == 'csv' or whole.isascii() and b'\x1b' not in whole)
    for n in whole.index(b'2.jpg') + 2, whole.index(b'8.jpg'), len(whole) - 1, len(whole):
        out.write_bytes(whole[:n])
        caption_predict([*argv, '--resume'])
        assert rows() == before
    assert capsys.readouterr().err.splitlines()[-1].endswith('0 captioned, 0 could not be read, 9 were there already')
    (folder/'z\n\x1b.jpg').write_text('broken')
    with pytest.raises(SystemExit): caption_predict([*argv, '--resume'])
    error,_ = capsys.readouterr().err.split('\n', 1)
    assert 'a/z .jpg: not a picture that can be read' in error and rows() == before

def test_predict_names_with_quotes(captioner_dir, photos, tmp_path, monkeypatch, capsys):
    "In front, so that none is taken for a name that was quoted"
    monkeypatch.chdir(tmp_path)
    for n in '"1".jpg', '"2': shutil.copy(photos[0], n)
    argv = [str(captioner_dir), '"1".jpg', '"2', '--beam_sz', '1', '--max_len', '2', '--out', 'out']
    caption_predict(argv)
    assert [json.loads(l.split('\t')[0]) for l in Path('out').read_text().splitlines()] == ['"1".jpg', '"2']
    caption_predict([*argv, '--resume'])
    assert capsys.readouterr().err.splitlines()[-1].endswith('2 were there already')

def test_predict_takes_a_picture_once(captioner_dir, photos, tmp_path, capsys, monkeypatch):
    "However its name is written, and in a folder with a link to itself; a pattern may mean folders; suffixes do not depend on the machine"
    monkeypatch.chdir(tmp_path)
    Path('holiday').mkdir(); Path('holiday/.hidden').mkdir()
    for n in 'b.jpg', '.c.jpg', '.hidden/d.jpg': shutil.copy(photos[0], Path('holiday')/n)
    Image.open(photos[0]).save('holiday/a.webp')
    Path('holiday/d.svg').write_text('<svg/>'); Path('holiday/loop').symlink_to('.', target_is_directory=True)
    assert predict._pictures(['holiday']) == predict._pictures(['holi*']) == predict._pictures(['holiday/']) == ['holiday/a.webp', 'holiday/b.jpg']
    assert predict._pictures(['holiday/b.jpg', './holiday/b.jpg', 'holiday', str(tmp_path/'holiday'/'b.jpg')]) == ['holiday/b.jpg', 'holiday/a.webp']
    argv = ['--beam_sz', '1', '--max_len', '2', '--out', 'out']
    caption_predict([str(captioner_dir), 'holiday', *argv])
    caption_predict([str(captioner_dir), str(tmp_path/'holiday'), *argv, '--resume'])
    assert capsys.readouterr().err.splitlines()[-1].endswith('0 captioned, 0 could not be read, 2 were there already')

def test_predict_shows_progress_on_a_terminal(captioner_dir, photos, capsys, monkeypatch):
    "The bar goes to standard error if that is a terminal, the captions do not change"
    argv = [str(captioner_dir), *map(str, photos), '--beam_sz', '1']
    caption_predict(argv); plain = capsys.readouterr()
    assert plain.err == ''
    class Terminal(io.StringIO):
        def isatty(self): return True
    monkeypatch.setattr(sys, 'stderr', Terminal())
    caption_predict(argv)
    assert '3/3' in sys.stderr.getvalue() and capsys.readouterr().out == plain.out

@pytest.mark.parametrize('command', [caption_train, caption_evaluate, caption_predict], ids=lambda f: f.__name__)
def test_help_and_wrong_options(command, capsys):
    "--help explains every option; a wrong option and none at all are one line of error under the usage"
    with pytest.raises(SystemExit) as e: command(['--help'])
    out = capsys.readouterr().out
    assert not e.value.code and out.startswith(f'usage: {command.__name__}')
    options = [l for l in out.splitlines() if l.startswith('  --')]
    assert len(options) >= 5
    for argv in (['--nonsense', '1'], []):
        with pytest.raises(SystemExit) as e: command(argv)
        assert e.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f'{command.__name__}: error: ')

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A training on a folder in Flickr8k's layout by the command: the folder that it wrote, and what it printed"
    tmp = tmp_path_factory.mktemp('cli')
    data,out = write_shapes(tmp/'data', n_train=30, n_valid=6, n_test=6),tmp/'runs'/'out'
    argv = f'''--data {data} --out {out} --arch shapes_cnn --size 96 --min_freq 1 --num_workers 0 --epochs 1,1
               --lr 1e-2,1e-3 --bs 16,8 --no-grouped --aug --emb_sz 16 --attn_sz 16 --n_hid 32 --dropout 0.1 --beam_sz 2 --seed 7'''.split()
    with redirect_stdout(io.StringIO()) as text: caption_train(argv)
    return out,text.getvalue(),data,argv

def test_train_writes_its_files(run):
    "The folder holds the captioner, the table of epochs, and the figures"
    out = run[0]
    figures = ['training.png', 'lr_find.png', *(f'attention_{i}.png' for i in range(1, 6))]
    for f in ['model.safetensors', 'config.json', 'vocab.json', 'history.csv', *figures]:
        assert (out/f).stat().st_size > 100, f
    for f in out.glob('*.png'): Image.open(f).verify()
    assert not list(out.glob('*.part'))
    rows = list(csv.DictReader((out/'history.csv').open()))
    assert [(r['stage'], r['batches']) for r in rows] == [('1', '10'), ('2', '29')]   # 150 captions by 16, then by 8
    assert all(float(r[c]) >= 0 for r in rows for c in ('train_loss', 'valid_loss', 'bleu4'))

def test_train_prints_what_happened(run):
    "The data, scores with their signature after each stage, the table of epochs, and five captions with the truth are printed"
    out,text,data,_ = run
    lines = text.splitlines()
    assert lines[0].startswith('vocabulary: ') and '30' in next(l for l in lines if l.startswith('train'))
    for stage in (1, 2):
        i = next(i for i,l in enumerate(lines) if l.startswith(f'after stage {stage}, test split: '))
        assert 'bleu4' in lines[i] and lines[i+1].startswith('  (nltk') and 'beam 2' in lines[i+1] and '6 images' in lines[i+1]
    head = next(i for i,l in enumerate(lines) if l.split()[:3] == ['stage', 'epoch', 'train_loss'])
    assert [l.split()[0] for l in lines[head+1:head+3]] == ['1', '2']
    refs = dict(l.split('#0\t') for l in (data/'Flickr8k.token.txt').read_text().splitlines() if '#0' in l)
    shown = [i for i,l in enumerate(lines) if l.startswith('  caption: ')]
    assert len(shown) == 5
    for i in shown: assert lines[i+1] == f'  true:    {refs[lines[i-1]]}'
    assert lines[-1] == f'captioner: {out}' and str(out/'training.png') in lines[-2]

def test_a_log_has_plain_lines(run):
    "Where standard output is no terminal there are no progress bars"
    text = run[1]
    assert not {'\r', '\b', '█', '\x1b'} & set(text) and '%|' not in text and '--------' not in text

def test_trained_captioner_gives_the_captions_it_printed(run, capsys):
    "What is saved is what was shown: the command captions the five pictures alike"
    out,text,data,_ = run
    lines = text.splitlines()
    shown = {lines[i-1]: l.removeprefix('  caption: ') for i,l in enumerate(lines) if l.startswith('  caption: ')}
    files = [data/'Images'/n for n in shown]
    caption_predict([str(out), *map(str, files), '--beam_sz', '2'])
    assert dict(zip(shown, (l.split('\t')[1] for l in capsys.readouterr().out.splitlines()))) == shown
    caption_evaluate([str(out), '--data', str(data), '--beam_sz', '2', '--no-meteor'])
    scores = json.loads(capsys.readouterr().out)
    assert {'cider', 'rouge_l', 'new', 'top5_accuracy', 'intervals'} <= set(scores) and 'meteor' not in scores
    assert f"bleu4 {scores['bleu4']:.1f}" in next(l for l in lines if l.startswith('after stage 2'))
    assert f"({scores['signature']})" in text

def test_evaluate_of_several_is_their_ensemble(captioner_dir, scenes, tmp_path, capsys):
    "The captions are those of `Captioner.ensemble`, and of captioners that do not fit together it is said which"
    first,other = Captioner.load(captioner_dir),Captioner.load(captioner_dir)
    other.model.decoder.out.weight.data.mul_(3).add_(torch.randn_like(other.model.decoder.out.weight)/3)
    rows_file,where = tmp_path/'rows.json',['--data', str(scenes), '--beam_sz', '2', '--no-meteor']
    caption_evaluate([str(captioner_dir), str(other.save(tmp_path/'other')), *where, '--out', str(rows_file)])
    rows = json.loads(rows_file.read_text(encoding='utf-8'))
    said = [r['hypothesis'] for r in rows]
    files = [scenes/'Images'/r['image'] for r in rows]
    alone = [[c.text for c in o.caption(files, beam_sz=2)] for o in (first, other)]
    assert said == [c.text for c in Captioner.ensemble([first, other]).caption(files, beam_sz=2)] and said not in alone
    strange = Captioner(first.model, first.vocab, ImagePipeline(64)).save(tmp_path/'strange')
    command_fails(caption_evaluate, [captioner_dir, strange, *where], 'number 2', '64')
    assert capsys.readouterr().out.count('\n') == 1   # the scores of the first call

def test_seed_gives_the_same_training_twice(run, tmp_path):
    "The command with the same seed writes the same weights, bit for bit"
    out,_,_,argv = run
    again = [str(tmp_path/'again') if o == str(out) else o for o in argv]
    caption_train(again)
    assert (tmp_path/'again'/'model.safetensors').read_bytes() == (out/'model.safetensors').read_bytes()

def test_a_stage_that_learns_words(run, tmp_path, monkeypatch, capsys):
    "It has no captions, which is told; features are stored when the next one begins"
    monkeypatch.setitem(recipes['scenes'], 'stages', [Stage(1, slice(1e-4, 1e-2), freeze=1, bs=16, bag_of_words=True), Stage(1, 1e-2, freeze=True, views=1)])
    caption_train(f'--data {run[2]} --out {tmp_path} --recipe scenes --size 96 --num_workers 0 --emb_sz 16 --attn_sz 16 --n_hid 32 --beam_sz 2 --cache_features'.split())
    out = capsys.readouterr().out
    assert out.index('after stage 1: the encoder has learned words') < out.index('features (36, 162) of 42 pictures') < out.index('after stage 2, test split: bleu1')

def test_interrupted_training_is_resumed(run, tmp_path, monkeypatch, capsys):
    "Interrupted after the first stage, with features from a file, the command says so in a line, and goes on with --resume"
    argv = [{str(run[0]): str(tmp_path), '--no-grouped': '--grouped'}.get(o, o) for o in run[3]] + ['--cache_features', '--views', '2']
    def stop(self): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(app._Report, 'after_fit', stop)
        command_fails(caption_train, argv, 'interrupted', '--resume')
    out = capsys.readouterr().out
    assert 'features (36, 162) of 72 pictures' in out and (tmp_path/'features').stat().st_size == 4096 + 72*(36*162*2 + 4)   # with check sums; 42, and the 30 to train on again
    caption_train([*argv, '--resume'])
    out = capsys.readouterr().out
    assert 'after stage 2' in out and 'of 72 pictures' not in out
    rows = list(csv.DictReader((tmp_path/'history.csv').open()))
    assert [(r['stage'], r['batches']) for r in rows] == [('1', '2'), ('2', '6')]   # 30 pictures by 16, then by 8
    command_fails(caption_train, [*argv, '--resume', '--lr', '1e-3'], 'progress_', 'other stages')

def test_train_goes_on_from_a_captioner(run, tmp_path, monkeypatch):
    "With --start the model and its words are the captioner's, new words come after them, and the recipe says how to train; the captioner takes no memory of a GPU"
    out,_,data,_ = run
    more = tmp_path/'more'
    shutil.copytree(data, more)
    tokens = more/'Flickr8k.token.txt'
    tokens.write_text(''.join(f'{l} somewhere\n' for l in tokens.read_text().splitlines()))
    argv = f'--data {more} --out {tmp_path/"new"} --start {out} --min_freq 1 --num_workers 0 --epochs 1 --bs 16 --lr 1e-3'.split()
    load,devices = Captioner.load,[]
    monkeypatch.setattr(Captioner, 'load', lambda folder, device=None: devices.append(device) or load(folder, device))
    caption_train(argv)
    assert devices == ['cpu']
    old,new = Captioner.load(out, 'cpu'),Captioner.load(tmp_path/'new', 'cpu')
    assert new.vocab.itos == [*old.vocab.itos, 'somewhere']
    assert new.model.config == {**old.model.config, 'vocab_sz': len(new.vocab)} and new.pipeline == old.pipeline
    command_fails(caption_train, [*argv, '--arch', 'resnet18'], '--arch resnet18', '--start')
    command_fails(caption_train, [*argv, '--emb_sz', '32'], 'emb_sz', 'a captioner brings its own model')
    command_fails(caption_train, [*argv, '--size', '64'], 'size=64', 'size=96')
    command_fails(caption_train, [*argv, '--start', str(tmp_path/'nowhere')], str(tmp_path/'nowhere'))

@pytest.fixture
def asks(monkeypatch, tmp_path, run):
    "What the command asks of `CaptionDataLoaders` and of `caption_learner`, without a training"
    class Asked(Exception): pass
    def asked(dls, **kw): raise Asked(dls, kw)
    monkeypatch.setattr(app, 'caption_learner', asked)
    def f(args):
        with pytest.raises(Asked) as e: caption_train(f'--data {run[2]} --out {tmp_path} --num_workers 0 {args}'.split())
        return e.value.args
    return f

def test_size_of_the_recipe(asks):
    "It stays beside the recipe's own encoder; another encoder brings its own"
    assert [asks(o)[0].pipeline.size for o in ('--arch mobilenet_v2', '', '--arch resnet18', '--arch resnet18 --size 96')] == [256, 256, 224, 96]

def test_options_of_the_model(asks):
    kw = asks('--grid 5 --deep_output --no-train_vectors')[1]
    assert kw.items() >= dict(grid=5, deep_output=True, train_vectors=False).items()
    assert not {'grid', 'deep_output', 'train_vectors'} & asks('')[1].keys()
    assert [asks(f'--weights {w}')[1]['weights'] for w in ('none', 'None', 'IMAGENET1K_V1')] == [None, None, 'IMAGENET1K_V1']   # errors of the library say None

def test_pictures_that_lie_elsewhere(asks, captioner_dir, scenes, photos, tmp_path, capsys):
    "With --img_path the captions need not lie with the pictures; where each picture has its text beside it, that is refused"
    data = tmp_path/'captions'; data.mkdir()
    for f in scenes.glob('Flickr*.txt'): shutil.copy(f, data)
    where = f'--data {data} --img_path {scenes}'
    assert {Path(o.image).parent for o in asks(where)[0].train_ds.items} == {scenes/'Images'}
    capsys.readouterr()
    caption_evaluate([str(captioner_dir), *where.split(), '--beam_sz', '1', '--no-meteor'])
    assert json.loads(capsys.readouterr().out)['n'] == 20
    beside = tmp_path/'beside'; beside.mkdir()
    shutil.copy(photos[0], beside); (beside/photos[0].name).with_suffix('.txt').write_text('A scene')
    command_fails(caption_evaluate, [captioner_dir, '--data', beside, '--img_path', scenes], f'img_path={scenes}', 'leave it out')

def test_split_by_chance_is_that_of_evaluation(asks, captioner_dir, scenes, tmp_path, capsys):
    "Where the data name no split, that which caption_evaluate draws is the one of the training, whatever its --seed: no picture is trained on and scored"
    shutil.copytree(scenes/'Images', tmp_path/'data'/'Images'); shutil.copy(scenes/'Flickr8k.token.txt', tmp_path/'data')
    dls = asks(f'--data {tmp_path/"data"} --seed 7')[0]
    capsys.readouterr()
    caption_evaluate([str(captioner_dir), '--data', str(tmp_path/'data'), '--split', 'valid', '--beam_sz', '1', '--no-meteor', '--out', str(tmp_path/'rows.json')])
    assert {r['image'] for r in json.loads((tmp_path/'rows.json').read_text())} == {Path(o.image).name for o in dls.valid_ds.items}
    assert dls.train.seed == 7

def test_views_of_what_is_not_cached(run):
    command_fails(caption_train, [*run[3], '--views', '2'], '--views 2', '--cache_features')

def test_train_another_system_than_the_recipe(run, tmp_path):
    "The default recipe beside --system: its sizes that the system does not have are left out, those given are refused"
    argv = f'--data {run[2]} --out {tmp_path} --system merge --arch shapes_cnn --size 96 --min_freq 1 --num_workers 0 --epochs 1 --bs 16 --lr 1e-2 --no-aug --n_hid 32'.split()
    caption_train(argv)
    config = Captioner.load(tmp_path).model.config
    assert (config['system'], config['n_hid']) == ('merge', 32) and 'proj_sz' not in config
    command_fails(caption_train, [*argv, '--proj_sz', '8'], 'proj_sz=8', 'merge has no such argument')

def test_train_into_the_same_folder_again(run):
    "A second run into the same folder replaces what is there"
    out,_,_,argv = run
    caption_train([*argv, '--epochs', '1', '--bs', '8', '--lr', '1e-2'])
    assert len((out/'history.csv').read_text().splitlines()) == 2
