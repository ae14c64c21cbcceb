import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import warnings

import pytest
import timm
import torch

import timm_stochdepth as ts
from timm_stochdepth.cli.main import create_parsers, main
from timm_stochdepth.output.plots import draw_rates, save_figure
from timm_stochdepth.output.terminal import complain, progress_bar, say, start_command


def test_list_names_rates_and_where_they_are_from(capsys):
    assert main(['list']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(':')[0] for line in lines] == timm.list_models('*_sd_*')
    said = dict(line.split(': ', 1) for line in lines)
    for name, rate in (('resnet50_sd_sample', 0.1), ('resnet50_sd_block', 0.2), ('resnet101_sd_block', 0.4)):
        assert said[name].startswith(f'method {name.split("_")[-1]}, rate {rate} linear (https://github.com/mosaicml/')
    assert said['convnext_base_sd_sample'].startswith('method sample, rate 0.5 linear (https://')
    assert said['lcnetv2_base_sd_block'].startswith('method block, rate 0.1 uniform (')


def test_list_says_the_rate_that_a_network_is_built_with(capsys):
    assert main(['list', 'test_*']) == 0
    for line in capsys.readouterr().out.splitlines():
        name, method, rate, distribution = re.match(r'(\S+): method (\w+), rate (\S+) (\w+) \(', line).groups()
        with warnings.catch_warnings(), torch.device('meta'):
            warnings.simplefilter('ignore')  # one of them has a single block with a drop path
            args = ts.stochastic_depth_args(timm.create_model(name))
        assert name.endswith(f'_sd_{method}')
        assert (args['drop_path_rate'], args['drop_distribution']) == (float(rate), distribution)


@pytest.mark.parametrize('pattern', ['resnet101', 'resnet101_sd_*'])
def test_list_filters_by_the_name_or_that_of_the_plain_network(pattern, capsys):
    assert main(['list', pattern, '--tags']) == 0
    out = capsys.readouterr().out
    assert re.findall(r'^\S+(?=:)', out, re.MULTILINE) == ['resnet101_sd_block', 'resnet101_sd_sample']
    tags = ', '.join(name.partition('.')[2] for name in timm.models.get_arch_pretrained_cfgs('resnet101'))
    assert ' '.join(out.split()).count(f'7 pretrained tags, first the default: {tags}') == 2


@pytest.mark.parametrize(
    'pattern, why',
    [
        ('no_such*', '.'),
        ('resnet5O', ': did you mean resnet50 or '),
        ('resnet50_sd_blok', ': did you mean resnet50_sd_block or '),
        ('resnet50_sd_block.a1_in1k', ': did you mean resnet50_sd_block or '),
        ('vgg16_sd_*', ': vgg16 has no branches that could be dropped: it has no shortcuts.'),
        ('vgg*', ': vgg11 has no branches that could be dropped: it has no shortcuts.'),
        ('rexnet_100_sd_block', ': branches of rexnet_100 cannot all be left out, as the result of self.drop_path is '),
    ],
)
def test_list_says_why_nothing_matches(pattern, why, capsys):
    assert main(['list', pattern]) == 2
    (err,) = capsys.readouterr().err.splitlines()
    assert f'filter must match a name of this package, but got {pattern!r}{why}' in err


