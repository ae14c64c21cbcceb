"""No command line that can be typed ends in 'internal error': it works, or is refused in one sentence.

The options are those that the parsers have; what each kind of argument is given stands in a table below.
"""

import argparse
import random
import re
import socket
import sys

import huggingface_hub.constants
import pytest
import timm
import torch
from argument_kinds import kind_of, setting_of
from fashion import write_fashion
from safetensors.torch import save_file
from timm.models._hub import save_for_hf

from timm_stochdepth.cli import arguments as kind
from timm_stochdepth.cli.main import create_parsers, main

# small ones of four families, and one of this package; by timm's names, with what makes them small
NETWORKS = {
    'test_resnet': {},
    'test_vit': dict(img_size=32),
    'test_convnext': {},
    'swin_tiny_patch4_window7_224': dict(img_size=56, embed_dim=24, depths=(2, 2), num_heads=(1, 2)),
    'resnet50_sd_block': dict(layers=(1, 1, 1, 1), base_width=8),
}
OTHERS = ('vgg11', 'test_efficientnet', 'local-dir:test_vit_folder', 'hf-hub:user/net')
WHERE = ('{}', '{}.pth.tar', '{}.pth', '{}.safetensors', '{}_folder')  # a name, a checkpoint, weights alone, a folder

# by what is asked for, an argument of a command or a kind of argument
VALUES = {
    kind.choice: lambda choices: choices,
    kind.device: lambda _: ['cpu', 'cuda:999'],
    kind.fraction: lambda _: ['0', '0.3', '1'],
    kind.input_path: lambda what: ['.'] if what == 'folder' else ['names.txt', 'script.py'],
    kind.key_value: lambda _: [
        *('img_size=32', 'img_size=(32,64)', 'img_size=31', 'img_size=text', 'drop_path_rate=0.3', 'drop_path_rate=2'),
        *('num_classes=0', 'num_classes=3', 'num_classes=-1', 'in_chans=1', 'in_chans=0', 'global_pool=avg'),
        *('global_pool=', 'depths=(1,1)', 'layers=(1,1,1,1)', 'patch_size=0', 'no_such=1', 'pretrained=True'),
        *('features_only=True', 'scriptable=True', 'drop_path_rate=None', 'layers=None', 'cache_dir=new_folder'),
        *('drop_distribution=uniform', 'drop_warmup=0.5', 'scale_by_keep=True', 'skip_dropped=True', 'act_layer=relu'),
    ],
    kind.license_name: lambda _: ['mit'],
    kind.model_name: lambda _: [*NETWORKS, *OTHERS],
    kind.network: lambda _: [
        *(where.format('resnet50_sd_block') for where in WHERE * 3),  # which all commands take
        *(where.format(name) for name in NETWORKS for where in WHERE),
        'hf-hub:user/net',
    ],
    kind.output_file: lambda suffixes: [f'new{suffix}' for suffix in suffixes],
    kind.output_folder: lambda _: ['new_folder'],
    kind.repo_id: lambda _: ['user/net'],
    kind.schedule: lambda _: ['0:1,0.2:0', '0:0,1:1'],
    kind.text: lambda _: ['main'],
    kind.whole_number: lambda minimum: [str(max(minimum, n)) for n in (1, 31, 32, 64)],
    ('list', 'filter'): lambda _: ['*', 'resnet101*', 'vit*', 'no_such'],
    ('families', 'filter'): lambda _: ['test_vit*', 'vgg11', 'no_such'],
    ('demo', 'data'): lambda _: [*['fashion-mnist'] * 9, 'digits'],
    ('demo', 'data_dir'): lambda _: ['fashion'],
    ('demo', 'models'): lambda _: [*['test_vit', 'test_resnet', 'test_convnext'] * 20, *NETWORKS, *OTHERS],
    ('demo', 'images'): lambda _: ['4'],
    ('demo', 'batch_size'): lambda _: ['2'],
    ('demo', 'epochs'): lambda _: ['1'],
    ('bench', 'model'): lambda _: [*['test_vit', 'test_resnet', 'test_convnext'] * 20, *NETWORKS, *OTHERS],
    ('bench', 'rows'): lambda choices: [*['plain'] * 20, *choices],
    ('bench', 'img_size'): lambda _: [*['32'] * 9, '64', '31', '1'],
    ('bench', 'batch_size'): lambda _: ['1', '2'],
    ('bench', 'max_rounds'): lambda _: ['1'],
    ('bench', 'max_seconds'): lambda _: ['1'],
    ('run', 'script'): lambda _: ['script.py'],
    ('run', 'args'): lambda _: list(NETWORKS),
}
# how often an option is there while another one has its turn; those with 0 are refused for most networks
OFTEN = {
    **{('demo', dest): 1 for dest in ('data', 'data_dir', 'models', 'images', 'batch_size', 'epochs')},
    **{('bench', dest): 1 for dest in ('model', 'rows', 'img_size', 'batch_size', 'max_rounds', 'max_seconds')},
    ('families', 'filter'): 1,
    ('push', 'dry_run'): 0.9,
    ('show', 'drop_path'): 0.5,
    **{(command, dest): 0 for command in ('show', 'fold', 'push', 'verify') for dest in ('model', 'ema', 'revision')},
}
SELDOM = 0.1
NEVER = {  # takes minutes, or processes of its own: tests/bench
    ('bench', 'compile'),
    ('bench', 'ddp'),
}
# how many values of an argument have their turn: the others are drawn beside them
NUM_VALUES = {
    kind.network: 8,
    kind.key_value: 6,
    kind.text: 4,
    kind.whole_number: 4,
    **{('demo', dest): 1 for dest in ('eval_every', 'seed')},
    ('bench', 'img_size'): 2,
    ('bench', 'model'): 4,
    ('demo', 'models'): 4,
}

