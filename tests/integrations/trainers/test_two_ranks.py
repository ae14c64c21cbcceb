"""Trainers on two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT

pytestmark = pytest.mark.trainers


def test_lightning_and_accelerate_train_as_plain_ddp(tmp_path):
    pytest.importorskip('lightning')
    pytest.importorskip('accelerate')
    script = ROOT / 'tests' / 'support' / 'two_ranks.py'
    environ = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]),
    }
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', script]
    result = subprocess.run(command, cwd=tmp_path, env=environ, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert 'The weights' not in result.stderr
