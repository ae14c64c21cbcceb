"""The wheel in an environment of its base dependencies alone, and the README's install lines in a fresh one."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import timm
from environments import all_requirements, clean_environ, create_environment
from networks import ZOO, randomize

from timm_stochdepth.cli.main import create_parsers
from timm_stochdepth.hub.folder import save_weights

pytestmark = pytest.mark.long
ROOT = Path(__file__).parent.parent
SUPPORT = ROOT / 'tests' / 'support'
EXTRAS = {'matplotlib', 'scikit-learn', 'pandas', 'pytest'}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    subprocess.run(
        [sys.executable, '-m', 'build', '--wheel', '--outdir', folder, ROOT], check=True, capture_output=True
    )
    return next(folder.glob('*.whl'))


def test_it_holds_the_package_its_types_and_the_hub_configs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {'timm_stochdepth/py.typed', 'timm_stochdepth/hub/card.md', 'timm_stochdepth/models/create.py'} <= names
    assert {f'timm_stochdepth/hub_configs/{name}/config.json' for name in ZOO} <= names
    assert not any(n.startswith('tests/') for n in names)


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
    """Python with the wheel and its base dependencies."""
    packages = all_requirements('timm-stochdepth')
    assert {'torch', 'timm', 'huggingface-hub'} <= packages and not packages & EXTRAS
    python = create_environment(tmp_path_factory.mktemp('base') / 'venv', packages)
    subprocess.run([python, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', wheel], check=True)
    return python


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'model.safetensors'
    save_weights(randomize(timm.create_model('resnet50_sd_block', num_classes=4, layers=[1, 1, 1, 1])), path)
    return path


DEMO = 'timm-stochdepth[demo]'
# each command's main job: arguments, and what it says if that takes an extra
COMMANDS = {
    'list': [([], None)],
    'show': [(['resnet50_sd_block'], None), (['resnet50_sd_block', '--plot', 'rates.png'], DEMO)],
    'families': [(['test_vit'], None)],
    'fold': [(['WEIGHTS', 'plain.safetensors'], None)],
    'push': [(['WEIGHTS', 'user/net', '--dry-run', '--out', 'net'], None)],
    'verify': [(['net'], None)],
    'pull': [(['user/net', 'pulled'], 'cannot be reached')],
    'bench': [
        (['--model', 'resnet18', '--img-size', '32', '--batch-size', '2', '--max-rounds', '1'], None),
        (['--model', 'resnet18', '--out', 'figures'], DEMO),
    ],
    'demo': [([], DEMO)],
    'run': [(['script.py'], None)],
}


# by the environment's own Python, which imports torch once
RUN = """
import json, sys
sys.path.append(sys.argv[1])
from forks import run_python
results = [run_python(*line) for line in json.load(sys.stdin)]
print(json.dumps([(result.returncode, result.stderr) for result in results]))
"""


def test_every_command_does_its_job_or_says_which_extra_it_needs(python, weights, tmp_path):
    (tmp_path / 'script.py').write_text("import timm\nassert timm.is_model('resnet50_sd_block')\n")
    env = {**clean_environ(os.environ), 'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HUB_CACHE': str(tmp_path / 'cache')}
    assert set(COMMANDS) == set(create_parsers()[1])
    uses = [(command, args, refusal) for command, uses in COMMANDS.items() for args, refusal in uses]
    tool = str(python.parent / 'timm-stochdepth')
    lines = [[tool, command, *(str(weights) if a == 'WEIGHTS' else a for a in args)] for command, args, _ in uses]
    ran = subprocess.run(
        [python, '-c', RUN, SUPPORT],
        input=json.dumps(lines),
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    for (command, _, refusal), (status, err) in zip(uses, json.loads(ran.stdout), strict=True):
        assert 'Traceback' not in err, err
        if refusal is None:
            assert status == 0, (command, err)
        else:
            assert status == 1 and refusal in err.splitlines()[-1], (command, err)
    assert not {'figures', 'demo_output', 'rates.png'} & {p.name for p in tmp_path.iterdir()}


FUNCTIONS = """
    import sys, timm, torch
    assert 'matplotlib' not in sys.modules
    import timm_stochdepth as ts
    model = timm.create_model('resnet18', num_classes=4)
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBasicBlock', 0.5, drop_warmup=0.1)
    assert ts.Settings('sample', 0.5).drop_rate == 0.5
    ts.start_warmup(model)
    ts.set_training_progress(model, 0.5)
    ts.set_drop_rate(model, 0.4)
    assert max(ts.drop_rates(model).values()) == 0.4
    assert ts.stochastic_depth_args(model)['drop_path_rate'] == 0.4
    with ts.no_drop(model):
        model(torch.randn(2, 3, 32, 32))
    ts.push_to_hub(model, 'user/net', plain=True, dry_run=True)
    ts.fold_stochastic_depth(model).eval()(torch.randn(1, 3, 32, 32))
    ts.StochasticDepth('block', 'ResNetBottleneck')
    assert ts.STOCHASTIC_LAYER_MAPPING and ts.StochasticBlock and ts.models
    assert ts.BRANCH_ENDS and ts.BATCH_DIMENSIONS and ts.SCALING_LAYERS and ts.GATE_INPUT_LAYERS and ts.NORM_LAYERS
    assert ts.TRUSTED_BLOCKS == []
    used = set(ts.__all__) - {'__version__'}
    assert all(name in open(sys.argv[1]).read() for name in used), used
"""


def test_every_public_function_works(python, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(textwrap.dedent(FUNCTIONS))
    result = subprocess.run([python, script, script], env=clean_environ(os.environ), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def install_lines():
    """The README's lines below "Install"."""
    section = (ROOT / 'README.md').read_text().split('## Install\n')[1].split('\n## ')[0]
    lines = re.search(r'```bash\n(.*?)```', section, re.DOTALL).group(1).splitlines()
    return [line.partition('#')[0].strip() for line in lines if line.startswith('pip ')]


def copy_of_checkout(folder):
    names = subprocess.run(
        ['git', 'ls-files'], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize(
    'linked',
    [
        pytest.param(True, id='what it needs is there'),
        pytest.param(False, id='nothing is there', marks=pytest.mark.install),  # gigabytes, some minutes
    ],
)
def test_the_readmes_install_lines_work_in_a_fresh_environment(linked, tmp_path):
    lines = install_lines()
    assert 'pip install .' in lines and any('[demo]' in line for line in lines)
    checkout = copy_of_checkout(tmp_path / 'checkout')
    packages = all_requirements('timm-stochdepth', 'demo') if linked else set()
    python = create_environment(tmp_path / 'venv', packages)
    env = {**clean_environ(os.environ), 'PATH': f'{python.parent}:{os.environ["PATH"]}'}
    for line in lines:
        subprocess.run(line, shell=True, cwd=checkout, env=env, check=True, capture_output=True)
    result = subprocess.run(
        ['timm-stochdepth', 'list'], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
    )
    assert 'resnet50_sd_block' in result.stdout
    where = subprocess.run(
        ['python', '-c', 'import sklearn, matplotlib, timm_stochdepth; print(timm_stochdepth.__file__)'],
        cwd=tmp_path, env=env, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(tmp_path / 'venv'))
