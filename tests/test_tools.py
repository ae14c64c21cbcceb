"""The programs of tools/, started as a developer and the Makefile start them, the tests' folders off the path."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = sorted((Path(__file__).parents[1] / 'tools').glob('*.py'))


@pytest.mark.parametrize('tool', TOOLS, ids=lambda tool: tool.stem)
def test_it_finds_what_it_imports(tool):
    start = f'import runpy, sys; sys.path.insert(0, {str(tool.parent)!r}); runpy.run_path({str(tool)!r})'
    subprocess.run([sys.executable, '-E', '-c', start], cwd=tool.parent, check=True)


def test_the_lowest_versions_are_constraints_of_pip():
    tool = next(tool for tool in TOOLS if tool.stem == 'lowest_versions')
    lines = subprocess.check_output([sys.executable, tool], text=True).splitlines()
    assert all(re.fullmatch(r'[\w.-]+==[\d.]+', line) for line in lines)
    assert {'torch', 'torchvision', 'timm', 'huggingface-hub', 'mosaicml'} <= {line.split('==')[0] for line in lines}
