import os

import pytest
import timm
import torch
from distributed import run_ranks  # noqa: F401
from hub import hub_server, olah_server  # noqa: F401
from networks import randomize
from safetensors.torch import save_file

from timm_stochdepth.layers.metadata import _warn_of_no_metadata


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def told_nothing_yet():
    """What is told once a process is told once a test."""
    _warn_of_no_metadata.cache_clear()


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope='session')
def hub_cache(tmp_path_factory):
    """An environment whose Hub cache, without a network, holds the repository timm/resnet50.a1_in1k."""
    torch.manual_seed(0)
    cache = tmp_path_factory.mktemp('hub')
    revision = '0' * 40
    repository = cache / 'models--timm--resnet50.a1_in1k'
    snapshot = repository / 'snapshots' / revision
    snapshot.mkdir(parents=True)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text(revision)
    save_file(randomize(timm.create_model('resnet50')).state_dict(), snapshot / 'model.safetensors')
    return {**os.environ, 'HF_HUB_CACHE': str(cache), 'HF_HUB_OFFLINE': '1'}
