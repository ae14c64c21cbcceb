"""docs/trainers.md: each of its scripts runs as written, in the environment of its tool."""

import ast
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, TRAINERS, code_blocks, scripts_by_heading

SCRIPTS = scripts_by_heading(TRAINERS)
# the packages of the extra `trainers`, by the names that they are imported by
PACKAGES = {
    'accelerate': 'accelerate',
    'fastai': 'fastai',
    'ignite': 'pytorch-ignite',
    'lightning': 'lightning',
    'transformers': 'transformers',
}
ALWAYS_THERE = {*sys.stdlib_module_names, 'timm', 'timm_stochdepth', 'torch'}


def tools(script):
    """What a script imports beside torch, timm and this package."""
    nodes = [n for n in ast.walk(ast.parse(script)) if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    names += [n.module for n in nodes if isinstance(n, ast.ImportFrom)]
    return {name.partition('.')[0] for name in names} - ALWAYS_THERE


def command_of(script):
    """The command in a script's first line, if there is one; else Python runs it."""
    first_line = script.partition('\n')[0]
    program, *arguments = shlex.split(first_line.removeprefix('# ')) if first_line[0] == '#' else ['python', 'train.py']
    return [str(Path(sys.executable).with_name(program)), *arguments]


def run(script, folder):
    (folder / 'train.py').write_text(script)
    result = subprocess.run(command_of(script), cwd=folder, env=os.environ, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    return result.stderr


def marker(script):
    return pytest.mark.composer if 'composer' in tools(script) else pytest.mark.trainers


@pytest.mark.parametrize('script', [pytest.param(s, id=name, marks=marker(s)) for name, s in SCRIPTS.items()])
def test_scripts_run(script, tmp_path):
    for tool in tools(script):
        if not importlib.util.find_spec(tool):
            pytest.skip(f'{tool} is not installed')
    told = run(script, tmp_path)
    assert 'The weights' not in told  # the warning of weights that do not say for which rates they are


def test_no_script_is_left_out():
    assert list(SCRIPTS.values()) == code_blocks(TRAINERS, 'python')
    assert set().union(*map(tools, SCRIPTS.values())) == {*PACKAGES, 'composer'}
    extra = pytest.importorskip('tomllib').loads((ROOT / 'pyproject.toml').read_text())['project']
    assert sorted(PACKAGES.values()) == extra['optional-dependencies']['trainers']
