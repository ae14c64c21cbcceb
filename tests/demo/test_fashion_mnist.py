import gzip
import json
import re
import statistics

import numpy as np
import pytest
import timm
from fashion import read_idx, write_fashion, write_idx

import timm_stochdepth.demo.train
from timm_stochdepth.cli.main import main
from timm_stochdepth.demo.fashion_mnist import DEFAULT_FOLDER, read_fashion_mnist


@pytest.fixture(scope='session')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fashion') / 'files'
    write_fashion(folder)
    return folder


@pytest.fixture(
    params=[
        'written',
        pytest.param(
            'installed',
            marks=pytest.mark.skipif(not DEFAULT_FOLDER.is_dir(), reason='dataset-fashion-mnist is not installed'),
        ),
    ]
)
def folder(request, written):
    return written if request.param == 'written' else DEFAULT_FOLDER


def demo(written, out, *args):
    options = ['--images', '64', '--batch-size', '16', '--epochs', '2']
    line = ['demo', '--data', 'fashion-mnist', '--data-dir', written, '--model', 'test_vit', '--out', out]
    return main([*map(str, line), *options, *args])


def runs(out):
    """What each run wrote, by method and seed."""
    records = [json.loads(file.read_text()) for file in out.glob('*/run.json')]
    return {(r['settings']['network']['method'], r['settings']['seed']): r['result'] for r in records}


def test_images_and_labels_are_those_of_the_files(folder):
    images = read_fashion_mnist(folder, 50)
    assert len(images.train) == 50 and len(set(images.train.indices)) == 50
    for split, dataset, indices in (('train', images.train, images.train.indices), ('t10k', images.validation, None)):
        pixels_NHW = read_idx(folder / f'{split}-images-idx3-ubyte.gz')
        labels_N = read_idx(folder / f'{split}-labels-idx1-ubyte.gz')
        if indices is None:
            assert len(dataset) == len(pixels_NHW)
            indices = range(20)
        for idx, source in enumerate(indices):
            image, label = dataset[idx]
            assert label == labels_N[source] and np.array_equal(np.asarray(image), pixels_NHW[source])


def test_fewer_images_are_the_first_of_more(folder):
    few, many = (read_fashion_mnist(folder, n).train.indices for n in (20, 90))
    assert few == many[:20] and few != sorted(few)


@pytest.mark.parametrize('split', [0, 1])
def test_a_folder_without_the_files_says_how_to_get_them(split, tmp_path, capsys):
    written = tmp_path / 'files'
    write_fashion(written)
    gone = sorted(written.iterdir())[split]
    gone.unlink()
    assert demo(written, tmp_path / 'out', '--drop-path', '0.4') == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert gone.name in line and 'apt-get install dataset-fashion-mnist' in line
    assert not (tmp_path / 'out').exists()


def cut(file):
    file.write_bytes(file.read_bytes()[:-30])


BROKEN = {
    'cut off': ('train-images-idx3-ubyte.gz', cut),
    'no gzip': ('t10k-labels-idx1-ubyte.gz', lambda file: file.write_bytes(b'labels')),
    'no images': ('train-images-idx3-ubyte.gz', lambda file: file.write_bytes(gzip.compress(b''))),
    'other images': ('train-images-idx3-ubyte.gz', lambda file: write_idx(file, np.zeros((96, 8, 8), 'uint8'))),
    'missing labels': ('t10k-labels-idx1-ubyte.gz', lambda file: write_idx(file, np.zeros(39, 'uint8'))),
}


@pytest.mark.parametrize('name, spoil', BROKEN.values(), ids=BROKEN)
def test_files_of_others_are_refused(name, spoil, tmp_path, capsys):
    written = tmp_path / 'files'
    write_fashion(written)
    spoil(written / name)
    assert demo(written, tmp_path / 'out', '--drop-path', '0.4') == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert '--data-dir must hold the files of Fashion-MNIST' in line and repr(str(written)) in line
    assert not (tmp_path / 'out').exists()


