"""Each command that takes a network takes it from wherever it is, and a card says of it what is known and no more."""

import argparse
import json

import pytest
import timm
import torch
from forks import run_python
from huggingface_hub import ModelCard
from networks import randomize
from safetensors.torch import load_file, save, save_file

import timm_stochdepth as ts
from timm_stochdepth.cli.main import main
from timm_stochdepth.hub.load import load_model

LAYERS = dict(layers=[1, 1, 1, 1], base_width=8)
SCRATCH = dict(pretrained=False, initial_checkpoint='', resume='')
SOURCES = {
    'local-dir:': ['local-dir:pushed'],
    'a folder': ['pushed'],
    "a folder of timm's": ['saved'],
    'a checkpoint': ['last.pth.tar'],
    'a file': ['alone.pth', '--model', 'resnet50_sd_block', '--model-kwargs', 'layers=[1, 1, 1, 1]', 'base_width=8'],
    'a file of fold': ['back.safetensors'],
}
COMMANDS = {
    'show': lambda source, *more: ['show', source, *more],
    'fold': lambda source, *more: ['fold', source, 'folded.safetensors', *more],
    'push': lambda source, *more: ['push', source, 'user/net', '--dry-run', *more],
    'verify': lambda source, *more: ['verify', source, *more],
}


@pytest.fixture(scope='module')
def model():
    return randomize(timm.create_model('resnet50_sd_block', num_classes=3, drop_path_rate=0.2, **LAYERS)).eval()


def save_run(path, model, **args):
    args = dict(model='resnet50_sd_block', drop_path=0.2, model_kwargs=LAYERS, **args)
    torch.save(dict(epoch=0, arch=args['model'], state_dict=model.state_dict(), args=argparse.Namespace(**args)), path)


@pytest.fixture(scope='module')
def place(model, tmp_path_factory):
    """The same network, wherever a network can be."""
    place = tmp_path_factory.mktemp('place')
    save_run(place / 'last.pth.tar', model)
    torch.save(model.state_dict(), place / 'alone.pth')
    ts.push_to_hub(model, 'user/net', dry_run=True, out=place / 'pushed')
    timm.models.save_for_hf(model, str(place / 'saved'), model_args=LAYERS)
    assert main(['fold', str(place / 'last.pth.tar'), str(place / 'plain.safetensors')]) == 0
    more = ['--unfold', 'resnet50_sd_block', '--drop-path', '0.2', '--model-kwargs', 'layers=[1, 1, 1, 1]']
    assert main(['fold', str(place / 'plain.safetensors'), str(place / 'back.safetensors'), *more, 'base_width=8']) == 0
    return place


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    yield place
    (place / 'folded.safetensors').unlink(missing_ok=True)


@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('command', COMMANDS)
def test_sources_and_commands(command, source, here, capsys):
    assert main(COMMANDS[command](*SOURCES[source])) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    if command == 'show':
        assert 'layer4.0      0.2000' in out and 'of 4 blocks' in out
    elif command == 'fold':
        plain = load_file('plain.safetensors')
        for name, tensor in load_file('folded.safetensors').items():
            torch.testing.assert_close(tensor, plain[name])
    elif command == 'push':
        assert 'model.safetensors' in out and 'resnet50_sd_block' in out
    else:
        assert all(line.startswith('ok ') for line in out.splitlines())


WITHOUT_EFFECT = [
    (['show', 'pushed', '--model', 'resnet50_sd_block'], '--model must be left out for pushed'),
    (['show', 'resnet50_sd_block', '--force'], '--force needs a --plot'),
    (['show', 'resnet50_sd_block', '--code', '--drop-path', '0.1'], '--code must be without --drop-path'),
    (['show', 'resnet50_sd_block', '--code', '--img-size', '64'], '--code must be without --img-size'),
    (['fold', 'pushed', 'x.pth', '--drop-path', '0.5'], '--drop-path must be left out for pushed'),
    (['fold', 'pushed', 'x.pth', '--ema'], '--ema must be left out for pushed'),
    (['push', 'pushed', 'user/net', '--model-kwargs', 'a=1'], '--model-kwargs must be left out for pushed'),
    (['push', 'resnet50_sd_block', 'user/net', '--ema'], '--ema must be left out for resnet50_sd_block'),
    (['verify', 'pushed', '--revision', 'main'], '--revision must be for a repository of the Hub'),
    (['verify', 'last.pth.tar', '--revision', 'main'], '--revision must be for a repository of the Hub'),
]


