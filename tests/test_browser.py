"The page of the web demo in a real browser: Chromium, where it is installed"
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
from PIL import Image

from caption_fastai.captioner import Captioner
from caption_fastai.mistakes import CaptionInterpretation
from caption_fastai.serve import caption_app
from helpers import server

sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)   # None: the one that Playwright has installed

DESKTOP = dict(viewport=dict(width=1280, height=800))
PHONE = dict(viewport=dict(width=390, height=844), device_scale_factor=2, is_mobile=True, has_touch=True)

@pytest.fixture(scope='module')
def captioner(trained): return trained.captioner()

@pytest.fixture(scope='module')
def url(captioner):
    with server(caption_app(captioner)) as (host, port): yield f'http://{host}:{port}/'

@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as p:
        try: b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])   # tests run as root too
        except sync_api.Error as e:
            if CHROMIUM: raise
            pytest.skip(f"there is no chromium on the PATH, nor one of Playwright's own ({str(e).splitlines()[0]})")
        yield b
        b.close()

@contextmanager
def opened(browser, url, **context):
    "The page; at the end nothing was asked of another machine, and nothing stands in the console"
    page,asked,said = browser.new_page(**context),[],[]
    page.set_default_timeout(30_000)
    page.on('request', lambda r: asked.append(r.url)); page.on('console', lambda m: said.append(m.text)); page.on('pageerror', lambda e: said.append(str(e)))
    page.goto(url); page.wait_for_selector('#examples img')
    yield page
    page.close()
    assert said == []
    assert len(asked) > 5 and all(a.startswith((url, 'blob:', 'data:')) for a in asked), asked

def until(page, true):
    "Wait for a condition; what Playwright has for this needs eval, which the page's policy forbids"
    for _ in range(1500):
        if page.evaluate(true): return
        page.wait_for_timeout(20)
    raise AssertionError(f'never: {true}')

def captions(page):
    "The captions that are shown, once none is awaited"
    until(page, "!document.querySelector('[aria-busy]') && (document.querySelector('.words') || !document.querySelector('#error').hidden)")
    return [' '.join(li.locator('button').all_text_contents()) for li in page.locator('#captions li').all()]

def seen(page):
    "The picture with the map over it, at rest"
    until(page, '!frame')
    return page.evaluate('view.toDataURL()')

def said(captioner, photo, **kw):
    caps = captioner.caption(str(photo), **kw)
    return [' '.join(c.words) for c in (caps if isinstance(caps, list) else [caps])]

def slide(page, name, value):
    "Move a slider and wait for the answer that it asks for"
    with page.expect_response('**/caption'): page.locator(f'#{name}').fill(str(value))
    assert page.locator(f'#{name}-value').text_content() in (str(value), f'{value:.1f}')
    return captions(page)

def test_a_session(browser, url, captioner, photos):
    "Upload, look at words, move sliders, choose what is no picture, and go on"
    with opened(browser, url, **DESKTOP) as page:
        page.set_input_files('#file', photos[0])
        assert captions(page) == said(captioner, photos[0])
        plain,words = seen(page),page.locator('.words button')
        words.nth(0).hover(); first = seen(page)
        words.nth(words.count() - 1).hover(); last = seen(page)
        page.mouse.move(0, 0)
        assert len({plain, first, last}) == 3 and seen(page) == plain

        assert slide(page, 'beam_sz', 1) == said(captioner, photos[0], beam_sz=1)
        slide(page, 'beam_sz', 5)
        assert slide(page, 'n_best', 4) == said(captioner, photos[0], beam_sz=5, n_best=4)
        assert slide(page, 'length_penalty', 1.5) == said(captioner, photos[0], beam_sz=5, n_best=4, length_penalty=1.5)
        assert slide(page, 'beam_sz', 2) == said(captioner, photos[0], beam_sz=2, n_best=2, length_penalty=1.5)   # no more than the beam holds

        assert slide(page, 'max_len', 3) == said(captioner, photos[0], beam_sz=2, n_best=2, length_penalty=1.5, max_len=3)
        slide(page, 'max_len', 30)

        page.set_input_files('#file', dict(name='notes.txt', mimeType='text/plain', buffer=b'no picture'))
        assert captions(page) == [] and 'This is not a picture' in page.locator('#error').text_content()
        with page.expect_response('**/caption'): page.locator('#examples button').nth(1).click()
        assert len(captions(page)) == 2 and page.locator('#error').is_hidden()

