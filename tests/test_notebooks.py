"What is stored in the notebooks"
import json
from base64 import b64decode
from io import BytesIO
from pathlib import Path

from PIL import Image

def test_pictures_open_and_no_notebook_is_large():
    n = 0
    for file in (Path(__file__).parents[1]/'nbs').glob('*.ipynb'):
        assert file.stat().st_size < 1e6, file.name
        for cell in json.loads(file.read_text(encoding='utf-8'))['cells']:
            for o in cell.get('outputs', []):
                if png := o.get('data', {}).get('image/png'):
                    with Image.open(BytesIO(b64decode(''.join(png)))) as img: img.load()
                    n += 1
    assert n > 20
