"Fixtures of all tests: some scenes, a learner trained on them, its captioner, and seeds"
import warnings

import matplotlib; matplotlib.use('Agg')
import pytest

with warnings.catch_warnings():
    warnings.simplefilter('ignore')   # of what fastai imports
    from fastai.torch_core import set_seed
    import helpers
    from helpers import fit, load_dls, tiny_learner
from caption_fastai.shapes import write_shapes

@pytest.fixture(scope='session', autouse=True)
def learners(tmp_path_factory):
    "Learners of the tests write into pytest's own folder, which goes with it"
    helpers.LEARNERS = tmp_path_factory.mktemp('learners')

@pytest.fixture(autouse=True)
def seeds():
    "Every test starts from the same random numbers"
    set_seed(42)

@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    "So does what tests share, whichever test comes first"
    if fixturedef.scope != 'function': set_seed(42)

@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    "A folder of scenes in Flickr8k's layout"
    return write_shapes(tmp_path_factory.mktemp('data')/'scenes', n_train=100, n_valid=20, n_test=20)

@pytest.fixture(scope='session')
def dls(scenes): return load_dls(scenes)

@pytest.fixture(scope='session')
def trained(dls):
    "A learner that has seen the scenes a few times"
    set_seed(1)
    return fit(tiny_learner(dls, p=0.1), 3, 1e-2)

@pytest.fixture(scope='session')
def captioner_dir(trained, tmp_path_factory):
    "A folder as `caption_train` leaves it"
    return trained.captioner().save(tmp_path_factory.mktemp('saved')/'captioner')

@pytest.fixture
def photos(scenes): return sorted((scenes/'Images').iterdir())[-3:]