def test_skipping_learns_what_timm_learns(written, tmp_path, capsys):
    assert demo(written, tmp_path, '--drop-path', '0.4') == 0
    out = capsys.readouterr().out
    found = runs(tmp_path)
    timms, ours = found['timm', 42], found['skip', 42]
    assert len(ours['step_losses']) == len(timms['step_losses']) == 8
    assert ours['step_losses'] == pytest.approx(timms['step_losses'], abs=1e-4)
    assert len(set(ours['step_losses'])) == 8
    assert ours['drop_frequencies']['blocks.5'] > 0 and not timms['drop_frequencies']
    worst = max(abs(a - b) for a, b in zip(ours['step_losses'], timms['step_losses']))
    assert f'differ by {worst:.1e} at the most in the first 8 steps, by {worst:.1e} in all 8' in out
    ratio = statistics.median(a / b for a, b in zip(ours['step_seconds'], timms['step_seconds']))
    assert re.search(rf'^test_vit, skip .* {ratio:.3f}  ', out, re.M)
    rows = [line.split() for line in out.splitlines() if line.startswith('test_vit, ')][:2]
    assert [row[1] for row in rows] == ['timm', 'skip'] and all(row[2] == row[3] for row in rows)
    assert (tmp_path / 'loss.png').read_bytes().startswith(b'\x89PNG')
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {'loss.png'}


def test_what_is_written_is_a_plain_network(written, tmp_path):
    assert demo(written, tmp_path, '--drop-path', '0.4', '--methods', 'plain', 'sample', 'block', '--epochs', '1') == 0
    folders = [file.parent for file in tmp_path.glob('*/run.json')]
    assert len(folders) == 3
    for folder in folders:
        model = timm.create_model(f'local-dir:{folder}', pretrained=True)
        assert not any(type(module).__module__.startswith('timm_stochdepth') for module in model.modules())
        assert model.patch_embed.patch_size == (7, 7) and model.patch_embed.proj.in_channels == 1


@pytest.mark.long
def test_a_study_that_was_broken_off_goes_on(written, tmp_path, capsys, monkeypatch):
    args = ['--drop-path', '0.4', '--methods', 'plain', 'skip', '--seed', '1', '2']
    assert demo(written, tmp_path / 'whole', *args) == 0
    whole = runs(tmp_path / 'whole')
    expected = capsys.readouterr().out

    train = timm_stochdepth.demo.train.train_in_turn

    def break_off(networks, images, recipe, seed):
        if seed == 2:
            raise KeyboardInterrupt
        return train(networks, images, recipe, seed)

    out = tmp_path / 'parts'
    monkeypatch.setattr(timm_stochdepth.demo.train, 'train_in_turn', break_off)
    assert demo(written, out, *args) == 130
    first = {file: file.read_bytes() for file in out.glob('*/*')}
    assert set(runs(out)) == {('plain', 1), ('skip', 1)}

    trained = []
    monkeypatch.setattr(
        timm_stochdepth.demo.train, 'train_in_turn', lambda *args: trained.append(args[-1]) or train(*args)
    )
    capsys.readouterr()
    assert demo(written, out, *args) == 0
    printed = capsys.readouterr().out
    assert trained == [2] and '2 of 4 runs were there already' in printed
    assert {file: file.read_bytes() for file in first} == first
    found = runs(out)
    assert set(found) == set(whole)
    for key, result in found.items():
        assert result['step_losses'] == whole[key]['step_losses'] and result['top1s'] == whole[key]['top1s']
    means = [line for line in expected.splitlines() if '+-' in line]
    assert len(means) == 2 and all(line in printed for line in means)


def test_other_settings_are_other_runs(written, tmp_path, capsys):
    args = ['--drop-path', '0.4', '--methods', 'plain', '--epochs']
    assert demo(written, tmp_path, *args, '1') == 0
    assert demo(written, tmp_path, *args, '2') == 0
    assert 'were there already' not in capsys.readouterr().out
    assert demo(written, tmp_path, *args, '2', '--lr', '0.001') == 0
    rates = [json.loads(file.read_text())['settings']['recipe']['lr'] for file in tmp_path.glob('*/run.json')]
    assert sorted(rates) == [0.0005, 0.0005, 0.001]
    lengths = {len(json.loads(file.read_text())['result']['top1s']) for file in tmp_path.glob('*/run.json')}
    assert lengths == {1, 2}


def test_a_run_that_somebody_changed_is_not_replaced(written, tmp_path, capsys):
    args = ['--drop-path', '0.4', '--methods', 'plain', '--epochs', '1']
    assert demo(written, tmp_path, *args) == 0
    (file,) = tmp_path.glob('*/run.json')
    file.write_text('mine')
    assert demo(written, tmp_path, *args) == 1
    assert str(file) in capsys.readouterr().err and file.read_text() == 'mine'


def test_the_evaluations_that_are_asked_for(written, tmp_path):
    args = ['--drop-path', '0.4', '--methods', 'plain', '--eval-every', '2', '--epochs', '3']
    assert demo(written, tmp_path, *args) == 0
    assert list(runs(tmp_path)['plain', 42]['top1s']) == ['2', '3']
