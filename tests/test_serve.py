"The web demo: what is not a good request gets one sentence, and the next good one works"
import asyncio, io, json, os, re, shutil, signal, socket, struct, subprocess, sys, threading, time, tracemalloc, urllib.request, zlib
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest, torch
from PIL import Image

from caption_fastai.captioner import Captioner
from caption_fastai.images import ImagePipeline, open_image
from caption_fastai.model import caption_model
from caption_fastai.serve import Limits, caption_app, caption_serve
from caption_fastai.shapes import draw_scene, make_scene
from caption_fastai.text import Vocab
from helpers import check_message, server

TestClient = pytest.importorskip('starlette.testclient').TestClient
pytest.importorskip('uvicorn')
LIMITS = Limits(max_bytes=1_000_000, max_pixels=200_000, queue=8, bs=4, upload_timeout=1., timeout=20.)

def encoded(img, format='PNG', **kw):
    img.save(f := io.BytesIO(), format, **kw)
    return f.getvalue()

SCENE = draw_scene(make_scene(3))
PNG,JPEG = encoded(SCENE),encoded(SCENE, 'JPEG')
WORDS = 'a the red green blue circle square star is left right above below of and'.split()

@pytest.fixture(scope='module')
def captioner():
    torch.manual_seed(1)
    model = caption_model(len(WORDS) + 4, 'shapes_cnn', 'SHAPES', emb_sz=8, attn_sz=8, n_hid=16).eval()
    return Captioner(model, Vocab(WORDS), ImagePipeline(96))

@pytest.fixture(scope='module')
def app(captioner): return caption_app(captioner, LIMITS)

@pytest.fixture(scope='module')
def client(app): return TestClient(app, raise_server_exceptions=False)

def post(client, picture=PNG, name='a.png', headers=None, **fields):
    return client.post('/caption', files=dict(image=(name, picture)), data={'max_len': '5', **fields}, headers=headers)

def works(client):
    res = post(client)
    assert res.status_code == 200 and res.json()['captions'][0]['words'], res.text

def is_refused(res, *statuses):
    assert res.status_code in statuses, (res.status_code, res.text[:300])
    assert res.headers['content-type'] == 'application/json'
    (key,message), = res.json().items()
    assert key == 'detail' and len(message) < 300 and ' at 0x' not in message
    check_message(message)

# Pictures that are no good

def png_header(w, h):
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'\0'*1000)) + chunk(b'IEND', b'')

def gif_header(w, h): return b'GIF89a' + struct.pack('<HH', w, h) + b'\0\0\0,\0\0\0\0' + struct.pack('<HH', w, h) + b'\0\x08\0\0;'

