import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from forks import run_python
from networks import ZOO

import timm_stochdepth as ts
from timm_stochdepth.hub.folder import create_config
from timm_stochdepth.hub.record import TrainingRecord

ROOT = Path(__file__).parent.parent


def printed_by(script, **kwargs):
    return subprocess.run([sys.executable, '-c', script], check=True, capture_output=True, text=True, **kwargs).stdout


HEAVY = {'torch', 'torchvision', 'timm', 'huggingface_hub', 'matplotlib', 'sklearn', 'numpy'}


def test_import_brings_no_extra():
    loaded = printed_by('import sys, timm, timm_stochdepth; print(*sys.modules)').split()
    assert 'timm_stochdepth.models' in loaded
    assert not {'matplotlib', 'sklearn', 'timm_stochdepth.cli', 'timm_stochdepth.demo'} & set(loaded)


def test_import_alone_waits_for_nothing():
    assert not HEAVY & set(printed_by('import sys, timm_stochdepth; print(*sys.modules)').split())


IMPORTS = [
    'import timm_stochdepth, timm',
    'import timm, timm_stochdepth',
    'import timm_stochdepth, timm.models.resnet',
    'import timm_stochdepth, importlib.util as u; u.find_spec("timm").loader.get_code("timm")',
    'import timm_stochdepth.layers.block',
    'import timm_stochdepth.models',
    'from timm_stochdepth.hub import push',
    'from timm_stochdepth import StochasticBlock',
    'from timm_stochdepth import *; drop_rates',
    'import timm_stochdepth; timm_stochdepth.models',
    # another finder that asks all others, as this package's does
    'import sys, timm_stochdepth; sys.meta_path.insert(0, type("F", (), {"find_spec": lambda *a: '
    'next(filter(None, (f.find_spec(*a) for f in sys.meta_path[1:])), None)}))',
]
IN_FORKS = """
import os, sys
import torchvision  # what takes longest, once; timm is what matters
assert 'timm' not in sys.modules
for imports in sys.argv[1:]:
    pid = os.fork()
    if pid == 0:
        exec(imports, {})
        import timm, timm_stochdepth as ts
        from timm_stochdepth.layers.block import StochasticBlock
        model = timm.create_model('resnet50_sd_block')
        assert ts.StochasticBlock is StochasticBlock and isinstance(model.layer1[0], StochasticBlock)
        assert not any(type(f).__module__.startswith('timm_stochdepth') for f in sys.meta_path)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        print(imports)
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the system has no fork')
@pytest.mark.long
def test_models_are_registered_whatever_is_imported_first():
    command = [sys.executable, '-c', IN_FORKS, *IMPORTS]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout == '', result.stderr  # the imports that fail


def test_models_are_registered_in_a_worker_that_unpickles_one(tmp_path):
    torch.save(timm.create_model('resnet50_sd_block'), tmp_path / 'model.pt')
    script = 'import sys, torch; torch.load(sys.argv[1], weights_only=False); import timm; assert timm.is_model("{}")'
    result = run_python('-c', script.format('resnet50_sd_block'), tmp_path / 'model.pt')
    assert result.returncode == 0, result.stderr


def test_public_names_are_listed_before_they_are_used():
    out = printed_by('import timm_stochdepth as ts; print(*dir(ts)); print(*ts.__all__); help(ts)')
    names, public, *text = out.splitlines()
    public_names = set(public.split()) - {'__version__'}
    assert {name for name in names.split() if not name.startswith('__')} == public_names
    for name in ts.__all__:
        assert hasattr(ts, name)
    assert any(line.strip().startswith('apply_stochastic_depth(') for line in text)
    overview = '\n'.join(text).partition('PACKAGE CONTENTS')[0]
    assert {name for name in public_names if re.search(rf'^ +{name}  ', overview, re.M)} == public_names
    with pytest.raises(AttributeError, match="has no attribute 'drop_rate'"):
        _ = ts.drop_rate


@pytest.mark.parametrize('name', ZOO)
def test_hub_config_is_what_a_push_starts_from(name):
    with torch.device('meta'):
        model = timm.create_model(name)
    config = json.loads((ROOT / 'hub_configs' / name / 'config.json').read_text())
    assert config == json.loads(json.dumps(create_config(model, TrainingRecord())))
