"""Load on the web demo: throughput, latency and memory, with pictures captioned together and one by one.

    python tests/bench_serve.py DIR --seconds 60 --requests 2000
"""
import argparse, http.client, io, multiprocessing, os, socket, threading, time
from itertools import count
from pathlib import Path

import numpy as np, torch, uvicorn

from caption_fastai.captioner import Captioner
from caption_fastai.serve import Limits, caption_app
from caption_fastai.shapes import draw_scene, make_scene

def serve(folder, sock, bs):
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 2)))
    uvicorn.Server(uvicorn.Config(caption_app(Captioner.load(folder), Limits(bs=bs)), log_level='error')).run([sock])

def bodies(n):
    "Requests, each with another scene"
    for seed in range(n):
        draw_scene(make_scene(seed), 288).save(f := io.BytesIO(), 'JPEG')
        yield b'--xx\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + f.getvalue() + b'\r\n--xx--\r\n'

def memory(pid):
    "MB of a process"
    return int(Path(f'/proc/{pid}/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20

def client(port, bodies, times, errors, more):
    c = http.client.HTTPConnection('127.0.0.1', port, timeout=120)
    for i in count():
        if not more(): break
        start = time.perf_counter()
        c.request('POST', '/caption', bodies[i % len(bodies)], {'Content-Type': 'multipart/form-data; boundary=xx'})
        res = c.getresponse(); res.read()
        (times if res.status == 200 else errors).append(time.perf_counter() - start)
    c.close()

def load(folder, bs, clients, seconds, requests):
    "One server under load until `seconds` are over and `requests` are answered; prints a line"
    sock = socket.create_server(('127.0.0.1', 0)); port = sock.getsockname()[1]
    server = multiprocessing.get_context('fork').Process(target=serve, args=(folder, sock, bs), daemon=True); server.start(); sock.close()
    payload,times,errors,sizes = list(bodies(40)),[],[],[]
    once = count(); client(port, payload, [], errors, lambda: next(once) < 5)   # warm
    start = time.perf_counter()
    more = lambda: time.perf_counter() - start < seconds or len(times) < requests
    threads = [threading.Thread(target=client, args=(port, payload[i:] + payload[:i], times, errors, more)) for i in range(clients)]
    for t in threads: t.start()
    while any(t.is_alive() for t in threads):
        sizes.append((len(times), memory(server.pid)))
        for t in threads: t.join(0.2)
    wall = time.perf_counter() - start
    server.terminate(); server.join()
    p50,p99 = np.percentile(times, [50, 99])*1000
    at = [min(sizes, key=lambda o: abs(o[0] - k*len(times)/4))[1] for k in range(5)]
    print(f'bs {bs}, {clients} clients: {len(times)} captions in {wall:.0f} s, {len(times)/wall:.1f} a second, p50 {p50:.0f} ms, p99 {p99:.0f} ms, {len(errors)} errors; '
          f"MB after 0 to 4 quarters of the requests: {', '.join(f'{m:.0f}' for m in at)}", flush=True)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('captioner', help='folder that caption_train wrote')
    p.add_argument('--clients', type=int, default=8)
    p.add_argument('--seconds', type=float, default=60)
    p.add_argument('--requests', type=int, default=0, help='answers at least, with batches')
    p.add_argument('--bs', type=int, nargs='+', default=[1, 16])
    o = p.parse_args()
    for bs in o.bs: load(o.captioner, bs, o.clients, o.seconds, o.requests if bs > 1 else 0)