BAD_PICTURES = dict(
    text=(b'this is not a picture', 415), zero_bytes=(b'', 422), one_byte=(b'\x89', 415), nulls=(bytes(5000), 415), random=(bytes(torch.randint(256, (5000,), generator=torch.Generator().manual_seed(0)).tolist()), 415),
    truncated_png=(PNG[:len(PNG)//2], 422), truncated_jpeg=(JPEG[:len(JPEG)//2], 422), png_signature=(PNG[:8], 415), jpeg_signature=(JPEG[:3], 415), flipped_png=(PNG[:200] + bytes(400) + PNG[600:], 422),
    big_upload=(PNG + bytes(2_000_000), 413), fifty_megabytes=(bytes(50_000_000), 413), png_30000=(png_header(30000, 30000), 413), png_2000000000=(png_header(2**31 - 1, 2**31 - 1), 413), gif_65535=(gif_header(65535, 65535), 413),
    bomb=(encoded(Image.new('1', (20000, 20000))), 413), bomb_jpeg=(encoded(Image.new('L', (6000, 6000)), 'JPEG'), 413), png_0=(png_header(0, 5), 415),
    svg=(b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 415), html=(b'<!doctype html><script>alert(1)</script>', 415), pdf=(b'%PDF-1.7\n%\xe2\xe3\xcf\xd3\n', 415), zip=(b'PK\x03\x04' + bytes(100), 415),
    avif=(b'\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf' + bytes(200), 415), eps=(encoded(SCENE, 'EPS'), 415), ppm=(encoded(SCENE, 'PPM'), 415), ico=(encoded(SCENE, 'ICO'), 415), pickle=(b'\x80\x04cos\nsystem\n(S"true"\ntR.', 415), script=(b'#!/bin/sh\ntrue\n', 415), json=(b'{"image": "a"}', 415))

@pytest.mark.parametrize('kind', BAD_PICTURES)
def test_bad_pictures(client, kind):
    data,status = BAD_PICTURES[kind]
    is_refused(post(client, data), status)
    works(client)

def test_a_tile_whose_size_is_a_text(client):
    "A text of two letters, repeated as often as the other number says, would take gigabytes"
    tags = (256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 180), (277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, 64), (322, 2, 3, int.from_bytes(b'ab\0\0', 'little')), (323, 4, 1, 20_000_000)
    data = b'II*\0\x08\0\0\0' + struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', *t) for t in tags) + bytes(100)
    tracemalloc.start()
    try:
        is_refused(post(client, data), 415)
        with pytest.raises(ValueError, match='size of its tiles'): open_image(data)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally: tracemalloc.stop()

def progressive(n):
    "Its last scan `n` times"
    data = encoded(SCENE, 'JPEG', progressive=True)
    at = data.rindex(b'\xff\xda')
    return data[:at] + data[at:-2]*n + data[-2:]

def test_a_jpeg_of_many_scans(client):
    "It would take hours; what merely looks like scans after the end of a file does not count"
    is_refused(post(client, progressive(101)), 422)
    for good in progressive(50), JPEG + b'\xff\xda'*200, encoded(SCENE, 'JPEG', comment=b'\xff\xda'*200), PNG + b'\xff\xda'*200: assert post(client, good).status_code == 200

def tiled(side):
    "A TIFF file of 8 x 8 pixels in one tile of `side` x `side`"
    tags = [(256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side), (324, 200), (325, len(data := zlib.compress(bytes(side*side))))]
    return b'II*\0\x08\0\0\0' + struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', t, 4, 1, v) for t,v in tags) + bytes(4) + bytes(200 - 8 - 2 - 12*len(tags) - 4) + data

def test_a_tile_larger_than_its_picture(client, captioner):
    assert post(client, tiled(64)).status_code == 200
    is_refused(post(client, tiled(464)), 413)
    with pytest.raises(ValueError, match='million pixels'): open_image(tiled(464), LIMITS.max_pixels)

def test_a_picture_beyond_the_captioners_own_limit(captioner):
    client = TestClient(caption_app(Captioner(captioner.model, captioner.vocab, ImagePipeline(96, max_pixels=1000)), LIMITS))
    is_refused(post(client), 413)
    assert client.get('/health').json()['limits']['max_pixels'] == 1000

def test_numbers_of_other_sizes():
    "16 bits are scaled, other whole numbers are taken as they are, and nothing becomes white"
    import numpy as np
    a = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)*5
    for o in a.astype(np.int64), a.astype(np.int32), a.astype(np.uint16)*257, torch.from_numpy(a).long().permute(2, 0, 1): assert (np.asarray(open_image(o)) == a).all()
    for o in a.astype(np.int64) + 100, a.astype(np.int16) - 1:
        with pytest.raises(ValueError, match='0 to 255'): open_image(o)

def test_sixteen_bits_take_little_memory():
    import tracemalloc
    img = Image.new('I;16', (2000, 1000), 4000)
    tracemalloc.start()
    assert open_image(img).getpixel((0, 0)) == (15, 15, 15) and tracemalloc.get_traced_memory()[1] < 14*2_000_000
    tracemalloc.stop()

# Fields that are no good

BAD_FIELDS = [dict(beam_sz='-1'), dict(beam_sz='0'), dict(beam_sz='1000000'), dict(beam_sz='9'*400), dict(beam_sz='2.5'), dict(beam_sz='three'), dict(beam_sz=''), dict(beam_sz='nan'),
              dict(beam_sz='0x3'), dict(n_best='0'), dict(n_best='-3'), dict(n_best='99'), dict(max_len='0'), dict(max_len='1000'), dict(length_penalty='nan'), dict(length_penalty='inf'),
              dict(length_penalty='-1'), dict(length_penalty='1e400'), dict(length_penalty="1'; drop"), dict(attention='perhaps'), dict(attention='0'), dict(attention='{"a": 1}'), dict(beams='3'), {'__class__': 'x'},
              {'beam_sz\0': '3'}, dict(beam_sz=['3', '3']), dict(beam_sz='x'*5000), {f'field{i}': 'x' for i in range(50)}]

@pytest.mark.parametrize('fields', BAD_FIELDS, ids=lambda o: str(o)[:30])
def test_bad_fields(client, fields):
    is_refused(post(client, **fields), 400, 422)
    works(client)

# Bodies that are no form

def form(*parts, boundary=b'xx', end=b'--xx--\r\n'): return b''.join(b'--' + boundary + b'\r\n' + p + b'\r\n' for p in parts) + end
def part(disposition, data=PNG, more=b''): return b'Content-Disposition: ' + disposition + b'\r\n' + more + b'\r\n' + data

IMAGE,FORM = b'form-data; name="image"; filename="a.png"','multipart/form-data; boundary=xx'
BAD_BODIES = dict(
    no_body=(b'', FORM, 422), no_form=(b'', '', 415), json=(json.dumps(dict(image='aGk=')).encode(), 'application/json', 415), bad_json=(b'{"image": ', 'application/json', 415), raw_picture=(PNG, 'image/png', 415),
    urlencoded=(b'image=a&beam_sz=3', 'application/x-www-form-urlencoded', 415), no_boundary=(form(part(IMAGE)), 'multipart/form-data', 400), empty_boundary=(form(part(IMAGE)), 'multipart/form-data; boundary=', 400),
    other_boundary=(form(part(IMAGE)), 'multipart/form-data; boundary=yy', 400), mixed=(form(part(IMAGE)), 'multipart/mixed; boundary=xx', 415), long_boundary=(form(part(IMAGE)), f'multipart/form-data; boundary={"y"*5000}', 400),
    garbage=(bytes(range(256))*10, FORM, 400), no_name=(form(part(b'form-data; filename="a.png"')), FORM, 400), no_disposition=(form(b'X-A: b\r\n\r\n' + PNG), FORM, 400),
    two_pictures=(form(part(IMAGE), part(IMAGE)), FORM, 400), picture_as_text=(form(part(b'form-data; name="image"', b'words')), FORM, 422), big_text=(form(part(b'form-data; name="image"', bytes(100_000))), FORM, 400),
    other_field=(form(part(b'form-data; name="photo"; filename="a.png"')), FORM, 422), option_as_file=(form(part(b'form-data; name="beam_sz"; filename="a"', b'3')), FORM, 422),
    many_parts=(form(*[part(b'form-data; name="a"', b'1')]*5000), FORM, 400), long_header=(form(part(IMAGE, more=b'X-A: ' + b'a'*200_000 + b'\r\n')), FORM, 400), many_headers=(form(part(IMAGE, more=b'X-A: b\r\n'*20_000)), FORM, 400),
    cut_form=(form(part(IMAGE), end=b'')[:-600], FORM, 422), charset=(form(part(IMAGE)), FORM + '; charset=undefined', 400), utf16_field=(form(part('form-data; name="été"'.encode('utf-16'), b'1')), FORM, 400))

@pytest.mark.parametrize('kind', BAD_BODIES)
def test_bad_bodies(client, kind):
    body,content_type,status = BAD_BODIES[kind]
    is_refused(client.post('/caption', content=body, headers={'content-type': content_type} if content_type else {}), status)
    works(client)

@pytest.mark.parametrize('method,path,status', [('GET', '/caption', 405), ('PUT', '/caption', 405), ('DELETE', '/', 405), ('POST', '/health', 405), ('GET', '/nothing', 404), ('GET', '/../serve.py', 404),
                                                ('GET', '/examples/../../setup.py', 404), ('GET', '/examples/%2e%2e%2fsetup.py', 404), ('GET', '/examples/99', 404), ('GET', '/examples/-1', 404), ('GET', '/docs', 404)])
def test_other_paths(client, method, path, status): is_refused(client.request(method, path), status)

# Pictures that look odd and are good

def rotated():
    exif = Image.Exif(); exif[0x0112] = 6
    return encoded(SCENE, 'JPEG', exif=exif, quality=95)

def sixteen_bits(): return encoded(Image.frombytes('I;16', (60, 50), bytes(range(250))*24))

GOOD = dict(png=PNG, jpeg=JPEG, webp=encoded(SCENE, 'WEBP'), gif=encoded(SCENE, 'GIF'), bmp=encoded(SCENE, 'BMP'), tiff=encoded(SCENE, 'TIFF'), cmyk=encoded(SCENE.convert('CMYK'), 'JPEG'), grey=encoded(SCENE.convert('L')),
            palette=encoded(SCENE.convert('P')), transparent=encoded(SCENE.convert('RGBA')), two_colours=encoded(SCENE.convert('1')), sixteen_bits=sixteen_bits(), rotated=rotated(), one_pixel=encoded(Image.new('RGB', (1, 1))),
            strip=encoded(Image.new('RGB', (5000, 1))), animated=encoded(SCENE, 'GIF', save_all=True, append_images=[SCENE.rotate(90)]*3),
            animated_webp=encoded(SCENE, 'WEBP', save_all=True, append_images=[SCENE.rotate(90)]*3), animated_png=encoded(SCENE, 'PNG', save_all=True, append_images=[SCENE.rotate(90)]*3), polyglot=PNG + b'<html><script>alert(1)</script>' + b'PK\x03\x04')

@pytest.mark.parametrize('kind', GOOD)
def test_good_pictures(client, captioner, kind):
    "The answer is what the captioner itself says"
    res = post(client, GOOD[kind], beam_sz='4', n_best='2')
    assert [c['text'] for c in res.json()['captions']] == [str(c) for c in captioner.caption(GOOD[kind], beam_sz=4, n_best=2, max_len=5)]

@pytest.mark.parametrize('name', ['../../etc/passwd', '/etc/passwd', 'C:\\windows\\a.png', 'a\0b.png', '|touch x', 'a'*3000, '<script>', 'é漢.png', '..', 'a.svg', 'a.exe'])
def test_names_are_not_looked_at(client, name):
    res = client.post('/caption', files=dict(image=(name, PNG, 'text/html')), data=dict(max_len='5'))
    assert res.json() == post(client).json()

def test_attention(client, captioner):
    c, = post(client, attention='true').json()['captions']
    want = captioner.caption(PNG, max_len=5)
    assert (torch.tensor(c['attention']) - want.alphas).abs().max() < 1e-4 and len(c['attention']) == len(c['words'])
    assert 'attention' not in post(client).json()['captions'][0]

def test_uploads_stay_in_memory(captioner, monkeypatch):
    "Also those of more than a megabyte, from which on Starlette writes to the disk"
    import tempfile
    def roll(*args): raise AssertionError('an upload went to the disk')
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, 'rollover', roll)
    client = TestClient(caption_app(captioner, Limits(max_bytes=3_000_000)), raise_server_exceptions=False)
    assert post(client, PNG + bytes(2_000_000)).status_code == 200

