"""The script for a machine with a GPU, tried out without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / 'benchmarks' / 'gpu.sh'


def run_script(*args):
    env = {**os.environ, 'PYTHON': sys.executable}
    return subprocess.run(['bash', SCRIPT, *args], env=env, capture_output=True, text=True)


def test_help_needs_no_gpu():
    result = run_script('--help')
    assert result.returncode == 0 and result.stdout.startswith('Usage: bash benchmarks/gpu.sh')
    assert max(map(len, result.stdout.splitlines())) <= 120


@pytest.mark.parametrize(
    'args, message',
    [
        (['--out'], '--out must have a value.'),
        (['--out', ''], '--out must have a value.'),
        (['--minute', '3'], "unknown option '--minute': see --help."),
        (['--minutes', '0'], "--minutes must be a whole number from 1, but got '0'."),
        (['--max-seconds', '2.5'], "--max-seconds must be a whole number from 1, but got '2.5'."),
        (['--modes', 'eager fast'], "--modes must be some of eager compiled, but got 'fast'."),
        (['--distributions', 'Linear'], "--distributions must be some of uniform linear, but got 'Linear'."),
        (['--device', 'tpu'], "--device must be some of cuda cpu, but got 'tpu'."),
    ],
)
def test_wrong_options_are_named(args, message):
    result = run_script(*args)
    assert (result.returncode, result.stdout, result.stderr) == (2, '', f'gpu.sh: {message}\n')


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason='there is one')
def test_a_machine_without_one_is_told_so():
    result = run_script()
    assert result.returncode == 2 and result.stderr.startswith('gpu.sh: a GPU is needed')


@pytest.mark.long
def test_runs_are_done_once_and_failures_are_told(tmp_path):
    args = ['--device', 'cpu', '--models', 'test_resnet test_vit', '--modes', 'eager', '--distributions', 'uniform']
    args += ['--batch-size', '2', '--img-size', '40', '--max-seconds', '1', '--out', tmp_path]
    result = run_script(*args)
    # patches of 16 pixels
    assert result.returncode == 1 and result.stderr.splitlines()[-1] == 'failed: test_vit eager uniform 0.4'
    (file,) = tmp_path.glob('test*.json')
    assert file.name == 'test_resnet_rate0.4_cpu_amp_channels_last_uniform.json'
    figures = json.loads(file.read_text())
    assert figures['settings']['batch_size'] == 2 and figures['settings']['img_size'] == 40
    written = file.stat().st_mtime_ns
    result = run_script(*args, '--models', 'test_resnet')
    assert result.returncode == 0 and 'test_resnet, eager' not in result.stdout
    assert file.stat().st_mtime_ns == written
