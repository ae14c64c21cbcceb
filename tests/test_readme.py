"""The README and the pages of docs/: their code and commands run as written, their figures were measured."""

import re
import shlex
import subprocess
import sys

import pytest
from command_reference import PAGE as COMMANDS
from command_reference import with_reference
from figures import DEMO_PAGE, SKIPPED, read, time_of, with_figures
from figures import PAGE as BENCHMARKS
from forks import run_python
from model_families import PAGE as MODELS
from model_families import with_tables
from pages import PAGES, README, ROOT, TRAINERS, anchors, code_blocks, command_lines, inline_commands, links

from timm_stochdepth.cli.main import create_parsers, main
from timm_stochdepth.version import __version__

WORKS_WITH = ROOT / 'docs' / 'works_with.md'

IN_EARNEST = """
import sys, warnings
assert 'timm_stochdepth' not in sys.modules
warnings.simplefilter('error')
warnings.simplefilter('ignore', DeprecationWarning)
"""


@pytest.mark.parametrize('page', [p for p in PAGES if p != TRAINERS and code_blocks(p, 'python')], ids=lambda p: p.stem)
def test_python_blocks_run_each_by_itself(page, hub_cache, tmp_path):
    for number, script in enumerate(code_blocks(page, 'python')):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / 'script.py').write_text(IN_EARNEST + script)
        result = run_python(folder / 'script.py', env=hub_cache, cwd=folder)
        assert result.returncode == 0, f'{script}\n{result.stderr}'


def test_what_a_newcomer_copies_is_code_that_runs():
    scripts = '\n'.join(script for page in PAGES for script in code_blocks(page, 'python'))
    for name in ('pretrained=True', 'skip_dropped=True', 'BRANCH_ENDS[', 'push_to_hub(', 'start_warmup('):
        assert name in scripts


def test_the_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 120] == []


def test_the_readmes_first_command_is_a_demo_that_shows_what_pip_does():
    assert command_lines(README)[0] == 'make demo'
    line = ['make', '--no-print-directory', '--dry-run', '--what-if', 'pyproject.toml', 'demo']
    steps = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (pip,) = [step for step in steps if ' install ' in step and not step.startswith('echo')]
    assert not re.search('--quiet| -q', pip) and steps[-1].endswith('timm-stochdepth demo')


@pytest.mark.parametrize('name', ['weights', 'training'])
def test_pages_that_not_everybody_needs_say_first_who_does(name):
    title, _, head, *_ = (ROOT / 'docs' / f'{name}.md').read_text().splitlines()
    assert title.startswith('# ') and head == '| who | needs |'


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    for target, anchor in links(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), anchor


def test_the_readme_leads_to_every_page():
    assert {page.resolve() for page in PAGES} - {README.resolve()} <= {target for target, _ in links(README)}


def test_every_command_and_option_is_in_the_reference():
    page = COMMANDS.read_text()
    assert page == with_reference(page), 'python tools/command_reference.py writes it anew'


def test_every_family_and_default_rate_is_in_the_page_of_the_models():
    page = MODELS.read_text()
    assert page == with_tables(page), 'python tools/model_families.py writes it anew'


def test_tests_that_a_page_names_exist():
    names = set(re.findall(r'`(test_\w+)`', WORKS_WITH.read_text()))
    defined = {n for f in (ROOT / 'tests').rglob('*.py') for n in re.findall(r'^def (test_\w+)', f.read_text(), re.M)}
    assert len(names) > 10 and names <= defined


INLINE = sorted({command for page in PAGES for command in inline_commands(page)})


QUICK = r'timm-stochdepth (list|show .*|families .*)'  # `families` of all names takes minutes: tests/test_families.py


def arguments(command):
    return shlex.split(command)[1:]


@pytest.mark.parametrize(
    'command', [c for c in INLINE if re.fullmatch(QUICK, c) or c.endswith('--help') and 'COMMAND' not in c]
)
def test_inline_commands_run(command, capsys):
    assert main(arguments(command)) == 0


LINES = [' '.join(line.split()) for page in PAGES for line in command_lines(page)]
# minutes each: tests/bench and tests/demo run others
LONG = sorted(c for c in {*INLINE, *LINES} if re.match(r'timm-stochdepth (bench|demo)(?! --help)', c))


@pytest.mark.parametrize('command', LONG)
def test_commands_that_take_long_are_understood(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *options = arguments(command)
    create_parsers()[1][name].parse_args(options)


@pytest.mark.parametrize('module', ['timm_stochdepth', 'timm_stochdepth.run'])
def test_modules_that_are_commands(module):
    assert f'`python -m {module} ' in COMMANDS.read_text()
    command = [sys.executable, '-m', module, '--help']
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text.startswith('usage: timm-stochdepth' + (' run' if module.endswith('.run') else ' [-h] [--version]'))


def test_the_version_is_the_newest_of_the_changelog():
    assert re.search(r'^## (.*)$', (ROOT / 'CHANGELOG.md').read_text(), re.M)[1] == __version__


@pytest.mark.parametrize('page', [README, BENCHMARKS, DEMO_PAGE], ids=lambda page: page.stem)
def test_the_tables_are_those_of_the_measured_figures(page):
    text = page.read_text()
    assert re.search(r'<!-- figures: \w+ -->\n\|', text)
    assert with_figures(text) == text, 'python tools/figures.py writes them anew'


def test_the_first_words_of_the_readme_are_what_was_measured():
    _, vit = read('vit_small_patch16_224_rate0.4_cpu')
    _, resnet = read('resnet50_rate0.1_cpu')
    skipped = vit[SKIPPED]
    words = ' '.join(README.read_text().partition('## ')[0].split())
    assert f'takes {skipped["ratio"]:.2f} of the time for a training step' in words
    assert f'keeps {skipped["count_ratios"]["kept"]:.2f} of the memory' in words
    blocks, samples = (f'{resnet[name]["ratio"]:.2f}' for name in ('block', SKIPPED))
    assert f'a ResNet-50 at 0.1 takes {blocks} of the time when it drops by blocks, and {samples} by samples' in words


def test_the_figures_of_two_ranks_are_those_that_were_measured():
    _, rows = read('resnet50_rate0.5_cpu_ddp')
    conditional, block = (time_of(row) for name, row in rows.items() if name != 'plain')
    assert f'{block} and\n  {conditional} of plain DDP' in BENCHMARKS.read_text()