SCRIPT = """
import sys
import timm
import torch
model = timm.create_model(sys.argv[1], drop_path_rate=0.3)
model(torch.randn(2, *model.pretrained_cfg['input_size'])).sum().backward()
"""


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    """Each network in each form, and weights of timm's in a cache of the Hub."""
    place = tmp_path_factory.mktemp('networks')
    for name, model_args in NETWORKS.items():
        model = timm.create_model(name, num_classes=4, drop_path_rate=0.2, **model_args)
        args = argparse.Namespace(
            model=name, drop_path=0.2, img_size=model_args.get('img_size'), model_kwargs=model_args
        )
        checkpoint = dict(epoch=0, arch=name, state_dict=model.state_dict(), args=args)
        torch.save(checkpoint, place / f'{name}.pth.tar')
        torch.save(model.state_dict(), place / f'{name}.pth')
        save_file(model.state_dict(), place / f'{name}.safetensors')
        save_for_hf(model, str(place / f'{name}_folder'), model_args=model_args, safe_serialization=True)
        if name.startswith('test_'):
            tag = timm.models.get_pretrained_cfg(name).tag
            snapshot = place / 'hub' / f'models--timm--{name}.{tag}' / 'snapshots' / ('0' * 40)
            snapshot.mkdir(parents=True)
            (snapshot.parent.parent / 'refs').mkdir()
            (snapshot.parent.parent / 'refs' / 'main').write_text('0' * 40)
            save_file(timm.create_model(name).state_dict(), snapshot / 'model.safetensors')
    write_fashion(place / 'fashion')
    (place / 'names.txt').write_text('a\nb\nc\nd\n')
    (place / 'script.py').write_text(SCRIPT)
    return place


@pytest.fixture
def here(networks, tmp_path, monkeypatch):
    """A folder with these networks, from which no network can be reached."""

    def refuse(*_):
        raise ConnectionRefusedError('there is no network in this test')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(networks / 'hub'))
    monkeypatch.setattr(sys, 'argv', sys.argv.copy())
    monkeypatch.setattr(sys, 'path', sys.path.copy())
    for path in networks.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values_of(command, action):
    if action.nargs == 0:
        return ['']
    values = VALUES.get((command, action.dest)) or VALUES[kind_of(action)]
    return list(values(setting_of(action)))


