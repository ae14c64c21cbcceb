import signal
import subprocess
import sys

import pytest
import timm
import torch
from limits import HANG

from timm_stochdepth.cli.demo import DATA
from timm_stochdepth.cli.main import main
from timm_stochdepth.demo.digits import NUM_TRAIN_IMAGES, write_digits
from timm_stochdepth.demo.drops import DropCounter
from timm_stochdepth.demo.network import Network
from timm_stochdepth.demo.recipe import Recipe
from timm_stochdepth.demo.run_folder import run_name
from timm_stochdepth.output_folder import MARK, OutputFolder


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp('demo') / 'digits')


def test_digits_are_an_image_folder_that_timm_reads(digits):
    train = timm.data.create_dataset('', root=str(digits), split='train')
    validation = timm.data.create_dataset('', root=str(digits), split='validation')
    assert (len(train), len(validation)) == (1437, 360)
    assert len(train) == NUM_TRAIN_IMAGES == DATA['digits']['num_images']
    image, target = validation[0]
    assert image.size == (32, 32) and image.mode == 'RGB' and target in range(10)


def test_demo_trains_saves_and_reloads(tmp_path, capsys):
    assert main(['demo', '--models', 'resnet50', 'resnet50_sd_block', '--epochs', '1', '--out', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.startswith('resnet50')]
    assert [row[0] for row in rows] == ['resnet50', 'resnet50_sd_block']
    assert all(row[1] == row[2] for row in rows)
    assert rows[0][4] == '1.000'
    assert 'every model scores the same' in out
    assert (tmp_path / 'demo.png').read_bytes().startswith(b'\x89PNG')
    names = {run_name(Network(name), Recipe(epochs=1), 42) for name in ('resnet50', 'resnet50_sd_block')}
    assert {p.name for p in tmp_path.iterdir()} == {'digits', *names, 'demo.png', MARK}
    assert {f.name for name in names for f in (tmp_path / name).iterdir()} == {
        *('model.safetensors', 'config.json', 'run.json')
    }


def test_interrupt_leaves_nothing_half_written(tmp_path):
    command = [sys.executable, '-m', 'timm_stochdepth', 'demo', '--models', 'resnet50_sd_sample', '--out', tmp_path]
    # a job in the background of a shell ignores the signal, and so would what it starts
    restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=restore)
    seen = ''
    while 'loss=' not in seen:  # the progress bar's first step
        assert process.poll() is None, seen
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=HANG)
    finally:
        process.kill()
    assert process.returncode == 130
    assert 'interrupted' in err and 'Traceback' not in err
    assert {p.name for p in tmp_path.iterdir()} == {'digits', MARK}


@pytest.mark.parametrize(
    'theirs', [f'{run_name(Network("resnet50"), Recipe(), 42)}/notes.txt', 'digits/train/0/0000.png', 'demo.png']
)
def test_nothing_of_others_is_taken_for_the_demos_own(tmp_path, theirs, capsys):
    OutputFolder(tmp_path, 'demo').claim()
    path = tmp_path / theirs
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('mine')
    assert main(['demo', '--models', 'resnet50', '--out', str(tmp_path)]) == 1
    assert str(path) in capsys.readouterr().err and path.read_text() == 'mine'
    assert len(list(tmp_path.iterdir())) == 2


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