def test_mistake_of_the_server(captioner):
    "No traceback goes out, and the thread of the model lives on"
    class Broken(Captioner):
        def stream(self, pictures, **kw):
            if kw['beam_sz'] == 7: raise RuntimeError('secret')
            return super().stream(pictures, **kw)
    client = TestClient(caption_app(Broken(captioner.model, captioner.vocab, captioner.pipeline), LIMITS), raise_server_exceptions=False)
    res = post(client, beam_sz='7')
    is_refused(res, 500); assert 'secret' not in res.text
    works(client)

def test_nothing_comes_back(captioner):
    "One picture without a result is a mistake, not the end; without its thread the server says that it is not well"
    class Silent(Captioner):
        def stream(self, pictures, **kw): return iter(()) if kw['beam_sz'] == 7 else super().stream(pictures, **kw)
    app = caption_app(Silent(captioner.model, captioner.vocab, captioner.pipeline), LIMITS)
    client = TestClient(app, raise_server_exceptions=False)
    is_refused(post(client, beam_sz='7'), 500)
    works(client)

def test_health_without_the_thread(captioner, monkeypatch):
    monkeypatch.setattr('caption_fastai.serve.Batcher._run', lambda self: None)
    is_refused(TestClient(caption_app(captioner, LIMITS)).get('/health'), 503)

