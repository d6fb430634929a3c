"""Seconds and memory for the table of a data set of COCO's size: 118,287 pictures (empty files), 591,753 captions.

    python tests/bench_coco.py [--images 118287] [--captions 591753] [--rounds 3]

Each round is a process of its own. `coco` reads captions_train2017.json, `karpathy` dataset_coco.json with the tokens of each sentence."""
import argparse, json, random, resource, statistics, subprocess, sys, time
from pathlib import Path
from tempfile import TemporaryDirectory

WORDS = 'a man woman dog cat street table plate on in of with the red blue small large riding holding sitting standing next to'.split()

def make(path, n_img, n_cap):
    "Made-up files as long as the real ones"
    rng = random.Random(0)
    caps = [rng.randrange(n_img) for _ in range(n_cap - n_img)] + list(range(n_img))   # at least one each
    rng.shuffle(caps)
    anns = [dict(image_id=im, id=i, caption=' '.join(rng.choices(WORDS, k=10)).capitalize() + '.') for i,im in enumerate(caps)]
    images = [dict(license=3, file_name=f'{i:012}.jpg', coco_url=f'http://images.cocodataset.org/train2017/{i:012}.jpg', height=360, width=640,
                   date_captured='2013-11-14 11:18:45', flickr_url='http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg', id=i) for i in range(n_img)]
    (path/'train2017').mkdir()
    for im in images: (path/'train2017'/im['file_name']).touch()
    (path/'captions_train2017.json').write_text(json.dumps(dict(info={}, licenses=[], images=images, annotations=anns)))
    sents = [[] for _ in images]
    for a in anns: sents[a['image_id']].append(dict(tokens=a['caption'][:-1].lower().split(), raw=a['caption'], imgid=a['image_id'], sentid=a['id']))
    split = lambda i: 'train' if i % 12 else 'val'
    karpathy = [dict(filepath='train2017', sentids=[s['sentid'] for s in ss], filename=im['file_name'], imgid=im['id'], split=split(im['id']), sentences=ss, cocoid=im['id'])
                for im,ss in zip(images, sents)]
    (path/'dataset_coco.json').write_text(json.dumps(dict(images=karpathy, dataset='coco')))

def read(file):
    "Read `file` in this process; prints captions, seconds, seconds of processor time, and the most megabytes that the process had"
    from caption_fastai.captions import read_captions
    start,cpu = time.perf_counter(),time.process_time()
    t = read_captions(file)
    print(len(t), time.perf_counter() - start, time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10))

def measure(images=118_287, captions=591_753, rounds=3):
    "Yields for each form its name, the bytes of its file and, of each round, what `read` prints"
    def process(*argv): return subprocess.run([sys.executable, __file__, *argv], capture_output=True, text=True, check=True).stdout.split()
    with TemporaryDirectory() as d:
        process('--make', d, '--images', str(images), '--captions', str(captions))   # here its memory would count for those that read, too
        for name,file in (('coco', 'captions_train2017.json'), ('karpathy', 'dataset_coco.json')):
            runs = [tuple(map(float, process('--read', f'{d}/{file}'))) for _ in range(rounds)]
            assert {n for n,*_ in runs} == {captions}, runs
            yield name,(Path(d)/file).stat().st_size,runs

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for o,n in (('images', 118_287), ('captions', 591_753), ('rounds', 3)): p.add_argument(f'--{o}', type=int, default=n)
    for a in ('--make', '--read'): p.add_argument(a, help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.make: return make(Path(o.make), o.images, o.captions)
    if o.read: return read(o.read)
    for name,size,runs in measure(o.images, o.captions, o.rounds):
        _,secs,_,mb = zip(*runs)
        print(f'{name}: {o.images:,} pictures, {o.captions:,} captions, file of {size/1e6:.0f} MB: '
              f'{statistics.median(secs):.1f} s, {statistics.median(mb):.0f} MB of memory (median of {o.rounds}; {min(secs):.1f} to {max(secs):.1f} s)')

if __name__ == '__main__': main()
