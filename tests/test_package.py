import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from networks import ZOO

import timm_stochdepth as ts

ROOT = Path(__file__).parent.parent


def run_python(script, **kwargs):
    return subprocess.run([sys.executable, '-c', script], check=True, capture_output=True, text=True, **kwargs).stdout


def test_import_brings_no_extra():
    loaded = run_python('import sys, timm_stochdepth; print(*sys.modules)').split()
    assert 'timm_stochdepth.surgery' in loaded
    assert not {'matplotlib', 'sklearn', 'timm_stochdepth.cli', 'timm_stochdepth.demo'} & set(loaded)


@pytest.mark.parametrize('name', ZOO)
def test_hub_config_is_what_timm_writes_for_the_model(name, tmp_path):
    with torch.device('meta'):
        model = timm.create_model(name)
    timm.models._hub.save_config_for_hf(model, tmp_path / 'config.json', model_args=ts.stochastic_depth_args(model))
    written = json.loads((tmp_path / 'config.json').read_text())
    assert json.loads((ROOT / 'hub_configs' / name / 'config.json').read_text()) == written


def test_wheel_holds_the_package_its_types_and_the_hub_configs(tmp_path):
    subprocess.run(
        [sys.executable, '-m', 'build', '--wheel', '--outdir', tmp_path, ROOT], check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {'timm_stochdepth/py.typed', 'timm_stochdepth/models/resnet_sd.py'} <= names
    assert {f'timm_stochdepth/hub_configs/{name}/config.json' for name in ZOO} <= names
    assert not any(n.startswith('tests/') for n in names)