def test_large_pictures_go_in_small_batches(captioner):
    assert Captioner(captioner.model, captioner.vocab, ImagePipeline(896))._bs(16) == 4 and captioner._bs(16) == 16

def test_page(client):
    "The page has all in it, and its policy lets nothing else in"
    res = client.get('/')
    policy = res.headers['content-security-policy']
    assert "default-src 'none'" in policy and policy.count('sha256-') == 2 and 'unsafe' not in policy
    assert not re.search(r'(src|href)="(?!data:)|https?://|style="|onclick', res.text)
    assert client.get('/examples/0').content[:3] == b'\xff\xd8\xff'

# Over the wire

@pytest.fixture(scope='module')
def address(app):
    with server(app, 1.) as a: yield a

@pytest.fixture
def http(address):
    httpx = pytest.importorskip('httpx')
    with httpx.Client(base_url='http://{}:{}'.format(*address), timeout=30) as c: yield c

def head(n, path=b'/caption'): return b'POST ' + path + b' HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=xx\r\nContent-Length: %d\r\n\r\n' % n

def received(sock):
    "All that comes until the server closes"
    sock.settimeout(10); res = b''
    while piece := sock.recv(65536): res += piece
    return res

def test_slow_upload(address, http):
    "One that sends a byte now and then is cut off, with the reason"
    with socket.create_connection(address) as s:
        s.sendall(head(100_000) + form(part(IMAGE))[:500])
        start = time.monotonic()
        while time.monotonic() - start < 0.8: s.sendall(b'x'); time.sleep(0.1)
        answer = received(s)
    assert b' 408 ' in answer and b'took longer than 1 seconds' in answer and time.monotonic() - start < 6
    works(http)