@pytest.mark.parametrize('line, message', WITHOUT_EFFECT)
def test_an_option_without_effect_is_refused(line, message, here, capsys):
    assert main(line) == 2
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1
    assert not (here / 'x.pth').exists()


@pytest.mark.parametrize('scale_by_keep', [False, True])
def test_a_rate_that_the_checkpoint_says_otherwise_is_refused(scale_by_keep, model, tmp_path, capsys):
    """With scale_by_keep the weights are the same at any rate, and the option would do nothing."""
    network = timm.create_model('resnet50_sd_block', num_classes=3, scale_by_keep=scale_by_keep, **LAYERS)
    args = dict(model='resnet50_sd_block', drop_path=0.2, model_kwargs={**LAYERS, 'scale_by_keep': scale_by_keep})
    torch.save(dict(state_dict=network.state_dict(), args=args), tmp_path / 'last.pth.tar')
    assert main(['fold', str(tmp_path / 'last.pth.tar'), str(tmp_path / 'x.pth'), '--drop-path', '0.5']) == 1
    assert 'drop_path_rate must be 0.2' in capsys.readouterr().err


def test_verify_of_the_demos_result_and_of_the_folder_around(tmp_path, capsys):
    timm.models.save_for_hf(
        timm.create_model('resnet18', num_classes=10), str(tmp_path / 'demo' / 'resnet18'), safe_serialization=True
    )
    assert main(['verify', str(tmp_path / 'demo' / 'resnet18')]) == 0
    assert main(['verify', str(tmp_path / 'demo')]) == 1
    assert 'a folder in it does: resnet18' in capsys.readouterr().out


COMMAND = ['-m', 'timm_stochdepth']


@pytest.mark.long
def test_a_name_and_a_repository(hub_server, model, place, tmp_path):
    """A name stands for its pretrained weights, whose tag and licence are known."""
    files = {path.name: path.read_bytes() for path in (place / 'pushed').iterdir()}
    hub_server.add_repository('user/net', files)
    plain = randomize(timm.create_model('resnet50'))
    hub_server.add_repository('timm/resnet50.fb_swsl_ig1b_ft_in1k', {'model.safetensors': save(plain.state_dict())})
    env = hub_server.env(tmp_path / 'cache')
    for source in ('hf-hub:user/net', 'user/net', 'hf-hub:user/net@main', 'resnet50_sd_block.fb_swsl_ig1b_ft_in1k'):
        commands = {'user/net': ['fold'], 'hf-hub:user/net': ['show', 'fold']}  # verify runs programs, which takes long
        for command in commands.get(source, ['show', 'fold', 'verify']):
            line = [*COMMAND, *COMMANDS[command](source)]
            result = run_python(*line, env=env, cwd=tmp_path)
            assert result.returncode == 0, (line, result.stdout + result.stderr)
        (tmp_path / 'folded.safetensors').unlink()
    line = [*COMMAND, *COMMANDS['push'](source)]
    result = run_python(*line, env=env, cwd=tmp_path)
    assert 'license: cc-by-nc-4.0' in result.stdout and 'timm/resnet50.fb_swsl_ig1b_ft_in1k' in result.stdout


def card_of(path, *more, capsys):
    assert main(['push', str(path), 'user/net', '--dry-run', *more]) == 0
    out = capsys.readouterr().out
    return out[out.index('---\n') : out.rindex('Nothing was sent')].rstrip('\n') + '\n'


TAG = 'resnet50_sd_block.fb_swsl_ig1b_ft_in1k'


@pytest.mark.parametrize(
    'args, said, unsaid',
    [
        (SCRATCH, ['trained from scratch'], ['licen', 'base_model']),
        (dict(pretrained=False), [], ['scratch', 'licen', 'base_model']),  # of a loop of one's own
        ({**SCRATCH, 'resume': 'last.pth.tar'}, [], ['scratch', 'licen', 'base_model']),
        ({**SCRATCH, 'initial_checkpoint': 'x.pth'}, ['a file of weights'], ['scratch', 'licensed', 'base_model']),
        ({**SCRATCH, 'pretrained': True}, ['which ones was not recorded'], ['scratch', 'licensed', 'base_model']),
        ({**SCRATCH, 'pretrained': True, 'model': TAG}, ['license: cc-by-nc-4.0', 'base_model: timm/'], ['scratch']),
        (
            {**SCRATCH, 'pretrained': True, 'model': 'hf-hub:user/net'},
            ['base_model: user/net'],
            ['scratch', 'licensed'],
        ),
    ],
)
def test_a_card_says_what_is_known(args, said, unsaid, model):
    from timm_stochdepth.hub.card import create_card
    from timm_stochdepth.hub.record import TrainingRecord

    card = create_card(model, 'user/net', TrainingRecord(args={'model': 'resnet50_sd_block', **args}))
    assert all(text in card for text in said) and not any(text in card for text in unsaid)
    assert 'not recorded.\n' not in card.replace('which ones was not recorded.', '')
    assert ModelCard(card).data.library_name == 'timm'


