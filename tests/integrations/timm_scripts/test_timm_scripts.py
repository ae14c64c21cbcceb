"""timm's own scripts, unmodified, from the checkout that TIMM_REPO names."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import timm
import torch
import yaml
from launcher_runs import args_of, rates, summary
from networks import randomize
from pages import README, ROOT, command_lines
from safetensors.torch import save_file

from timm_stochdepth.cli.main import create_parsers, main

TIMM_REPO = os.environ.get('TIMM_REPO')
needs_timm_repo = pytest.mark.skipif(not TIMM_REPO, reason='TIMM_REPO names no checkout of timm')
RECIPES = sorted(ROOT.glob('hub_configs/**/*.yaml'))
WARMUP = ['--model-kwargs', 'drop_warmup=0.5']
TINY = [
    *('--num-classes', '10', '--img-size', '32', '--device', 'cpu', '-b', '16', '--workers', '1'),
    *('--opt', 'adamw', '--lr', '1e-3', '--log-interval', '1'),
]


@pytest.fixture(scope='session')
def few_digits(tmp_path_factory):
    """A few of the demo's images: five a class to train on, three to validate."""
    from timm_stochdepth.demo.digits import NUM_TRAIN_IMAGES, read_digits

    digits = read_digits(NUM_TRAIN_IMAGES)
    root = tmp_path_factory.mktemp('scripts') / 'few'
    for split, dataset, num in (('train', digits.train.dataset, 5), ('validation', digits.validation, 3)):
        for target in range(10):
            folder = root / split / str(target)
            folder.mkdir(parents=True)
            for idx in [i for i, t in enumerate(dataset.targets) if t == target][:num]:
                dataset.images[idx].save(folder / f'{idx:04d}.png')
    return root


