"""The exit states, each an invocation of the installed command."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from forks import run_python
from interrupts import heed_interrupts

import timm_stochdepth as ts

TOOL = shutil.which('timm-stochdepth', path=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')


@pytest.mark.parametrize(
    'line, status, message',
    [
        (['--version'], 0, ''),
        ([], 2, 'usage: timm-stochdepth'),
        (['show', 'resnet50_sd_block', '--drop-path', '2'], 2, "--drop-path must be in [0, 1], but got '2'"),
        (['verify', 'no/such/folder'], 2, "but got 'no/such/folder', which does not exist."),
        (['verify', 'nofolder'], 2, "network must be a name that timm knows, but got 'nofolder'"),
        (['show', 'last.pth.tar'], 2, "but got 'last.pth.tar', which does not exist."),
        (['bench', '--out', '/proc/x'], 2, "--out must lie in a folder that can be written to, but got '/proc/x'"),
        (['show', 'resnet50_sd_block', '--plot', '/proc/x.png'], 2, '--plot must lie in a folder that can be written'),
        (['fold', 'notes.txt', 'x.pth'], 1, 'notes.txt must be a checkpoint or state_dict'),
    ],
)
def test_exit_states(line, status, message, tmp_path):
    (tmp_path / 'notes.txt').write_text('my notes')
    result = run_python(TOOL, *line, cwd=tmp_path)
    assert result.returncode == status and message in result.stderr
    if line:
        assert result.stderr.count('\n') == bool(status)
    else:  # the commands are listed
        assert all(f'\n    {name} ' in result.stderr for name in ('demo', 'show', 'fold', 'push', 'verify', 'run'))


@pytest.mark.skipif(not Path('/proc/self/maps').is_file(), reason='the libraries of a process are seen on Linux alone')
@pytest.mark.parametrize('library', ['multiarray_umath', 'libtorch_cpu'])  # numpy swallows an interrupt by itself
def test_an_interrupt_while_torch_is_imported(library, tmp_path):
    outputs = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([TOOL, 'families', 'test_vit'], **outputs, preexec_fn=heed_interrupts)
    while process.poll() is None and library not in Path(f'/proc/{process.pid}/maps').read_text():
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode in (130, -signal.SIGINT) and err == 'timm-stochdepth families: interrupted\n'


@pytest.mark.long
def test_a_reader_that_goes_and_a_disk_that_is_full():
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([TOOL, 'list'], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert result.returncode == 141 and result.stderr == ''
    with open('/dev/full', 'w') as full:
        result = subprocess.run([TOOL, 'list'], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr == 'timm-stochdepth list: the output cannot be written: No space left on device.\n'


@pytest.mark.parametrize('target', ['plain.safetensors', 'plain.pth', 'out'])
def test_a_disk_that_fills_up_is_told_with_the_files_name(target, tmp_path):
    model = timm.create_model('resnet50_sd_block', num_classes=3, layers=[1, 1, 1, 1], base_width=8)
    assert ts.drop_rates(model)
    args = dict(model='resnet50_sd_block', drop_path=None, model_kwargs=dict(layers=[1, 1, 1, 1], base_width=8))
    torch.save(dict(state_dict=model.state_dict(), args=args), tmp_path / 'last.pth.tar')
    line = ['push', 'last.pth.tar', 'user/net', '--dry-run', '--out'] if target == 'out' else ['fold', 'last.pth.tar']
    for size, named in ((100_000, target), (1000, '--out' if target == 'out' else 'OUT')):
        result = run_python(TOOL, *line, target, cwd=tmp_path, limit=(resource.RLIMIT_FSIZE, (size, size)))
        assert result.returncode == (1 if size > 4096 else 2), result.stderr
        assert result.stderr.count('\n') == 1 and 'File too large' in result.stderr
        assert named in result.stderr or target == 'out' and size > 4096  # first in the folder for what is sent
    assert sorted(path.name for path in tmp_path.iterdir()) == ['last.pth.tar']