def test_slow_uploads_keep_nobody_out(captioner):
    "However many there are, others are captioned; what lies in memory has a bound all the same"
    httpx = pytest.importorskip('httpx')
    long = form(part(IMAGE, PNG + bytes(85_000 - len(PNG))))
    with server(caption_app(captioner, Limits(max_bytes=100_000, queue=2))) as address, httpx.Client(base_url='http://{}:{}'.format(*address), timeout=30) as http, ExitStack() as stack:
        def begin(n):
            stack.enter_context(s := socket.create_connection(address))
            s.sendall(head(len(long)) + long[:n])
            return s
        slow = [begin(200) for _ in range(40)]
        for _ in range(3):
            works(http)
            for s in slow: s.sendall(b'x')
        large = [begin(len(long) - 9) for _ in range(3)]
        for _ in range(20): http.get('/health')   # till the server has read what they sent
        def end(s): s.sendall(long[-9:]); return s.recv(12)
        assert sorted(map(end, large)) == [b'HTTP/1.1 200', b'HTTP/1.1 200', b'HTTP/1.1 503']
        works(http)

def test_slow_head(address, http):
    "A connection that begins no request is closed"
    with socket.create_connection(address) as s:
        s.sendall(b'POST /caption HTTP/1.1\r\nHost:'); start = time.monotonic()
        assert received(s) == b'' and time.monotonic() - start < 5
    works(http)

def test_dropped_connections(address, http):
    "Those that go away, in the upload or before the answer, leave nothing inside"
    body = form(part(IMAGE))
    for sent in b'', head(len(body))[:30], head(len(body)), head(len(body)) + body[:100], head(len(body)) + body:
        for _ in range(6):
            with socket.create_connection(address) as s: s.sendall(sent)
    works(http)
    for _ in range(100):
        if http.get('/health').json()['inside'] == 0: return
        time.sleep(0.05)
    raise AssertionError('requests are still inside')

def test_big_uploads_get_an_answer(address, http):
    "Nine times the limit are refused, with and without a length in the head, and the client hears it"
    is_refused(post(http, bytes(9_000_000)), 413)
    def pieces():
        for _ in range(90): yield bytes(100_000)
    is_refused(http.post('/caption', content=pieces(), headers={'content-type': FORM}), 400, 413)
    works(http)

def test_bad_http(address, http):
    for sent in b'GET\r\n\r\n', b'\x16\x03\x01\x02\0\x01', head(10).replace(b'10', b'-5'), head(10).replace(b'10', b'ten'), b'GET / HTTP/1.1\r\nX: ' + b'a'*200_000 + b'\r\n\r\n', \
                b'POST /caption HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n':
        with socket.create_connection(address) as s:
            s.sendall(sent)
            try: answer = received(s)
            except ConnectionResetError: answer = b''
        assert b'Traceback' not in answer and b' 200 ' not in answer
    works(http)

@contextmanager
def serving(folder, *args):
    "`caption_serve` as a process of its own: gives its address; at the end it is interrupted, and has said nothing of errors"
    command = [Path(sys.executable).parent/'caption_serve', folder, '--port', '0', *args]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        try:
            yield re.search(r'http://127\.0\.0\.1:\d+', p.stdout.readline())[0]
            p.send_signal(signal.SIGINT)
            assert p.wait(60) == 0 and p.stderr.read() == ''
        finally: p.kill()

def test_many_at_once(captioner, tmp_path):
    "500 clients, each over a connection of its own: as many as there is room for are answered, the others are told to come again"
    httpx = pytest.importorskip('httpx')
    async def ask(url):
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as c:
            return await asyncio.gather(*[c.post('/caption', files=dict(image=PNG), data=dict(max_len='5')) for _ in range(500)])
    with serving(captioner.save(tmp_path/'c'), '--queue', 8) as url:
        res = asyncio.run(ask(url))
        busy = [r for r in res if r.status_code != 200]
        assert 0 < len(busy) < 500
        for r in busy: is_refused(r, 503); assert r.headers['retry-after'] == '2'
        with httpx.Client(base_url=url, timeout=60) as c: works(c)

