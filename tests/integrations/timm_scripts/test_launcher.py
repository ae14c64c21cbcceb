"""The launcher with a script of timm's own parts, each run a process: what is applied, said, noted, and refused."""

import json
import logging
import os
import re
import sys
import warnings
from types import SimpleNamespace

import pytest
import small_train
import timm
import timm.layers
import timm.scheduler
import timm.utils
import torch
import yaml
from launcher_runs import NOTED, SCRIPT, VIT, args_of, rates, run, said_of_network, summary, train
from networks import randomize
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2

import timm_stochdepth as ts
from timm_stochdepth.checkpoints.drop_options import DropOptions, LauncherError
from timm_stochdepth.cli.main import create_parsers, main
from timm_stochdepth.integrations.timm_scripts.launcher import helped
from timm_stochdepth.integrations.timm_scripts.replaced import replaced
from timm_stochdepth.integrations.timm_scripts.script_run import ScriptRun
from timm_stochdepth.settings import Settings

RESNET = ('--model', 'resnet50_sd_block', '--model-kwargs', 'layers=[1,1,1,1]', 'base_width=8')
NUM_BATCHES = 2


@pytest.fixture
def in_process(monkeypatch, capfd):
    """The launcher within this process, where nothing is trained: exit status and what it said."""
    level = logging.root.level
    monkeypatch.setattr(sys, 'argv', sys.argv)
    monkeypatch.setattr(sys, 'path', [*sys.path])

    def run_main(options, *args, script=SCRIPT):
        capfd.readouterr()
        monkeypatch.setattr(logging.root, 'handlers', [])  # timm adds its own, to the stderr of this test
        try:
            status = main(['run', *map(str, [*options, script, *args])])
        except SystemExit as e:
            status = e.code
        return status, ''.join(capfd.readouterr())

    yield run_main
    logging.root.setLevel(level)


@pytest.fixture(scope='module')
def warm_up(tmp_path_factory):
    """A run that skips at a rate that rises up to its end, and what it said."""
    folder = tmp_path_factory.mktemp('launcher') / 'warm_up'
    text = train(['--skip-dropped', '--drop-warmup', 1], *VIT, '--epochs', 3, '--model-ema', '--output', folder)
    return folder, text


def test_what_is_applied_is_said_in_a_line_and_noted(warm_up):
    folder, text = warm_up
    assert said_of_network(text) == [
        'test_vit has stochastic depth in 6 blocks, method sample, drop rates from 0 to 0.4, what is dropped is not'
        ' computed (--skip-dropped --drop-warmup 1.0).'
    ]
    assert 'BatchNorm' not in text and 'WARNING' not in text
    assert args_of(folder)['stochastic_depth'] == dict(NOTED, skip_dropped=True, drop_warmup=1.0)


def test_the_rate_in_force_is_a_column_of_the_summary(warm_up):
    folder, text = warm_up
    starts = re.findall(r'Epoch (\d+): drop rate ([\d.]+) at its start', text)
    assert starts == [('0', '0.0000'), ('1', '0.1333'), ('2', '0.2667')]
    assert rates(folder) == pytest.approx([0.4 / 3, 0.8 / 3, 0.4], abs=1e-6)
    assert list(summary(folder)[0]) == ['epoch', 'train_loss', 'train_drop_rate', 'eval_top1', 'lr']


def reference_weights(drop_path, share, num_epochs):
    """timm's plain network as the script trains it, each DropPath told its rate at each step, by no code of ours."""
    timm.utils.random_seed(0, 0)
    model = timm.create_model('test_vit', img_size=32, num_classes=4, drop_path_rate=drop_path)
    places = [m for m in model.modules() if isinstance(m, timm.layers.DropPath)]
    full = [place.drop_prob for place in places]
    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.1)
    scheduler, _ = timm.scheduler.create_scheduler_v2(optimizer, num_epochs=num_epochs, updates_per_epoch=NUM_BATCHES)
    for epoch in range(num_epochs):
        for idx in range(NUM_BATCHES):
            for place, rate in zip(places, full):
                place.drop_prob = rate * share((epoch * NUM_BATCHES + idx) / (num_epochs * NUM_BATCHES))
            images, target = small_train.batch(epoch, idx)
            torch.nn.functional.cross_entropy(model.train()(images), target).backward()
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step(epoch + 1)
    return model.state_dict()