def test_a_licence_is_stated_where_it_is_given(here, capsys, tmp_path):
    assert 'licen' not in card_of('last.pth.tar', capsys=capsys)
    card = card_of('last.pth.tar', '--license', 'mit', capsys=capsys)
    assert ModelCard(card).data.license == 'mit' and 'licensed as `mit`' in card
    model, _ = load_model('last.pth.tar')
    ts.push_to_hub(model, 'user/net', license='mit', dry_run=True, out=tmp_path / 'net')
    assert json.loads((tmp_path / 'net' / 'config.json').read_text())['pretrained_cfg']['license'] == 'mit'
    config = json.loads((here / 'pushed' / 'config.json').read_text())
    assert not {'license', 'tag', 'origin_url', 'paper_ids'} & set(config['pretrained_cfg'])


@pytest.mark.parametrize(
    'kwargs, error, message',
    [
        (dict(license='MIT License'), ValueError, "license must be an identifier of the Hub.*'MIT License'"),
        (dict(license=3), TypeError, 'license must be an identifier'),
        (dict(private='yes'), TypeError, "private must be True or False, but got 'yes'"),
        (dict(create_pr=1), TypeError, 'create_pr must be True or False, but got 1'),
        (dict(revision=3), TypeError, 'revision must be a text, but got 3'),
        (dict(commit_message=''), ValueError, "commit_message must be a text, but got ''"),
        (dict(record={}), TypeError, 'record must be a TrainingRecord'),
        (dict(out=3), TypeError, 'out must be a path'),
        (dict(label_names='abc'), TypeError, 'label_names must be a list of 3 names'),
    ],
)
def test_wrong_arguments_in_python(model, kwargs, error, message):
    with pytest.raises(error, match=message):
        ts.push_to_hub(model, 'user/net', **{'dry_run': True, **kwargs})


def test_a_card_that_is_beside_the_weights_is_the_one_that_is_pushed(place, tmp_path, capsys):
    folder = tmp_path / 'net'
    folder.mkdir()
    for path in (place / 'pushed').iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    mine = (folder / 'README.md').read_text().replace('An image classifier', 'My classifier')
    (folder / 'README.md').write_text(mine)
    assert card_of(folder, capsys=capsys) == mine
    assert main(['push', str(folder), 'other/net', '--dry-run', '--out', str(tmp_path / 'other')]) == 0
    assert (tmp_path / 'other' / 'README.md').read_text() == mine.replace('user/net', 'other/net')
    assert main(['verify', str(tmp_path / 'other')]) == 0
    assert main(['push', str(folder), 'user/net', '--dry-run', '--license', 'mit']) == 1
    assert 'must be what the card beside the weights says, None' in capsys.readouterr().err


def test_a_card_that_is_on_the_hub_stays_unless_it_is_forced(hub_server, place, tmp_path):
    env = hub_server.env(tmp_path / 'cache')

    def push(*more):
        line = [*COMMAND, 'push', place / 'last.pth.tar', 'user/net', *more]
        result = run_python(*line, env=env, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return hub_server.files('user/net')['README.md'].decode(), result.stderr

    first, said = push()
    assert 'license' not in first and said == ''
    second, said = push('--license', 'mit')
    assert second == first and 'README.md of user/net stays as it is' in said and said.count('\n') == 1
    assert b'"license": "mit"' in hub_server.files('user/net')['config.json']
    third, said = push('--license', 'mit', '--force')
    assert 'license: mit' in third and said == ''


def test_weights_of_safetensors_alone_need_a_name(model, tmp_path, capsys):
    save_file(model.state_dict(), tmp_path / 'alone.safetensors')
    assert main(['verify', str(tmp_path / 'alone.safetensors')]) == 1
    assert '--model NAME' in capsys.readouterr().out