def test_drop_and_paste(browser, url, captioner, photos):
    with opened(browser, url, **DESKTOP) as page:
        for photo,event in (photos[0], "new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})"), (photos[1], "new ClipboardEvent('paste', {clipboardData: data, bubbles: true})"):
            page.evaluate("([bytes]) => { const data = new DataTransfer(); data.items.add(new File([new Uint8Array(bytes)], 'a.jpg', {type: 'image/jpeg'})); document.body.dispatchEvent(%s) }" % event, [list(photo.read_bytes())])
            assert captions(page) == said(captioner, photo)

def test_keyboard_and_screen_reader(browser, url, photos):
    "Everything is reached by Tab, words by the arrow keys; all that can be used has a name, and the caption is announced"
    with opened(browser, url, **DESKTOP) as page:
        page.set_input_files('#file', photos[0]); said, = captions(page); plain = seen(page)
        reached = []
        page.evaluate('document.activeElement.blur()')
        for _ in range(12):
            page.keyboard.press('Tab')
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.parentElement.className"))
            if reached[-1] == 'words' and reached.count('words') == 1:
                a = seen(page); page.keyboard.press('ArrowRight'); b = seen(page); page.keyboard.press('Escape')
                assert len({plain, a, b}) == 3 and seen(page) == plain
        assert {'file', 'words', 'beam_sz', 'length_penalty', 'max_len', 'n_best'} <= set(reached)
        tree = page.locator('body').aria_snapshot()
        for part in 'button "Choose a picture"', 'slider "Beam size"', 'slider "Length penalty"', 'slider "Words at most"', 'slider "Captions shown"', f'img "Your picture: {said}"', 'button "Example 2"', 'heading "Caption a picture"', ', looked at: ': assert part in tree, part
        assert page.locator('#said').text_content() == f'Caption: {said}'
        words = page.locator('.words button')
        words.nth(0).focus(); wanted = page.evaluate('[...wanted]')
        words.nth(words.count() - 1).hover(); assert page.evaluate('[...wanted]') != wanted
        page.mouse.move(0, 0); assert page.evaluate('[...wanted]') == wanted   # of the word that has the focus
        assert [b.get_attribute('aria-current') for b in words.all()] == ['true'] + ['false']*(words.count() - 1)

def test_phone(browser, url, photos):
    "Nothing is wider than the screen, picture and caption are on it together, and a tap shows the map"
    with opened(browser, url, **PHONE) as page:
        assert page.locator('#shoot').is_visible()
        page.set_input_files('#camera', photos[0]); captions(page); plain = seen(page)
        assert page.evaluate('document.documentElement.scrollWidth') == 390
        page.locator('.words button').nth(1).tap()
        assert seen(page) != plain and page.evaluate('scrollY') == 0
        for o in '#view', '.words': assert (box := page.locator(o).bounding_box())['y'] + box['height'] < 844
        small = page.evaluate("[...document.querySelectorAll('button, .pick, input[type=range]')].filter(o => o.getBoundingClientRect().height < 32).map(o => o.outerHTML)")
        assert small == []

def test_answers_that_are_not_as_hoped(browser, url, photos):
    "A busy server is asked again, what a server says is text and not HTML, and one that is gone is said to be"
    page,calls = browser.new_page(**DESKTOP),[]
    def answer(route):
        calls.append(1)
        if len(calls) == 1: route.fulfill(status=503, headers={'Retry-After': '0.1'}, json=dict(detail='Too many.'))
        elif len(calls) == 2: route.fulfill(json=dict(captions=[dict(text='x', score=-1, words=['<img src=x onerror=document.title=1>', 'b'], attention=[[], []])]))
        elif len(calls) == 3: route.fulfill(status=502, body='<h1>Bad Gateway</h1>')
        else: route.abort()
    page.route('**/caption', answer); page.goto(url)
    page.set_input_files('#file', photos[0])
    assert captions(page)[0].startswith('<img') and len(calls) == 2 and page.title() == 'Caption a picture' and 'looks at no place' in page.locator('#hint').text_content()
    for message in 'The server answered with status 502.', 'The server did not answer; is it still running?':
        page.set_input_files('#file', photos[0])
        assert captions(page) == [] and page.locator('#error').text_content() == message
    page.close()