def assert_same_weights(folder, weights):
    state_dict = torch.load(folder / 'last.pth.tar', weights_only=False)['state_dict']
    assert list(state_dict) == list(weights)
    for key, value in weights.items():
        torch.testing.assert_close(state_dict[key], value, rtol=1e-3, atol=1e-5, msg=key)


def test_a_warmup_teaches_what_timm_would_at_those_rates(warm_up):
    assert_same_weights(warm_up[0], reference_weights(0.4, lambda progress: progress, 3))


def test_a_schedule_teaches_what_timm_would_at_those_rates(tmp_path):
    options = ['--drop-schedule', '0:1,0.5:0.25,1:0.75', '--drop-distribution', 'linear']
    text = train(options, *VIT, '--output', tmp_path)
    assert len(said_of_network(text)) == 1 and 'what is dropped is masked (--drop-distribution linear' in text
    assert '--drop-schedule 0:1,0.5:0.25,1:0.75)' in text
    assert rates(tmp_path) == pytest.approx([0.1, 0.3])
    schedule = [[0.0, 1.0], [0.5, 0.25], [1.0, 0.75]]
    assert args_of(tmp_path)['stochastic_depth'] == dict(NOTED, drop_distribution='linear', drop_schedule=schedule)
    weights = reference_weights(0.4, lambda p: 1 - 1.5 * p if p < 0.5 else 0.25 + (p - 0.5), 2)
    assert_same_weights(tmp_path, weights)


def test_a_uniform_rate_is_the_scripts(tmp_path):
    options = ['--stochastic-depth', 'block', '--drop-distribution', 'uniform']
    text = train(options, *VIT, '--epochs', 1, '--output', tmp_path)
    [line] = said_of_network(text)
    assert 'method block, drop rates from 0.4 to 0.4, what is dropped is not computed' in line
    noted = dict(NOTED, stochastic_method='block', drop_distribution='uniform')
    assert args_of(tmp_path)['stochastic_depth'] == noted
    assert rates(tmp_path) == [0.4]


def test_rounding_teaches_what_timm_would(tmp_path):
    text = train(['--skip-dropped', '--round-up'], *VIT, '--epochs', 1, '--output', tmp_path)
    assert '(--skip-dropped --round-up)' in said_of_network(text)[0]
    assert args_of(tmp_path)['stochastic_depth'] == dict(NOTED, skip_dropped=True, round_up=True)
    assert_same_weights(tmp_path, reference_weights(0.4, lambda progress: 1.0, 1))


def test_a_run_of_fixed_numbers_is_repeated_from_its_args(tmp_path):
    text = train(['--draw', 'fixed'], *VIT, '--epochs', 1, '--output', tmp_path / 'first')
    assert '(--draw fixed)' in said_of_network(text)[0]
    assert args_of(tmp_path / 'first')['stochastic_depth'] == dict(NOTED, draw='fixed')
    repeated = train([], '--config', tmp_path / 'first' / 'args.yaml', '--output', tmp_path / 'again')
    assert said_of_network(repeated) == said_of_network(text)
    assert summary(tmp_path / 'again') == summary(tmp_path / 'first')


def test_args_yaml_as_config_repeats_the_run(warm_up, tmp_path):
    folder, text = warm_up
    repeated = train([], '--config', folder / 'args.yaml', '--output', tmp_path)
    assert said_of_network(repeated) == said_of_network(text)
    assert summary(tmp_path) == summary(folder)
    assert args_of(tmp_path) == dict(args_of(folder), output=str(tmp_path))
    # options of the command line take the place of those in the file, as timm's do
    other = train(
        ['--stochastic-depth', 'block'], '--config', folder / 'args.yaml', '--epochs', 1, '--output', tmp_path
    )
    assert '(--stochastic-depth block)' in said_of_network(other)[0]
    assert args_of(tmp_path)['stochastic_depth'] == dict(NOTED, stochastic_method='block')


