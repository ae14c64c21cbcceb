"""The README's code and commands run as written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from timm_stochdepth.cli.main import main

README = (Path(__file__).parent.parent / 'README.md').read_text()


def blocks(language):
    return re.findall(rf'^```{language}\n(.*?)^```', README, flags=re.M | re.S)


def test_python_blocks_run_one_after_the_other(hub_cache, tmp_path):
    script = '\n'.join(blocks('python'))
    assert 'STOCHASTIC_LAYER_MAPPING[' in script and "'resnet50_sd_sample.a1_in1k', pretrained=True" in script
    subprocess.run([sys.executable, '-W', 'error', '-c', script], env=hub_cache, cwd=tmp_path, check=True)


def test_tests_that_the_readme_names_exist():
    names = set(re.findall(r'`(test_\w+)`', README))
    defined = {
        n for f in Path(__file__).parent.rglob('*.py') for n in re.findall(r'^def (test_\w+)', f.read_text(), re.M)
    }
    assert len(names) > 10 and names <= defined


@pytest.mark.parametrize('command', sorted(set(re.findall(r'`timm-stochdepth ((?:list|show)[^`]*)`', README))))
def test_commands_run(command, capsys):
    assert main(shlex.split(command)) == 0
