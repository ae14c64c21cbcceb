"""Every file that a documented way of training writes goes through every command, and others load what comes out."""

import json

import pytest
import timm
import torch
from forks import run_python
from networks import LAYERS, assert_same_output, plain_name
from pages import ROOT
from training_ways import NUM_CLASSES, RATE, REGISTERED, all_ways, by_loop, images, logits

from timm_stochdepth.cli.main import main

WAYS = [(way, name) for _, way, name in all_ways()]
QUICK = [('registered', 'resnet50_sd_block'), ('skip', 'test_vit'), ('CheckpointSaver', 'test_vit')]
LOOPED = {way for train, way, _ in all_ways() if train is by_loop}
COMMANDS = ('show', 'verify', 'fold', 'push', 'push --plain', 'push a pushed folder')

# timm alone, and transformers: this package is never imported
LOADS = """
import sys
import timm, torch
from transformers import AutoModelForImageClassification

answers = {}
with torch.no_grad():
    x = torch.load('images.pt')
    for folder in sys.argv[1:]:
        of_timm = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()(x)
        wrapped = AutoModelForImageClassification.from_pretrained(folder).eval()(pixel_values=x).logits
        answers[folder] = of_timm, wrapped
torch.save(answers, 'answers.pt')
assert not any(name.startswith('timm_stochdepth') for name in sys.modules)
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A function that says the folder that training a network in a way has written to."""
    place = tmp_path_factory.mktemp('ways')

    def train(way, name):
        folder = place / way / name
        if not folder.exists():
            folder.mkdir(parents=True)
            result = run_python(ROOT / 'tests' / 'support' / 'training_ways.py', way, name, cwd=folder)
            assert result.returncode == 0, result.stdout + result.stderr
        return folder

    return train


def expected_logits(folder, way, name):
    """Those of the trained network: as its loop noted them, or of timm's own network with the file's weights."""
    if (folder / 'logits.pt').exists():
        return torch.load(folder / 'logits.pt')
    kwargs = dict(drop_path_rate=RATE, **LAYERS) if name in REGISTERED else {}
    model = timm.create_model(name, num_classes=NUM_CLASSES, **kwargs)
    key = 'state_dict_ema' if way == 'ema' else 'state_dict'
    model.load_state_dict(torch.load(folder / 'last.pth.tar', weights_only=False)[key])
    return logits(model)


@pytest.fixture(scope='module')
def through_commands(trained):
    """A function that sends a file through a command, once, and says its exit state and where its output is."""
    done = {}

    def send(way, name, command):
        key = way, name, command
        if key not in done:
            done[key] = run_command(trained(way, name), way, name, command)
        return done[key]

    return send


def run_command(folder, way, name, command):
    source = [str(folder / 'last.pth.tar')]
    source += ['--model', name] if way in LOOPED else []
    ema = ['--ema'] if way == 'ema' else []
    push = ['push', *source, 'user/net', '--dry-run', *ema]
    if command in ('show', 'verify'):
        return main([command, *source, *(ema if command == 'verify' else [])]), None
    if command == 'fold':
        return main(['fold', source[0], str(folder / 'folded.pth'), *source[1:], *ema]), folder / 'folded.pth'
    if command == 'push':
        return main([*push, '--out', str(folder / 'pushed')]), folder / 'pushed'
    if command == 'push --plain':
        return main([*push, '--plain', '--out', str(folder / 'plain')]), folder / 'plain'
    assert main([*push, '--plain', '--out', str(folder / 'edited')]) == 0
    card = folder / 'edited' / 'README.md'
    card.write_text(card.read_text() + '\nMy own words.\n')
    line = ['push', str(folder / 'edited'), 'user/net', '--dry-run', '--out', str(folder / 'again')]
    return main(line), folder / 'again'