def test_a_resume_without_the_options_says_what_the_run_had(warm_up, tmp_path):
    folder, _ = warm_up
    resume = ('--epochs', 3, '--resume', folder / 'checkpoint-1.pth.tar', '--output', tmp_path)
    options = ['--skip-dropped', '--drop-warmup', '1.0']
    text = train([], *VIT, *resume)
    typed = re.search(r'timm.stochdepth run (.*) \S+small_train.py \.\.\.', text)[1].split()
    assert typed == options and "with timm's own drop paths" in text
    assert 'stochastic_depth' not in args_of(tmp_path) and 'train_drop_rate' not in summary(tmp_path)[0]
    (tmp_path / 'summary.csv').unlink()

    text = train(typed, *VIT, *resume)
    assert 'written by' not in text
    assert rates(tmp_path) == [0.4] and args_of(tmp_path)['stochastic_depth'] == args_of(folder)['stochastic_depth']

    text = train(['--stochastic-depth', 'block'], *VIT, *resume)
    assert 'goes on with --stochastic-depth block' in text and ' '.join(options) in text


def test_a_run_that_goes_on_in_its_own_folder_has_its_rates_in_their_column(warm_up, tmp_path):
    folder, _ = warm_up
    path = tmp_path / 'summary.csv'
    path.write_text((folder / 'summary.csv').read_text())
    network = timm.create_model('test_vit', drop_path_rate=0.2)
    skipping = timm.create_model('test_vit', drop_path_rate=0.3)
    ts.apply_stochastic_depth(skipping, 'sample', 'DropPath', None, scale_by_keep=True, skip_dropped=True)
    script_run = ScriptRun()
    with helped(script_run):
        for epoch, model in enumerate([skipping, network, network, skipping, skipping], 3):
            script_run.created(model, 'test_vit')
            # the newer train.py leaves the header to the function, an older one says that there is one
            timm.utils.update_summary(epoch, dict(loss=1.0), dict(top1=2.0), path, 0.1, *[False] * (epoch % 2))
    rows = summary(tmp_path)
    assert [row.get('train_drop_rate') for row in rows[3:]] == ['0.3', None, None, '0.3', '0.3']
    assert {row['lr'] for row in rows[3:]} == {'0.1'}
    assert path.read_text().count('epoch') == 3