def test_list_takes_no_import_of_torch():
    line = 'import sys; from timm_stochdepth.cli.main import main; main(["list"]); assert "timm" not in sys.modules'
    result = subprocess.run([sys.executable, '-c', line], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.count('\n') > 2400, result.stderr


def test_show_prints_each_block(capsys, tmp_path):
    picture = tmp_path / 'rates.png'
    assert main(['show', 'resnet50_sd_block', '--drop-path', '0.5', '--plot', str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {row[0]: row[1:] for row in map(str.split, lines) if row[0].startswith('layer')}
    rates = ts.drop_rates(timm.create_model('resnet50_sd_block', drop_path_rate=0.5))
    assert list(rows) == list(rates)
    depth = 0
    for name, (rate, expected_depth, _) in rows.items():
        depth += 1 - rates[name]
        assert float(rate) == pytest.approx(rates[name], abs=5e-5)
        assert float(expected_depth) == pytest.approx(depth, abs=5e-3)
    # an expected sum over 16 blocks of rate l / 15 * 0.5
    assert 'Expected depth: 12.00 of 16 blocks.' in lines
    assert picture.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'args, message',
    [
        (['show', 'resnet50'], "model must have stochastic depth, but got 'resnet50'"),
        (['show', 'resnet50_sd_blok'], "but got 'resnet50_sd_blok': did you mean resnet50_sd_block or"),
        (['show', 'resnet50_sd_block.a1_in1'], 'did you mean resnet50_sd_block.a1_in1k'),
        (['show', 'resnet50_sd_block', '--drop-path', '2'], "--drop-path must be in [0, 1], but got '2'"),
        (['show', 'resnet50_sd_block', '--drop-path', 'nan'], "--drop-path must be in [0, 1], but got 'nan'"),
        (['show', 'resnet50_sd_block', '--drop-distribution', 'liner'], "but got 'liner': did you mean linear?"),
        (['show', 'resnet50_sd_block', '--img-size', '31'], '--img-size must be 32 or more for this network'),
        (['show', 'resnet50_sd_block', '--img-size', '-5'], '--img-size must be a whole number from 1'),
        (['show', 'resnet50_sd_block', '--dropath', '0.5'], 'did you mean --drop-path?'),
        (['demo', '--epochs', '0'], '--epochs must be a whole number from 1'),
        (['demo', '--seed', '-1'], '--seed must be a whole number from 0'),
        (['demo', '--seed', '1', '1'], '--seed must be different ones'),
        (
            ['demo', '--models', 'resnet5', '--epochs', '1'],
            "--models/--model must be a name that timm knows, but got 'resnet5'",
        ),
        (['demo', '--model', 'inception_v3'], '--models/--model must be networks that take images of 32 x 32'),
        (
            ['demo', '--data', 'mnist'],
            "--data must be one of digits, fashion-mnist, but got 'mnist'",
        ),
        (['demo', '--data-dir', '.'], "--data-dir must be without --data digits, but got '.'"),
        (['demo', '--methods', 'skip'], '--methods needs a --drop-path above 0, but got None'),
        (['demo', '--methods', 'skip', '--drop-path', '0'], '--methods needs a --drop-path above 0, but got 0.0'),
        (['demo', '--methods', 'skip', 'skip', '--drop-path', '1'], '--methods must be different ones'),
        (
            ['demo', '--model', 'resnet50_sd_block', '--methods', 'skip', '--drop-path', '0.1'],
            '--methods must be for networks whose names have no stochastic depth, but got resnet50_sd_block',
        ),
        (['demo', '--model', 'vgg11', '--drop-path', '0.1'], "networks with drop paths, but got 'vgg11'"),
        (['demo', '--model', 'resnet18', '--images', '1438'], '--images must be 1,437 at the most for the digits'),
        (['demo', '--batch-size', '2000'], '--batch-size must be at most --images, 1437, but got 2000'),
        (['demo', '--model-kwargs', 'no_such=1'], '--model-kwargs must be arguments of resnet50'),
        (['demo', '--model-kwargs', 'scriptable=1', 'layers=3'], 'of the network alone, but has scriptable.'),
        (
            ['demo', '--model-kwargs', 'patch_size=0', '--model', 'test_vit'],
            '--model-kwargs must be arguments of test_vit',
        ),
        (['demo', '--model-kwargs', 'foo'], "--model-kwargs must be of the form KEY=VALUE, but got 'foo'"),
        (['verfy', 'x'], "but got 'verfy': did you mean verify?"),
        ([''], "COMMAND must be one of demo, list, show, families, fold, push, pull, verify, bench, run, but got ''"),
    ],
)
def test_a_wrong_argument_is_one_line_and_makes_nothing(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1 and err.startswith('timm-stochdepth')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('args', [['--help'], ['--version'], ['show', '--help'], ['push', '--help']])
def test_help_succeeds(args, capsys):
    assert main(args) == 0
    assert capsys.readouterr().out


def run_command(*args, **kwargs):
    return subprocess.run([sys.executable, '-X', 'importtime', '-m', 'timm_stochdepth', *args], text=True, **kwargs)


@pytest.mark.parametrize(
    'args, status',
    [
        (['--help'], 0),
        (['--version'], 0),
        (['shwo'], 2),
        (['show', 'resnet50_sd_block', '--drop-path', '2'], 2),
        *(([name, '--help'], 0) for name in create_parsers()[1]),
    ],
)
def test_help_and_typos_wait_for_no_import(args, status):
    result = run_command(*args, capture_output=True)
    assert result.returncode == status
    imported = {line.split('|')[-1].strip().partition('.')[0] for line in result.stderr.splitlines() if '|' in line}
    assert 'timm_stochdepth' in imported
    assert not {'torch', 'timm', 'huggingface_hub', 'numpy', 'matplotlib', 'tqdm'} & imported


@pytest.mark.parametrize('suffix, start', [('.pdf', b'%PDF-'), ('.svg', b'<?xml'), ('.png', b'\x89PNG')])
def test_a_picture_has_the_format_of_its_suffix(tmp_path, suffix, start):
    figure = draw_rates('net', {'layer1': 0.1})
    save_figure(figure, tmp_path / f'rates{suffix}')
    assert (tmp_path / f'rates{suffix}').read_bytes().startswith(start)
    with pytest.raises(ValueError, match=r'must end in \.png or \.pdf or \.svg'):
        save_figure(figure, tmp_path / 'rates.jpg')


def test_a_picture_is_replaced_by_force_alone(tmp_path, capsys):
    picture = tmp_path / 'rates.png'
    picture.write_bytes(b'\x89PNG\r\n\x1a\n my own')
    before = picture.read_bytes()
    assert main(['show', 'resnet50_sd_block', '--plot', str(picture)]) == 2
    assert '--force replaces' in capsys.readouterr().err and picture.read_bytes() == before
    assert main(['show', 'resnet50_sd_block', '--plot', str(picture), '--force']) == 0
    assert picture.read_bytes() != before


def test_errors_are_said_anywhere_and_what_takes_long_on_a_terminal_alone(capsys):
    start_command('fold')
    say('reading a checkpoint')
    complain('no such file')
    with progress_bar(10, 'counting', 'network') as progress:
        progress.update(10)
    start_command(None)
    complain('no such file')
    assert capsys.readouterr().err == 'timm-stochdepth fold: no such file\n'


def test_a_bar_and_a_word_are_there_on_a_terminal():
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    script = """
from timm_stochdepth.output.terminal import complain, progress_bar, say, start_command
start_command('fold')
say('reading')
with progress_bar(9, 'counting', 'network') as progress:
    progress.update(9)
"""
    subprocess.run([sys.executable, '-c', script], stderr=terminal, check=True)
    seen = os.read(master, 10_000)  # the process has ended: all of it is there
    assert b'timm-stochdepth fold: reading' in seen and b'counting' in seen
    os.close(terminal)
    os.close(master)