def given(generator, command, action, value=None):
    """An argument with a value, or with a random one."""
    values = values_of(command, action)
    chosen = [value or generator.choice(values)]
    if action.nargs in ('+', '*') and generator.random() < 0.3:
        chosen += [v for v in generator.sample(values, 1) if v not in chosen]
    return [*action.option_strings[-1:], *([] if action.nargs == 0 else chosen)]


def told_their_network(generator, line):
    """The line, most of the time with the network of weights that do not say it, if it does not yet."""
    alone = re.fullmatch(r'(\w+)\.(?:pth|safetensors)', line[1]) if len(line) > 1 else None
    if not alone or '--model' in line or generator.random() < 0.2:
        return line
    kwargs = [f'{key}={value}' for key, value in NETWORKS[alone[1]].items() if '--model-kwargs' not in line]
    return [*line, '--model', alone[1], *(['--model-kwargs', *kwargs] if kwargs else [])]


def turns(generator, command, action):
    """The values of an argument that have their turn."""
    values = list(dict.fromkeys(values_of(command, action)))
    number = NUM_VALUES.get((command, action.dest)) or NUM_VALUES.get(kind_of(action), 2)
    return generator.sample(values, min(len(values), number))


def command_line(generator, command, actions, turn, value, network=None):
    """A line with the argument whose turn it is, with what is needed, and with others by chance."""
    positional, options = [], []
    chance = 0 if kind_of(turn) is kind.network else SELDOM
    for action in actions:
        is_needed = not action.option_strings and action.nargs != '?'
        if action is turn or is_needed or generator.random() < OFTEN.get((command, action.dest), chance):
            said = value if action is turn else network if kind_of(action) is kind.network else None
            (options if action.option_strings else positional).extend(given(generator, command, action, said))
    line = [command, *options, *positional] if command == 'run' else [command, *positional, *options]
    return told_their_network(generator, line)


def command_lines(command):
    """Values of each argument in turn, among others that are drawn from a fixed seed; sizes for each network."""
    generator = random.Random(command)
    actions = [a for a in create_parsers()[1][command]._actions if a.dest != 'help' and (command, a.dest) not in NEVER]
    for turn in actions:
        for value in turns(generator, command, turn):
            is_size = turn.dest == 'img_size' and any(kind_of(action) is kind.network for action in actions)
            for name in NETWORKS if is_size else [None]:
                network = name and generator.choice(WHERE[:2]).format(name)
                yield command_line(generator, command, actions, turn, value, network)


def what_is_wrong(command, status, out, err):
    """Why a command did not end well, or None."""
    said = [
        text for text in re.split(r'[\r\n]+', err) if text.startswith('timm-stochdepth') and ': warning: ' not in text
    ]
    if 'internal error' in out + err:
        return re.findall('.*internal error.*', out + err)
    if command == 'run':  # a script's own words are its own
        return None if status in (0, 1, 2) else status
    if 'Traceback (most recent call last):' in err:
        return err
    return None if (status, len(said)) in ((0, 0), (1, 1), (2, 1)) else (status, said)


QUICK = ('list', 'pull')


@pytest.mark.parametrize(
    'command', [c if c in QUICK else pytest.param(c, marks=pytest.mark.long) for c in create_parsers()[1]]
)
def test_no_command_line_ends_in_an_internal_error(command, here, capsys):
    endings, wrong = set(), []
    for line in command_lines(command):
        before = set(here.iterdir())
        try:
            status = main(line)
        except SystemExit as e:  # of a script that failed
            status = e.code
        fault = what_is_wrong(command, status, *capsys.readouterr())
        wrong += [f'{" ".join(line)}: {fault}'] if fault else []
        endings.add(status)
        for path in set(here.iterdir()) - before:
            path.rename(here.parent / f'{here.name}_{len(list(here.parent.iterdir()))}')
    assert not wrong, '\n'.join(wrong)
    assert 0 in endings or command == 'pull'  # it was not refused all along