def test_the_rate_is_that_of_the_network_that_an_optimizer_is_made_for(in_process, tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(timm.utils.summary, 'wandb', SimpleNamespace(log=logged.append), raising=False)
    own = """
import timm
from timm.optim import create_optimizer_v2
networks = [timm.create_model('test_vit', drop_path_rate=rate) for rate in (0.1, 0.3, 0.2)]
create_optimizer_v2(networks[1], opt='sgd', lr=0.1)
timm.utils.update_summary(0, dict(loss=1.0), None, 'summary.csv', log_wandb=True)
"""
    monkeypatch.chdir(tmp_path)
    status, text = in_process(['--skip-dropped'], script=script(tmp_path, own))
    assert status == 0, text
    assert rates(tmp_path) == [0.3] and logged == [dict(epoch=0, train_loss=1.0, train_drop_rate=0.3)]
    assert len(said_of_network(text)) == 3  # whoever can have it is given it


def test_a_registered_network_has_its_rate_in_the_summary_too(tmp_path):
    text = train([], *RESNET, 'drop_warmup=1.0', '--drop-path', 0.3, '--output', tmp_path)
    assert rates(tmp_path) == pytest.approx([0.15, 0.3])
    assert said_of_network(text) == [] and 'stochastic_depth' not in args_of(tmp_path)


@pytest.mark.parametrize('options, is_told', [(['--skip-dropped'], True), (['--stochastic-depth', 'sample'], False)])
def test_skipping_with_a_batch_norm_says_that_it_is_not_masking(options, is_told, in_process):
    _, text = in_process(options, '--model', 'test_resnet', '--drop-path', 0.3, '--epochs', 0)
    assert ('a BatchNorm, which sees the kept samples alone' in text) == is_told
    assert len(said_of_network(text)) == 1


# -- networks beside the one that is trained ---------------------------------------------------------------------------


@pytest.fixture(scope='module')
def teachers(tmp_path_factory):
    """An environment whose Hub cache has the weights of some teachers."""
    cache, revision = tmp_path_factory.mktemp('teachers'), '0' * 40
    for name in ('resnet50.a1_in1k', 'dla46_c.in1k', 'test_vit.r160_in1k'):
        repository = cache / f'models--timm--{name}'
        snapshot = repository / 'snapshots' / revision
        snapshot.mkdir(parents=True)
        (repository / 'refs').mkdir()
        (repository / 'refs' / 'main').write_text(revision)
        save_file(timm.create_model(name.partition('.')[0]).state_dict(), snapshot / 'model.safetensors')
    return {**os.environ, 'HF_HUB_CACHE': str(cache), 'HF_HUB_OFFLINE': '1'}


TEACHERS = {
    'resnet50_sd_sample.a1_in1k': 'it has stochastic depth of its own',
    'dla46_c': 'it has no drop paths',
    'test_vit': 'it has a drop rate of 0',
}


@pytest.mark.parametrize('teacher', TEACHERS)
def test_a_teacher_is_left_as_it_is_and_the_student_is_given_what_was_asked(teacher, teachers, tmp_path):
    student = '--model', 'test_vit', '--drop-path', 0.4  # at its own size, which the teacher of its name has, too
    text = train(
        ['--skip-dropped'], *student, '--kd-model-name', teacher, '--epochs', 1, '--output', tmp_path, env=teachers
    )
    assert f'{teacher} is left as it is beside the network that is trained: {TEACHERS[teacher]}.' in text
    [line] = said_of_network(text)
    assert line.startswith('test_vit has stochastic depth in 6 blocks') and 'WARNING' not in text
    assert rates(tmp_path) == [0.4]


def test_a_student_that_cannot_ends_the_run_in_a_line():
    """A process of its own: exit status, and not a word of Python's."""
    args = ('--model', 'vgg11', '--kd-model-name', 'test_vit', '--drop-path', 0.2)
    status, text = run(['--skip-dropped'], *args)
    assert status == 1 and re.fullmatch(
        r'timm-stochdepth run: --model must be a network that --skip-dropped .*\n', text
    )


# -- what is refused, in a line ----------------------------------------------------------------------------------------

REFUSED = {
    'no drop paths, which timm says itself': (
        ['--skip-dropped'],
        ('--model', 'vgg11', '--drop-path', 0.2),
        r"got 'vgg11', which has no drop paths: vit_\*, convnext_\*",
    ),
    'no drop paths': (
        ['--stochastic-depth', 'block'],
        ('--model', 'dla46_c'),
        "got 'dla46_c', which has no drop paths: --model dla46_c_sd_block, without these options, drops its branches",
    ),
    'blocks that can only mask': (
        ['--skip-dropped'],
        ('--model', 'efficientvim_m1', '--drop-path', 0.2),
        "got 'efficientvim_m1', which cannot, as skip_dropped must be .* with --stochastic-depth sample it masks",
    ),
    'a network of this package': (
        ['--skip-dropped', '--drop-distribution', 'uniform', '--drop-schedule', '0:1,0.2:0'],
        ('--model', 'resnet50_sd_sample', *RESNET[2:]),
        re.escape(
            'which has stochastic depth of its own: leave these options out, and write --model-kwargs skip_dropped=True'
            " drop_distribution=uniform 'drop_schedule=((0.0,1.0),(0.2,0.0))' after the script."
        ),
    ),
    'a network of this package, and the method alone': (
        ['--stochastic-depth', 'block'],
        RESNET,
        'which has stochastic depth of its own: leave this option out.',
    ),
    'a network of this package that skips anyway': (
        ['--skip-dropped'],
        RESNET,
        'which has stochastic depth of its own: leave this option out.',
    ),
    'no scheduler': (
        ['--drop-warmup', '0.5'],
        (*VIT, '--sched', 'none'),
        "--sched must not be 'none' with drop_warmup",
    ),
    'rounding where a norm looks at the batch': (
        ['--skip-dropped', '--round-up'],
        ('--model', 'resnet10t', '--drop-path', 0.2),
        'round_up must be False where a norm looks at the batch',
    ),
    'a rate that is none': (
        ['--drop-distribution', 'uniform'],
        (*VIT[:-1], 1.5),
        r"the script's --drop-path must be in \[0, 1\], but got 1.5",
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_a_network_cannot_have_is_refused_in_a_line(case, in_process):
    options, args, message = REFUSED[case]
    status, text = in_process(options, *args)
    assert status == 1 and re.search(message, text), text
    last = text.splitlines()[-1]
    assert last.startswith('timm-stochdepth run: ') and 'Traceback' not in text


@pytest.mark.parametrize(
    'options, message',
    [
        (['--skip-dropped', '--stochastic-depth', 'block'], '--skip-dropped must be left out with'),
        (['--drop-warmup', '0.1', '--drop-schedule', '0:1'], '--drop-warmup must be left out with'),
        (['--round-up'], '--round-up must be left out without --skip-dropped'),
        (['--draw', 'fixed', '--drop-warmup', '0.1'], "draw must be 'independent' with a drop_warmup"),
        (['--draw', 'fixed', '--stochastic-depth', 'block'], "draw must be 'independent' with stochastic_method="),
        (['--drop-warmup', '1.1'], "--drop-warmup must be in [0, 1], but got '1.1'"),
        (['--drop-distribution', 'linaer'], 'did you mean linear?'),
    ],
)
def test_options_that_are_wrong_or_have_no_effect_are_refused(options, message, in_process):
    status, text = in_process(options, *VIT)
    assert status == 2 and message in text and text.count('\n') == 1


def test_an_option_behind_the_script_is_told_where_it_stands(in_process):
    status, text = in_process([], *VIT, '--drop-warmup=0.1')
    assert status == 2
    assert text.splitlines()[-1].startswith('timm-stochdepth run: --drop-warmup stands before the script')
    status, text = in_process([], *VIT, '--nothing')
    assert status == 2 and 'before the script' not in text


def test_the_help_has_an_example_that_is_understood(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    with pytest.raises(SystemExit):
        create_parsers()[1]['run'].parse_args(['--help'])
    text = capsys.readouterr().out
    assert 'stand before the script' in text
    example = re.search(r'example:\n  timm-stochdepth run (.*?)\n\n', text, re.S)[1]
    words = example.replace('\\\n', '').split()
    words[words.index('train.py')] = str(SCRIPT)
    args = create_parsers()[1]['run'].parse_args(words)
    assert args.skip_dropped and args.drop_warmup == 0.1 and args.args[0] == '--data-dir'


# -- scripts of another kind -------------------------------------------------------------------------------------------


def script(folder, text):
    path = folder / 'script.py'
    path.write_text(text)
    return path


def test_a_network_that_timm_has_not_created_is_told(in_process, tmp_path):
    own = script(tmp_path, 'import torch\nmodel = torch.nn.Linear(2, 2)\n')
    status, text = in_process(['--skip-dropped'], script=own)
    assert status == 0 and '--skip-dropped has no effect on' in text
    assert in_process([], script=own) == (0, '')
    optimizer = (
        'from timm.optim import create_optimizer_v2\ncreate_optimizer_v2(model, opt="sgd", lr=0.1)\nprint("trains")'
    )
    status, text = in_process(['--skip-dropped'], script=script(tmp_path, own.read_text() + optimizer))
    assert status == 1 and '--skip-dropped has no effect on' in text and 'trains' not in text


def test_a_warmup_that_no_scheduler_drives_is_told_at_the_first_step(in_process, tmp_path):
    own = """
import timm, torch
from timm.optim import create_optimizer_v2
model = timm.create_model('test_vit', img_size=32, num_classes=4, drop_path_rate=0.4)
optimizer = create_optimizer_v2(model, opt='sgd', lr=0.1)
for _ in range(2):
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
"""
    status, text = in_process(['--drop-warmup', 0.5], script=script(tmp_path, own))
    assert status == 0 and text.count('drop_warmup follows a scheduler') == 1
    assert said_of_network(text)  # with no --model parsed, the first network is the one that is trained
    status, text = in_process(['--skip-dropped'], script=script(tmp_path, own))
    assert status == 0 and 'follows a scheduler' not in text


def test_an_option_of_the_scripts_own_stays(in_process, tmp_path):
    own = """
import argparse, timm
parser = argparse.ArgumentParser()
parser.add_argument('--model')
parser.add_argument('--stochastic-depth', type=float)
args = parser.parse_args()
timm.create_model(args.model, drop_path_rate=args.stochastic_depth)
print(vars(args))
"""
    args = ('--model', 'test_vit', '--stochastic-depth', 0.3)
    status, text = in_process(['--skip-dropped'], *args, script=script(tmp_path, own))
    assert status == 0 and "{'model': 'test_vit', 'stochastic_depth': 0.3}" in text
    assert 'drop rates from 0 to 0.3' in said_of_network(text)[0]


def test_torchscript_is_refused(monkeypatch):
    network = torch.jit.script(torch.nn.Linear(2, 2))
    script_run = ScriptRun(DropOptions(Settings('sample', None, scale_by_keep=True, skip_dropped=True)))
    script_run.created(network, 'a name')
    with pytest.raises(LauncherError, match='--torchscript must be left out with --skip-dropped'):
        script_run.trains(network)


def test_what_is_imported_meanwhile_is_the_first_function_afterwards():
    with replaced('is_model', lambda original, name: 'other', timm):
        from timm import is_model

        assert is_model('resnet18') == 'other' and is_model.__doc__ == timm.models.is_model.__doc__
    assert is_model('resnet18') is True and timm.is_model is timm.models.is_model


@pytest.mark.parametrize(
    'noted',
    [
        'block',
        {},
        dict(NOTED, scale_by_keep=False),
        dict(NOTED, drop_rate=0.1),
        dict(NOTED, stochastic_method='row'),
        dict(NOTED, drop_distribution='exponential'),
        dict(NOTED, drop_warmup='0.1'),
        dict(NOTED, drop_schedule=[0, 1]),
    ],
)
def test_a_config_file_with_other_options_is_refused(noted, in_process, tmp_path):
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(dict(stochastic_depth=noted)))
    status, text = in_process([], '--config', tmp_path / 'args.yaml', *VIT)
    assert status == 1 and text.startswith('timm-stochdepth run: stochastic_depth among the arguments of a run must be')


# -- weights, at each door ---------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def plain_weights(tmp_path_factory):
    """A plain network in a file that says nothing of it, and its logits."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('plain')
    model = randomize(timm.create_model('resnet50', layers=[1, 1, 1, 1], base_width=8, num_classes=4)).eval()
    save_file(model.state_dict(), folder / 'plain.safetensors')
    return folder / 'plain.safetensors'


def logits(status_and_text):
    status, text = status_and_text
    assert status == 0
    return torch.tensor(json.loads(re.search(r'logits (.*)', text)[1]))


@pytest.mark.parametrize('door', ['--initial-checkpoint', '--checkpoint', '--pretrained-path'])
def test_weights_that_say_nothing_are_folded_at_each_door(door, plain_weights, in_process):
    args = ('--epochs', 0, door, plain_weights, *(['--pretrained'] if door == '--pretrained-path' else []))
    reference = logits(in_process([], '--model', 'resnet50', *RESNET[2:], *args))
    with pytest.warns(UserWarning, match='do not say whether') as record:
        folded = logits(in_process([], *RESNET, *args))
    torch.testing.assert_close(folded, reference, rtol=1e-3, atol=1e-4)
    advice = re.search(r'(fold_pretrained=False) loads them as they are.*(--model-kwargs)', str(record[0].message))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        typed = logits(in_process([], *RESNET, advice[1], *args))
    assert (typed - reference).abs().max() > 0.01