def run_script(script, *args, launcher=True, options=(), ranks=1, env=None, cwd=None):
    """Run a script of timm's under the launcher or plainly; what it printed."""
    command = [sys.executable]
    if ranks > 1:
        command += ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={ranks}']
        command += [ROOT / 'tests' / 'support' / 'cpu_ddp.py', *options]
    else:
        command += ['-m', 'timm_stochdepth.run', *options] if launcher else []
    command += [f'{TIMM_REPO}/{script}', *map(str, args)]
    env = {**(env or os.environ), 'OMP_NUM_THREADS': '1' if ranks > 1 else '2'}
    result = subprocess.run(command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout[-5000:]
    return result.stdout


def train(data, output, *args, model='resnet50_sd_block', epochs=1, **kwargs):
    return run_script(
        'train.py',
        *('--data-dir', data, '--model', model, '--epochs', epochs, '--output', output, '--experiment', 'run'),
        *TINY,
        *args,
        **kwargs,
    )


def top1(text, pattern=r'"top1": ([\d.]+)'):
    return float(re.findall(pattern, text)[-1])


@needs_timm_repo
@pytest.mark.parametrize('recipe', RECIPES, ids=lambda p: f'{p.parent.name}/{p.name}')
def test_recipes_parse(recipe, monkeypatch):
    spec = importlib.util.spec_from_file_location('timm_train', f'{TIMM_REPO}/train.py')
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    config = yaml.safe_load(recipe.read_text())
    options = {action.dest: action for action in script.parser._actions}
    for key, value in config.items():
        assert key in options, key
        if options[key].type in (int, float):
            assert isinstance(value, (int, float)), key
    monkeypatch.setattr(sys, 'argv', ['train.py', '--config', str(recipe), '--data-dir', 'x'])
    args, _ = script._parse_args()
    assert all(getattr(args, key) == value for key, value in config.items())


def test_there_is_a_recipe_for_each_model_and_for_fine_tuning():
    assert len(RECIPES) == 5
    for recipe in RECIPES:
        config = yaml.safe_load(recipe.read_text())
        assert config['device_modules'] == ['timm_stochdepth']
        if recipe.name == 'recipe.yaml':
            assert config['model'] == recipe.parent.name


@needs_timm_repo
@pytest.mark.parametrize('model', ['resnet50_sd_sample', 'resnet50_sd_block'])
def test_plain_train_and_validate(few_digits, tmp_path, model):
    args = ('--device-modules', 'timm_stochdepth', '--drop-path', 0.3)
    trained = train(few_digits, tmp_path, *args, model=model, epochs=2, launcher=False)
    checkpoint = tmp_path / 'run' / 'model_best.pth.tar'
    best = float(re.search(r'\*\*\* Best metric: ([\d.]+)', trained)[1])
    validated = run_script(
        'validate.py',
        *('--data-dir', few_digits, '--model', model, '--checkpoint', checkpoint, '--num-classes', 10),
        *('--img-size', 32, '--crop-pct', 0.95, '--device', 'cpu', '-b', 16, '--workers', 1),
        *('--model-kwargs', 'drop_path_rate=0.3'),
    )
    assert top1(validated) == pytest.approx(best, abs=1e-3)


@needs_timm_repo
def test_plain_train_says_what_a_warmup_needs(few_digits, tmp_path):
    text = train(few_digits, tmp_path, '--device-modules', 'timm_stochdepth', *WARMUP, launcher=False)
    assert 'run the script with `timm-stochdepth run SCRIPT ...`' in text


VIT = [
    *('--drop-path', 0.6, '--model-kwargs', 'img_size=32', 'depth=4', 'embed_dim=48', 'num_heads=3'),
]


def losses(text):
    return [float(loss) for loss in re.findall(r'Train: .*?Loss: *([\d.e+-]+)', text)]


@needs_timm_repo
def test_any_model_skips_what_it_drops_and_learns_what_timm_teaches(few_digits, tmp_path):
    runs, weights = {}, {}
    for name, kwargs in {
        'timm': dict(launcher=False),
        'sample': dict(options=['--stochastic-depth', 'sample']),
        'skip': dict(options=['--skip-dropped']),
    }.items():
        output = tmp_path / name
        runs[name] = losses(train(few_digits, output, *VIT, model='vit_tiny_patch16_224', epochs=2, **kwargs))
        checkpoint = torch.load(output / 'run' / 'last.pth.tar', weights_only=False)
        weights[name] = checkpoint['state_dict']
    assert len(runs['timm']) >= 6
    for name in ('sample', 'skip'):
        assert runs[name] == pytest.approx(runs['timm'], rel=2e-3)  # three digits are printed
        assert list(weights[name]) == list(weights['timm'])
        for key, value in weights['timm'].items():
            torch.testing.assert_close(weights[name][key], value, rtol=1e-3, atol=1e-4, msg=key)
    # a plain checkpoint of timm's, which validate.py reads without this package
    summary = (tmp_path / 'skip' / 'run' / 'summary.csv').read_text().splitlines()
    last = dict(zip(summary[0].split(','), summary[-1].split(',')))
    validated = run_script(
        'validate.py',
        *('--data-dir', few_digits, '--model', 'vit_tiny_patch16_224', '--num-classes', 10, '--img-size', 32),
        *('--checkpoint', tmp_path / 'skip' / 'run' / 'last.pth.tar', '--crop-pct', 0.9, '--device', 'cpu'),
        *('-b', 16, '--workers', 1, '--model-kwargs', 'img_size=32', 'depth=4', 'embed_dim=48', 'num_heads=3'),
        launcher=False,
    )
    assert top1(validated) == pytest.approx(float(last['eval_top1']), abs=1e-3)


@needs_timm_repo
@pytest.mark.parametrize('options', [['--skip-dropped', '--drop-warmup', '1'], ['--stochastic-depth', 'block']])
def test_any_model_on_two_processes(few_digits, tmp_path, options):
    text = train(few_digits, tmp_path, *VIT, model='vit_tiny_patch16_224', ranks=2, options=options, epochs=2)
    assert losses(text) and all(loss < 10 for loss in losses(text))
    assert text.count('vit_tiny_patch16_224 has stochastic depth in 4 blocks') == 1
    assert rates(tmp_path / 'run') == ([0.3, 0.6] if '--drop-warmup' in options else [0.6, 0.6])


@needs_timm_repo
def test_a_run_of_any_model_notes_its_options_is_repeated_and_resumed(few_digits, tmp_path):
    options = ['--skip-dropped', '--drop-distribution', 'uniform', '--drop-schedule', '0:1,1:0.5']
    kwargs = dict(model='vit_tiny_patch16_224', epochs=2)
    text = train(few_digits, tmp_path / 'first', *VIT, '--model-ema', options=options, **kwargs)
    said = re.findall('vit_tiny_patch16_224 has stochastic depth .*', text)
    assert len(said) == 1 and 'drop rates from 0.6 to 0.6, what is dropped is not computed' in said[0]
    assert text.index(said[0]) < text.index('Train: 0 [')
    assert rates(tmp_path / 'first' / 'run') == [0.45, 0.3]
    noted = args_of(tmp_path / 'first' / 'run').get('stochastic_depth')
    assert noted == dict(
        stochastic_method='sample',
        drop_distribution='uniform',
        drop_warmup=0.0,
        drop_schedule=[[0.0, 1.0], [1.0, 0.5]],
        use_same_gpu_seed=True,
        scale_by_keep=True,
        skip_dropped=True,
    )

    config = tmp_path / 'first' / 'run' / 'args.yaml'
    again = run_script('train.py', '--config', config, '--output', tmp_path / 'again')
    assert re.findall('vit_tiny_patch16_224 has stochastic depth .*', again) == said
    assert losses(again) == losses(text) and args_of(tmp_path / 'again' / 'run').get('stochastic_depth') == noted

    resume = ('--resume', tmp_path / 'first' / 'run' / 'checkpoint-0.pth.tar')
    told = train(few_digits, tmp_path / 'resumed', *VIT, *resume, **kwargs)
    typed = re.search(r'To go on as it was: timm-stochdepth run (.*) \S+train.py \.\.\.', told)[1].split()
    assert args_of(tmp_path / 'resumed' / 'run').get('stochastic_depth') is None
    told = train(few_digits, tmp_path / 'resumed', *VIT, *resume, options=typed, **kwargs)
    assert (
        'was written by a run with' not in told
        and summary(tmp_path / 'resumed' / 'run')[-1]['train_drop_rate'] == '0.3'
    )
    assert args_of(tmp_path / 'resumed' / 'run').get('stochastic_depth') == noted


@needs_timm_repo
@pytest.mark.parametrize('flags', [['--grad-accum-steps', '2'], ['--torchcompile', 'aot_eager']])
def test_flags_work_with_a_warmup_of_any_model(few_digits, tmp_path, flags):
    options = ['--skip-dropped', '--drop-warmup', '0.5']
    train(few_digits, tmp_path, *VIT, *flags, model='vit_tiny_patch16_224', options=options, epochs=2)
    assert rates(tmp_path / 'run') == [0.6, 0.6]


@needs_timm_repo
@pytest.mark.parametrize('teacher', ['resnet50_sd_sample.a1_in1k', 'resnet50.a1_in1k'])
@pytest.mark.parametrize('kind', ['logit', 'feature'])
def test_a_teacher_of_any_model_is_left_as_it_is(few_digits, tmp_path, teacher, kind, hub_cache):
    args = [*VIT, '--kd-model-name', teacher, '--kd-distill-type', kind]
    text = train(few_digits, tmp_path, *args, model='vit_tiny_patch16_224', options=['--skip-dropped'], env=hub_cache)
    assert f'{teacher} is left as it is beside the network that is trained' in text
    assert 'vit_tiny_patch16_224 has stochastic depth in 4 blocks' in text
    assert rates(tmp_path / 'run') == [0.6]


@needs_timm_repo
@pytest.mark.parametrize('model', ['resnet50_sd_block', 'vgg11'])
def test_a_model_that_cannot_have_it_is_refused_in_a_line(few_digits, tmp_path, model):
    with pytest.raises(AssertionError) as e:
        train(few_digits, tmp_path, '--drop-path', 0.2, model=model, options=['--skip-dropped'])
    message = f"--model must be a network that --skip-dropped can be given to, but got '{model}'"
    last = [line for line in str(e.value).splitlines() if message in line]
    assert len(last) == 1 and 'Traceback' not in str(e.value)


@needs_timm_repo
def test_bare_weights_of_a_plain_network_are_validated_as_timm_does(few_digits, tmp_path):
    torch.manual_seed(0)
    plain = randomize(timm.create_model('resnet50', num_classes=10))
    save_file(plain.state_dict(), tmp_path / 'plain.safetensors')
    args = (
        '--data-dir',
        few_digits,
        '--num-classes',
        10,
        '--img-size',
        32,
        '--device',
        'cpu',
        '-b',
        16,
        '--workers',
        1,
    )
    pattern = r'"top1": ([\d.]+),\s*"top1_err": [\d.]+,\s*"top5": ([\d.]+)'
    scores = []
    for model in ('resnet50', 'resnet50_sd_block'):
        text = run_script('validate.py', *args, '--model', model, '--checkpoint', tmp_path / 'plain.safetensors')
        scores.append((re.search(pattern, text).groups(), re.findall(r'Loss: +([\d.]+)', text)))
        assert ('--model-kwargs' in text) == ('sd' in model)
    assert scores[0] == scores[1]


FLAGS = {
    'model_ema': ['--model-ema', '--model-ema-decay', '0.9'],
    'amp': ['--amp', '--amp-dtype', 'bfloat16'],
    'grad_accum': ['--grad-accum-steps', '2'],
    'grad_checkpointing': ['--grad-checkpointing'],
    'channels_last': ['--channels-last'],
    'torchcompile': ['--torchcompile', 'aot_eager'],
    'sync_bn': ['--sync-bn'],
    'drop_path': ['--drop-path', '0.7'],
    'model_kwargs': ['--model-kwargs', 'drop_distribution=uniform', 'scale_by_keep=True', 'drop_warmup=0.5'],
    'teacher': ['--kd-model-name', 'resnet50_sd_sample.a1_in1k', '--num-classes', '1000'],
}


@needs_timm_repo
@pytest.mark.parametrize('model', ['resnet50_sd_sample', 'resnet50_sd_block'])
@pytest.mark.parametrize('flag', FLAGS)
def test_flags_work_with_a_warmup(few_digits, tmp_path, flag, model, hub_cache):
    warmup = [] if flag == 'model_kwargs' else WARMUP
    text = train(few_digits, tmp_path, *FLAGS[flag], *warmup, model=model, epochs=2, env=hub_cache)
    rate = dict(drop_path=0.7).get(flag, 0.1 if 'sample' in model else 0.2)
    assert re.findall(r'Epoch (\d+): drop rate ([\d.]+)', text) == [('0', '0.0000'), ('1', f'{rate:.4f}')]
    assert text.index('Epoch 0: drop rate') < text.index('Train: 0 [') < text.index('Epoch 1: drop rate')
    assert text.index('Epoch 1: drop rate') < text.index('Train: 1 [')
    assert 'nan' not in text.lower().replace('nanoseconds', '')


@needs_timm_repo
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('model', ['resnet50_sd_sample', 'resnet50_sd_block'])
@pytest.mark.parametrize(
    'flags', [['--amp'], ['--amp', '--channels-last', '--torchcompile']], ids=['eager', 'compiled']
)
def test_a_run_on_a_gpu(few_digits, tmp_path, model, flags):
    text = train(few_digits, tmp_path, '--device', 'cuda', *flags, *WARMUP, model=model, epochs=2)
    assert re.findall(r'Epoch (\d+): drop rate', text) == ['0', '1']
    assert losses(text) and all(loss < 10 for loss in losses(text))


@needs_timm_repo
@pytest.mark.parametrize('use_same_gpu_seed', [True, False])
def test_two_ranks_killed_and_resumed(few_digits, tmp_path, use_same_gpu_seed):
    args = ['--model-kwargs', 'drop_warmup=1.0', f'use_same_gpu_seed={use_same_gpu_seed}', '--model-ema']
    unbroken = train(few_digits, tmp_path / 'unbroken', *args, epochs=3, ranks=2)
    rates = dict(re.findall(r'Epoch (\d+): drop rate ([\d.]+)', unbroken))
    assert {e: float(r) for e, r in rates.items()} == pytest.approx({'0': 0.0, '1': 0.0667, '2': 0.1333})

    first = tmp_path / 'unbroken' / 'run' / 'checkpoint-0.pth.tar'
    resumed = train(few_digits, tmp_path / 'resumed', *args, '--resume', first, epochs=3, ranks=2)
    del rates['0']
    assert dict(re.findall(r'Epoch (\d+): drop rate ([\d.]+)', resumed)) == rates
    states = [torch.load(first, map_location='cpu', weights_only=False)[k] for k in ('state_dict', 'state_dict_ema')]
    assert all(torch.isfinite(v).all() for state in states for v in state.values())


@needs_timm_repo
@pytest.mark.parametrize('ema', [[], ['--ema']])
def test_what_the_scripts_write_is_pushed_folded_and_validated(few_digits, tmp_path, ema, capsys):
    network = ['--drop-path', 0.4, '--model-kwargs', 'drop_distribution=uniform']
    args = [*network, '--in-chans', 1, '--gp', 'max', '--head-init-scale', 0.1, '--model-ema', '--model-ema-decay', 0.5]
    train(few_digits, tmp_path, *args, epochs=2)
    run = tmp_path / 'run'
    summary = (run / 'summary.csv').read_text().splitlines()
    scored = float(dict(zip(summary[0].split(','), summary[-1].split(',')))['eval_top1'])

    # train.py scores the EMA weights; at its default rate the network has to be what it was at 0.4, uniform
    validated = run_script(
        'validate.py',
        *('--data-dir', few_digits, '--model', 'resnet50_sd_block', '--checkpoint', run / 'last.pth.tar', '--use-ema'),
        *('--num-classes', 10, '--in-chans', 1, '--gp', 'max', '--img-size', 32, '--crop-pct', 0.95, '--device', 'cpu'),
        *('-b', 16, '--workers', 1),
    )
    assert top1(validated) == pytest.approx(scored, abs=1e-3)

    assert main(['push', str(run / 'last.pth.tar'), 'user/net', '--dry-run', '--out', str(tmp_path / 'net'), *ema]) == 0
    card = (tmp_path / 'net' / 'README.md').read_text()
    assert ('| top1 |' in card) == bool(ema)
    assert 'The run scored its EMA weights' in capsys.readouterr().err or ema
    assert main(['fold', str(run / 'last.pth.tar'), str(tmp_path / 'plain.pth'), *ema]) == 0
    folded = run_script(
        'validate.py',
        *('--data-dir', few_digits, '--model', 'resnet50', '--checkpoint', tmp_path / 'plain.pth'),
        *('--num-classes', 10, '--in-chans', 1, '--gp', 'max', '--img-size', 32, '--crop-pct', 0.95, '--device', 'cpu'),
        *('-b', 16, '--workers', 1),
        launcher=False,
    )
    assert top1(folded) == pytest.approx(scored, abs=1e-3) or not ema

    run_script('avg_checkpoints.py', '--input', run, '--output', tmp_path / 'averaged.pth', launcher=False)
    run_script(
        'clean_checkpoint.py',
        *(
            '--checkpoint',
            run / 'last.pth.tar',
            '--output',
            tmp_path / 'clean.safetensors',
            '--safetensors',
            '--no-hash',
        ),
        launcher=False,
        cwd=tmp_path,
    )
    says = ['--model', 'resnet50_sd_block', *map(str, network), 'global_pool=max']
    reference = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval()
    for name in ('averaged.pth', 'clean.safetensors'):
        out = tmp_path / f'net of {name}'
        assert main(['push', str(tmp_path / name), 'user/net', '--dry-run', '--out', str(out), *says]) == 0
        assert timm.create_model(f'local-dir:{out}', pretrained=True).num_classes == 10
    if ema:  # clean_checkpoint.py takes the EMA weights where there are some
        cleaned = timm.create_model(f'local-dir:{tmp_path / "net of clean.safetensors"}', pretrained=True).eval()
        x = torch.randn(2, 1, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(cleaned(x), reference(x))


@needs_timm_repo
def test_inference_and_benchmark(few_digits, tmp_path):
    checkpoint = tmp_path / 'run' / 'last.pth.tar'
    train(few_digits, tmp_path)
    text = run_script(
        'inference.py',
        *('--data-dir', few_digits / 'validation', '--model', 'resnet50_sd_block', '--checkpoint', checkpoint),
        *('--num-classes', 10, '--input-size', 3, 32, 32, '--device', 'cpu', '-b', 16, '--workers', 1),
        *('--results-dir', tmp_path, '--results-format', 'csv', '--topk', 1),
    )
    assert list(tmp_path.glob('*.csv')), text
    text = run_script(
        'benchmark.py',
        *('--model', 'resnet50_sd_block', '--bench', 'train', '--device', 'cpu', '-b', 4, '--img-size', 32),
        *('--num-warm-iter', 1, '--num-bench-iter', 5, '--precision', 'float32'),
    )
    assert 'train_samples_per_sec' in text


def test_a_script_runs_as_python_would_run_it(tmp_path, monkeypatch, capsys):
    (tmp_path / 'beside.py').write_text('VALUE = 7')
    script = tmp_path / 'script.py'
    script.write_text(
        "import sys, beside, timm\nprint(sys.argv, __name__, beside.VALUE, timm.is_model('resnet50_sd_block'))"
    )
    monkeypatch.setattr(sys, 'argv', sys.argv)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    assert main(['run', str(script), '--epochs', '2', '-b', '3']) == 0
    assert capsys.readouterr().out == f"['{script}', '--epochs', '2', '-b', '3'] __main__ 7 True\n"


SCRIPT_COMMANDS = [
    line
    for page in (README, ROOT / 'docs' / 'timm_scripts.md')
    for line in command_lines(page)
    if re.search(r' \w+\.py ', line)
]


def test_the_pages_have_commands_of_the_scripts():
    started_by = {line.split()[0] for line in SCRIPT_COMMANDS}
    assert started_by == {'python', 'torchrun', 'timm-stochdepth'}


@needs_timm_repo
@pytest.mark.parametrize('line', SCRIPT_COMMANDS)
def test_commands_of_the_pages_are_understood(line, monkeypatch):
    before, name, options = re.fullmatch(r'(.*?)(\w+)\.py (.*)', line).groups()
    if 'python ' not in before:
        launcher_options = re.sub(r'.*timm.stochdepth[ .]run', '', before).split()
        create_parsers()[1]['run'].parse_args([*launcher_options, __file__])
    spec = importlib.util.spec_from_file_location(f'timm_{name}', f'{TIMM_REPO}/{name}.py')
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *options.split()])
    monkeypatch.chdir(ROOT)  # of hub_configs
    args = script._parse_args()[0] if name == 'train' else script.parser.parse_args()
    assert timm.is_model(args.model)


def test_the_launcher_says_what_it_needs():
    command = [sys.executable, '-m', 'timm_stochdepth.run']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and 'the following arguments are required: script' in result.stderr
    result = subprocess.run([*command, 'missing.py'], capture_output=True, text=True)
    assert result.returncode == 2 and "script must be a file, but got 'missing.py'" in result.stderr
