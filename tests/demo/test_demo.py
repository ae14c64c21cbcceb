import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
import timm
import torch
from interrupts import heed_interrupts
from limits import HANG
from PIL import Image
from sklearn.datasets import load_digits

from timm_stochdepth.cli.demo import DATA
from timm_stochdepth.cli.main import main
from timm_stochdepth.demo.digits import NUM_TRAIN_IMAGES, read_digits
from timm_stochdepth.demo.drops import DropCounter
from timm_stochdepth.demo.network import Network
from timm_stochdepth.demo.recipe import Recipe
from timm_stochdepth.demo.run_folder import run_name


def test_digits_are_scikit_learns():
    images = read_digits(NUM_TRAIN_IMAGES)
    assert (len(images.train), len(images.validation)) == (1437, 360)
    assert len(images.train) == DATA['digits']['num_images']
    small, targets = [], []
    for image, target in (*images.train, *images.validation):
        assert image.size == (32, 32) and image.mode == 'RGB'
        small.append(np.asarray(image.convert('L').resize((8, 8), Image.Resampling.BOX), 'float32').ravel())
        targets.append(target)
    source = load_digits()
    nearest = torch.cdist(torch.tensor(np.stack(small)), torch.tensor(source.data * 255 / 16).float()).argmin(1)
    assert source.target[nearest].tolist() == targets and len(set(nearest.tolist())) > 1780  # a few are near others


@pytest.mark.long
def test_demo_trains_saves_and_reloads(tmp_path, capsys):
    options = ['--models', 'resnet50', 'resnet50_sd_block', '--images', '256', '--epochs', '1']
    assert main(['demo', *options, '--out', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.startswith('resnet50')]
    assert [row[0] for row in rows] == ['resnet50', 'resnet50_sd_block']
    assert all(row[1] == row[2] for row in rows)
    assert rows[0][4] == '1.000'
    assert 'every model scores the same' in out
    assert (tmp_path / 'demo.png').read_bytes().startswith(b'\x89PNG')
    recipe = Recipe(num_images=256, epochs=1)
    names = {run_name(Network(name), recipe, 42) for name in ('resnet50', 'resnet50_sd_block')}
    assert {p.name for p in tmp_path.iterdir()} == {*names, 'demo.png'}
    assert {f.name for name in names for f in (tmp_path / name).iterdir()} == {
        *('model.safetensors', 'config.json', 'run.json')
    }


SMALL = ['--model-kwargs', 'layers=[1,1,1,1]', 'base_width=8', '--images', '32', '--batch-size', '8']
TWO_EPOCHS = ['--epochs', '2', '--eval-every', '2']


def losses_of_runs(folder):
    """The loss of each network's last step, as the progress bar writes it."""
    runs = [json.loads(path.read_text())['result'] for path in folder.glob('*/run.json')]
    return {f'{run["model_name"]} {run["method"] or ""}'.strip(): f'{run["step_losses"][-1]:.2f}' for run in runs}


@pytest.mark.parametrize(
    'options, names',
    [
        (['--model', 'resnet50_sd_sample', 'resnet50_sd_block'], ['sample', 'block']),
        pytest.param(
            ['--model', 'resnet50', '--drop-path', '0.2', '--methods', 'timm', 'skip'],
            ['timm', 'skip'],
            marks=pytest.mark.long,
        ),
        pytest.param(['--model', 'resnet50'], ['resnet50'], marks=pytest.mark.long),
    ],
)
def test_the_progress_bar_says_whose_loss_is_which(options, names, tmp_path, capsys):
    assert main(['demo', *options, *SMALL, *TWO_EPOCHS, '--lr', '0.1', '--out', str(tmp_path / 'out')]) == 0
    last = re.split('[\r\n]+', capsys.readouterr().err.strip())[-1]
    losses = losses_of_runs(tmp_path / 'out')
    assert len(set(losses.values())) == len(losses) == len(names)
    expected = [f'{name} {loss}' for name in names for label, loss in losses.items() if label.endswith(name)]
    assert last.partition(' left, loss ')[2].split(', ') == expected


@pytest.mark.long
def test_80_columns_hold_the_losses_of_the_three_networks(tmp_path):
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    command = [sys.executable, '-m', 'timm_stochdepth', 'demo', *SMALL, *TWO_EPOCHS, '--out', tmp_path / 'out']
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=terminal, check=True)
    bars = re.split('[\r\n]+', os.read(master, 100_000).decode().strip())
    os.close(terminal)
    os.close(master)
    losses = losses_of_runs(tmp_path / 'out')
    names = dict(resnet50='resnet50', sd_sample='resnet50_sd_sample', sd_block='resnet50_sd_block')
    assert bars[-1].endswith(', '.join(f'{name} {losses[label]}' for name, label in names.items()))
    assert max(map(len, bars)) <= 80


@pytest.mark.long
def test_an_interrupt_leaves_nothing(tmp_path):
    out = tmp_path / 'new' / 'out'
    command = [sys.executable, '-m', 'timm_stochdepth', 'demo', '--models', 'resnet50_sd_sample', '--out', out]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    seen = ''
    while 'loss ' not in seen:  # the progress bar's first step
        assert process.poll() is None, seen
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=HANG)
    finally:
        process.kill()
    assert process.returncode == 130
    assert 'interrupted' in err and 'Traceback' not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('theirs', [f'{run_name(Network("resnet50"), Recipe(), 42)}/notes.txt', 'demo.png'])
def test_nothing_of_others_is_taken_for_the_demos_own(tmp_path, theirs, capsys):
    path = tmp_path / theirs
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('mine')
    assert main(['demo', '--models', 'resnet50', '--out', str(tmp_path)]) == 2
    assert f'{str(tmp_path / theirs.partition("/")[0])!r}, which is there already' in capsys.readouterr().err
    assert path.read_text() == 'mine' and len(list(tmp_path.iterdir())) == 1


def test_drops_are_counted_as_they_happen():
    model = timm.create_model('resnet50_sd_block', drop_path_rate=1.0, drop_distribution='uniform', num_classes=10)
    with DropCounter(model) as drops:
        for _ in range(3):
            model(torch.randn(2, 3, 32, 32))
    assert set(drops.frequencies().values()) == {1.0}
    assert set(drops.drawn.values()) == {3}
    model(torch.randn(2, 3, 32, 32))
    assert set(drops.drawn.values()) == {3}


def test_skipped_samples_are_counted_too():
    model = timm.create_model(
        'resnet50_sd_sample', drop_path_rate=1.0, drop_distribution='uniform', num_classes=10, skip_dropped=True
    )
    with DropCounter(model) as drops:
        model(torch.randn(2, 3, 32, 32))
    assert set(drops.frequencies().values()) == {1.0} and set(drops.drawn.values()) == {2}