def test_gallery_by_keyboard(browser, trained, tmp_path):
    "Arrows go from picture to picture and `/` to the word; what is typed filters, stands in the address and comes back with it"
    interp = CaptionInterpretation.from_learner(trained)
    page,said = browser.new_page(**DESKTOP),[]
    page.on('console', lambda m: said.append(m.text)); page.on('pageerror', lambda e: said.append(str(e)))
    page.goto(interp.gallery(tmp_path/'gallery.html').as_uri())
    def shown(): return page.eval_on_selector_all('article:not([hidden]) img', 'imgs => imgs.map(i => i.title)')
    def at(): return page.evaluate("document.activeElement.querySelector('img')?.title ?? document.activeElement.name")
    names = shown()
    assert len(names) == 20
    for key,where in [('ArrowRight', names[0]), ('ArrowRight', names[1]), ('ArrowLeft', names[0]), ('ArrowLeft', names[0]), ('/', 'q')]:
        page.keyboard.press(key)
        assert at() == where
    page.keyboard.type('red')
    page.keyboard.press('ArrowLeft')   # moves in the word, not to a picture
    assert at() == 'q' and page.locator('output').text_content() == f'{len(shown())} of 20 pictures' and 0 < len(shown()) < 20
    for name in ('in', 'by', 'lo', 'hi', 'order', shown()[0]):
        page.keyboard.press('Tab')
        assert at() == name
    page.keyboard.press('ArrowRight')
    assert at() == shown()[1]   # past those that are filtered out
    before = shown()
    page.reload()
    assert shown() == before and page.input_value('[name=q]') == 'red' and said == []
    page.close()

def lights(page):
    "Where the middle of the yellowest part of the picture is, and the colours of two corners"
    until(page, '!frame')
    return page.evaluate('''() => {
        const {width: W, height: H} = view, copy = new OffscreenCanvas(W, H).getContext('2d', {willReadFrequently: true})
        copy.drawImage(view, 0, 0)
        const p = copy.getImageData(0, 0, W, H).data, at = (x, y) => [...p.slice(4*(y*W + x), 4*(y*W + x) + 3)], yellow = (x, y) => 255 + p[4*(y*W + x) + 1] - p[4*(y*W + x) + 2]
        let n = 0, sx = 0, sy = 0, top = 0
        for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) top = Math.max(top, yellow(x, y))
        for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) if (yellow(x, y) > .97*top) { n++; sx += x + .5; sy += y + .5 }
        return [sx/n/W, sy/n/H, at(2, 2), at(W - 3, H - 3)]
    }''')

@pytest.mark.parametrize('resize,wide,tall', [('squash', 'right', 'bottom'), ('crop', 'middle', 'middle'), ('pad', 'upper right', 'lower left')])
def test_the_map_lies_on_what_the_model_saw(browser, captioner, tmp_path, resize, wide, tall):
    "However a captioner makes pictures square; what is beyond its square is violet, dark pictures as well, and the words say where it is on the picture"
    pipeline = replace(captioner.pipeline, resize=resize)
    with server(caption_app(Captioner(captioner.model, captioner.vocab, pipeline))) as (host, port), opened(browser, f'http://{host}:{port}/', **DESKTOP) as page:
        page.route('**/caption', lambda route: route.fulfill(json=dict(captions=[dict(text='dog', score=-1, words=['dog'], attention=[[float(i == 8*at[0] + at[1]) for i in range(64)]])])))
        for size,at,where,grey in ((300, 60), (3, 5), wide, 255), ((60, 300), (5, 3), tall, 0):   # pictures, and the location of 8 x 8 that is looked at
            Image.new('RGB', size, (grey,)*3).save(tmp_path/'a.png')
            page.set_input_files('#file', tmp_path/'a.png'); captions(page)
            word = page.locator('.words button')
            assert word.get_attribute('aria-label') == f'dog, looked at: {where}'
            word.hover()
            *middle,first,last = lights(page)
            x0,y0,x1,y1 = pipeline.region(size)
            assert middle == pytest.approx([(x0 + (at[1] + .5)/8*(x1 - x0))/size[0], (y0 + (at[0] + .5)/8*(y1 - y0))/size[1]], abs=0.03)
            for corner in (first, last): assert corner == pytest.approx([(c + grey)/2 for c in (68, 1, 84)], abs=12)
            page.mouse.move(0, 0)
            assert lights(page)[2:] == [[grey]*3]*2