@pytest.mark.parametrize('command', COMMANDS)
@pytest.mark.parametrize(
    'way, name', [pytest.param(*way, marks=[] if way in QUICK else pytest.mark.long) for way in WAYS]
)
def test_a_file_goes_through_a_command(way, name, command, trained, through_commands, capsys):
    folder = trained(way, name)
    status, written = through_commands(way, name, command)
    out, err = capsys.readouterr()
    assert status == 0, err
    if command == 'show':
        last = [line.split() for line in out.splitlines() if line.endswith('%')][-1]
        assert float(last[1]) == RATE, out
    elif command == 'verify':
        assert all(line.startswith('ok ') for line in out.splitlines())
    elif command == 'fold':
        kwargs = LAYERS if name in REGISTERED else {}
        plain = timm.create_model(plain_name(name), num_classes=NUM_CLASSES, **kwargs)
        plain.load_state_dict(torch.load(written)['state_dict'])
        assert_same_output(logits(plain), expected_logits(folder, way, name))
    elif command == 'push a pushed folder':
        assert 'My own words.' in (written / 'README.md').read_text()
    else:
        assert_the_card_says_how_it_was_trained(written, way, name, command)


METHODS = {'block': 'block', 'CheckpointSaver': 'block', 'resnet50_sd_block': 'block'}
MASKS = ('sample', 'registered', 'block', 'CheckpointSaver')


def assert_the_card_says_how_it_was_trained(folder, way, name, command):
    card = (folder / 'README.md').read_text()
    method = METHODS.get(way, METHODS.get(name, 'sample'))
    assert f'Method `{method}`, rate {RATE} with linear distribution' in card
    by_keep = way not in ('registered', 'torch.save', 'CheckpointSaver')
    assert ('divided by its keep probability in training' in card) == by_keep
    assert ('computed for the samples that kept it alone' in card) == (way not in MASKS)
    is_plain = way != 'registered' or command == 'push --plain'
    assert ('It was trained with stochastic depth' in card) == is_plain
    assert ('needs nothing but timm' in card) == is_plain
    config = json.loads((folder / 'config.json').read_text())
    assert config['architecture'] == (plain_name(name) if is_plain else name)


@pytest.mark.long
def test_timm_alone_and_transformers_load_what_was_pushed(trained, through_commands, tmp_path):
    folders = {}
    for way, name in WAYS:
        commands = [c for c in COMMANDS if c.startswith('push') and (c != 'push' or way != 'registered')]
        folders.update({str(through_commands(way, name, c)[1]): (way, name) for c in commands})
    torch.save(images(), tmp_path / 'images.pt')
    result = run_python('-c', LOADS, *folders, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    answers = torch.load(tmp_path / 'answers.pt')
    assert len(answers) == len(folders) == 3 * len(WAYS) - len(REGISTERED)
    for folder, of_loaders in answers.items():
        for answer in of_loaders:
            assert_same_output(answer, expected_logits(trained(*folders[folder]), *folders[folder]))


@pytest.mark.parametrize('way', ['skip', 'torch.save', "torch.save, timm's convention", 'CheckpointSaver'])
def test_what_is_said_of_a_file_must_agree_with_it(way, trained, tmp_path, capsys):
    source = [str(trained(way, 'test_vit') / 'last.pth.tar'), str(tmp_path / 'x.pth'), '--model', 'test_vit']
    assert main(['fold', *source, '--drop-path', '0.2']) == 1
    assert f'drop_path_rate must be {RATE}' in capsys.readouterr().err and not (tmp_path / 'x.pth').exists()
    assert main(['fold', *source, '--drop-path', str(RATE)]) == 0


def test_a_rate_that_only_its_owner_knows_is_on_the_card(trained, tmp_path):
    """timm's clean_checkpoint.py drops what a checkpoint says; by timm's convention no rate is needed to load it."""
    state_dict = torch.load(trained('skip', 'test_vit') / 'last.pth.tar', weights_only=False)['state_dict']
    torch.save(dict(state_dict), tmp_path / 'cleaned.pth')
    line = ['push', str(tmp_path / 'cleaned.pth'), 'user/net', '--dry-run', '--out', str(tmp_path / 'net')]
    assert main([*line, '--model', 'test_vit', '--drop-path', str(RATE)]) == 0
    assert f'| drop_path | {RATE} |' in (tmp_path / 'net' / 'README.md').read_text()