def test_no_caption_in_time(captioner):
    let_go = threading.Event()
    class Slow(Captioner):
        def stream(self, pictures, **kw):
            if kw['beam_sz'] == 7: let_go.wait(60)
            return super().stream(pictures, **kw)
    client = TestClient(caption_app(Slow(captioner.model, captioner.vocab, captioner.pipeline), Limits(timeout=2.)))
    res = post(client, beam_sz='7')
    is_refused(res, 503); assert 'No caption within 2 seconds' in res.text and res.headers['retry-after']
    let_go.set(); works(client)

def test_command(captioner, tmp_path, monkeypatch):
    "Errors are one line; without the extra it is named"
    def said(*args):
        with pytest.raises(SystemExit) as e: caption_serve([str(a) for a in args])
        check_message(e.value.code, 'caption_serve: ')
        return e.value.code
    captioner.save(tmp_path/'c')
    assert 'there is no such file' in said(tmp_path/'nothing')
    assert 'max_bytes=-1' in said(tmp_path/'c', '--max_bytes', -1)
    with socket.create_server(('127.0.0.1', 0)) as s: assert 'in use' in said(tmp_path/'c', '--port', s.getsockname()[1])
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    assert 'pip install "caption_fastai[serve]"' in said(tmp_path/'c')

def test_the_command_serves(captioner, photos, tmp_path):
    "It says where, on this machine alone by default, shows the examples it was given, captions, and ends at Ctrl-C"
    (tmp_path/'examples').mkdir(); shutil.copy(photos[0], tmp_path/'examples')
    with serving(captioner.save(tmp_path/'c'), '--examples', tmp_path/'examples') as url:
        with urllib.request.urlopen(f'{url}/health', timeout=60) as res: assert json.load(res)['examples'] == 1
        with urllib.request.urlopen(f'{url}/examples/0', timeout=60) as res: assert Image.open(io.BytesIO(res.read())).size == Image.open(photos[0]).size

def test_too_many_examples(captioner):
    with pytest.raises(ValueError, match='examples: 9 pictures'): caption_app(captioner, examples=[PNG]*9)

def test_what_the_container_has():
    "The Dockerfile installs all that the demo imports"
    root = Path(__file__).parents[1]
    needs = next(l for l in (root/'settings.ini').read_text().splitlines() if l.startswith('requirements'))
    absent = {re.match(r'\w+', o)[0] for o in needs.split()[2:]} - set(re.findall(r'\w+', (root/'Dockerfile').read_text())) | {'pandas', 'IPython'}
    code = 'import sys, caption_fastai.serve; print(*sys.modules)'
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert 'fastai' in absent and not absent & set(run.stdout.split())

HOOKS = """
import schemathesis
from hypothesis import strategies as st

schemathesis.openapi.format('binary', st.sampled_from([{PNG!r}, {JPEG!r}]))   # a schema cannot say what a picture is

@schemathesis.hook
def filter_body(context, body):   # a form has no lists: one of nothing is a field that is not there, and one of one a field like any other
    return not isinstance(body, dict) or not any(isinstance(v, list) and len(v) < 2 for v in body.values())
"""
SCHEMATHESIS = Path(sys.executable).parent/'schemathesis'

@pytest.mark.long
@pytest.mark.skipif(not SCHEMATHESIS.exists(), reason='schemathesis is not installed')
@pytest.mark.parametrize('seed', [1, 2, 3])
def test_what_openapi_says(captioner, tmp_path, seed):
    "Requests made from the description get the answers that it promises"
    (tmp_path/'hooks.py').write_text(HOOKS.format(PNG=PNG, JPEG=JPEG))
    with server(caption_app(captioner)) as (host, port):
        res = subprocess.run([SCHEMATHESIS, 'run', f'http://{host}:{port}/openapi.json', '--max-examples=200', f'--seed={seed}', '--no-color'], cwd=tmp_path, capture_output=True, text=True,
                             env={**os.environ, 'PYTHONPATH': str(tmp_path), 'SCHEMATHESIS_HOOKS': 'hooks'})
    assert res.returncode == 0, res.stdout + res.stderr
