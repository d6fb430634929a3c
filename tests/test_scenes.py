"The scenes, trained on whole: captions that are right"
import re

import pytest

from caption_fastai.app import caption_train
from caption_fastai.predict import caption_predict

@pytest.mark.long
def test_scenes_are_captioned_right(tmp_path, capsys):
    "`caption_train --data shapes`: after the second stage 95% of the captions are right, and more than after the first"
    caption_train(['--data', 'shapes', '--out', str(tmp_path/'out')])
    printed = capsys.readouterr().out
    first,second = (float(o) for o in re.findall(r'right captions ([\d.]+)%', printed))
    assert second >= 95 and second > first, printed
    picture = next((tmp_path/'out'/'scenes'/'Images').iterdir())
    caption_predict([str(tmp_path/'out'), str(picture)])
    assert len(capsys.readouterr().out.split()) >= 4
