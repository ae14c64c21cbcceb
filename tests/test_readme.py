"""The README's code and commands run as written."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from timm_stochdepth.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def blocks(language):
    return re.findall(rf'^```{language}\n(.*?)^```', README, flags=re.M | re.S)


def test_python_blocks_run_one_after_the_other(hub_cache, tmp_path):
    script = '\n'.join(blocks('python'))
    assert 'STOCHASTIC_LAYER_MAPPING[' in script and "'resnet50_sd_sample.a1_in1k', pretrained=True" in script
    subprocess.run([sys.executable, '-W', 'error', '-c', script], env=hub_cache, cwd=tmp_path, check=True)


@pytest.mark.parametrize('page', sorted((ROOT / 'docs').glob('*.md')), ids=lambda p: p.name)
def test_python_blocks_of_the_docs_run_each_by_itself(page, hub_cache, tmp_path):
    scripts = re.findall(r'^```python\n(.*?)^```', page.read_text(), flags=re.M | re.S)
    assert scripts
    for number, script in enumerate(scripts):
        (tmp_path / str(number)).mkdir()
        command = [sys.executable, '-W', 'error', '-c', script]
        subprocess.run(command, env=hub_cache, cwd=tmp_path / str(number), check=True)


def test_tests_that_the_readme_names_exist():
    names = set(re.findall(r'`(test_\w+)`', README))
    defined = {
        n for f in Path(__file__).parent.rglob('*.py') for n in re.findall(r'^def (test_\w+)', f.read_text(), re.M)
    }
    assert len(names) > 10 and names <= defined


@pytest.mark.parametrize('command', sorted(set(re.findall(r'`timm-stochdepth ((?:list|show|families)[^`]*)`', README))))
def test_commands_run(command, capsys):
    assert main(shlex.split(command)) == 0


def table_below(heading):
    """Cells of the first table below a heading, by row and column name."""
    section = README.split(f'## {heading}\n')[1]
    lines = re.search(r'(?:^\|.*\n)+', section, re.M).group().splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    return {row[0]: dict(zip(header[1:], row[1:])) for row in rows}


def figure(row):
    return f'{row["ratio"]:.3f} ± {(row["high"] - row["low"]) / 2:.3f}'


def test_the_figures_are_those_that_were_measured():
    table = table_below('What it costs and saves')
    files = {
        'rate 0.1': 'resnet50_rate0.1_cpu',
        'rate 0.2': 'resnet50_rate0.2_cpu',
        'rate 0.5': 'resnet50_rate0.5_cpu',
        'rate 0.1, compiled': 'resnet50_rate0.1_cpu_compile',
        'inference': 'resnet50_rate0.1_cpu_inference',
    }
    assert set(next(iter(table.values()))) == set(files)
    for column, name in files.items():
        for row in json.loads((ROOT / 'benchmarks' / f'{name}.json').read_text())['rows'][1:]:
            limit = f' ({row["limit"]:.3f})' if row['limit'] < 1 else ''
            assert table[row['name']][column] == figure(row) + limit, row['name']


def test_the_figures_of_other_networks_are_those_that_were_measured():
    files = sorted((ROOT / 'benchmarks').glob('*_uniform.json'))
    assert files
    for file in files:
        figures = json.loads(file.read_text())
        rows = {row['name']: row for row in figures['rows']}
        cells = [figure(rows[name]) for name in ('timm DropPath', 'sample', 'sample, skip_dropped', 'block')]
        settings = figures['settings']
        assert f'| {settings["model"]}, {settings["batch_size"]} | {" | ".join(cells)} |' in README


@pytest.mark.parametrize('folder', ['again', 'kept_memory'])
def test_the_figures_of_further_runs_are_those_that_were_measured(folder):
    rows = json.loads((ROOT / 'benchmarks' / folder / 'resnet50_rate0.5_cpu.json').read_text())['rows']
    assert 'sample {}, skip_dropped\n  {}, block {}.'.format(*map(figure, rows[-3:])) in README


def test_the_figures_of_two_ranks_are_those_that_were_measured():
    rows = json.loads((ROOT / 'benchmarks' / 'resnet50_rate0.5_cpu_ddp.json').read_text())['rows']
    conditional, block = map(figure, rows[1:])
    assert f'{block} and\n  {conditional} of plain DDP' in README
