"""What files, users and settings say of a network is believed where it agrees, and never guessed."""

import argparse
import warnings

import pytest
import timm
import torch
from networks import LAYERS, assert_same_output, small_resnet
from safetensors.torch import load_file, save, save_file
from timm.models import clean_state_dict
from timm.utils import freeze
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

import timm_stochdepth as ts
from timm_stochdepth.cli.main import main
from timm_stochdepth.hub.load import load_model


def save_as(path, model, **said):
    """A checkpoint whose state_dict has no metadata: what is said beside it has to do."""
    torch.save(dict(state_dict=clean_state_dict(model.state_dict()), **said), path)
    return path


def run_args(**args):
    return argparse.Namespace(**{'model': 'resnet50_sd_block', 'drop_path': 0.1, 'model_kwargs': LAYERS, **args})


@pytest.mark.parametrize(
    'said, given',
    [
        (
            dict(arch='resnet50', args=run_args(model='resnet50')),
            ['--model', 'resnet50_sd_block', '--drop-path', '0.5'],
        ),
        (dict(args=run_args()), ['--drop-path', '0.5']),
        (dict(args=run_args()), ['--model-kwargs', 'drop_distribution=uniform']),
        (dict(args=run_args()), ['--model-kwargs', 'scale_by_keep=True']),
        (dict(args=run_args()), ['--model', 'resnet50_sd_sample', '--drop-path', '0.2']),
        (dict(args=run_args()), ['--model', 'resnet50']),
    ],
)
def test_a_user_who_contradicts_the_file_is_told(said, given, tmp_path, capsys):
    path = save_as(tmp_path / 'last.pth.tar', small_resnet('resnet50', num_classes=3), **said)
    assert main(['fold', str(path), str(tmp_path / 'plain.pth'), *given]) == 1
    err = capsys.readouterr().err
    assert f'must agree with what {path} says of its weights' in err and err.count('\n') == 1
    assert not (tmp_path / 'plain.pth').exists()


def test_a_user_who_agrees_with_the_file_is_not_told(tmp_path):
    model = small_resnet(drop_path_rate=0.1)
    path = save_as(tmp_path / 'last.pth.tar', model, args=run_args())
    given = ['--model', 'resnet50_sd_block', '--drop-path', '0.1', '--model-kwargs', 'drop_distribution=linear']
    assert main(['fold', str(path), str(tmp_path / 'plain.pth'), *given]) == 0


@pytest.mark.parametrize(
    'said',
    [
        dict(args=dict(model='resnet50_sd_block', model_kwargs=LAYERS)),  # of a loop of one's own
        dict(args=dict(model='resnet50_sd_block', model_kwargs=LAYERS, drop_path_rate=0.5)),
        dict(args=run_args(drop_path=0.5, epochs=10, model_kwargs={**LAYERS, 'drop_warmup': 0.5}), epoch=2),
    ],
)
def test_arguments_that_leave_the_rate_open_are_told(said, tmp_path):
    path = save_as(tmp_path / 'x.pth', small_resnet(drop_path_rate=0.5), **said)
    with pytest.warns(UserWarning, match='do not say the drop_path_rate'):
        timm.create_model('resnet50_sd_block', pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **LAYERS)


def test_a_warmup_that_is_over_is_no_question(tmp_path):
    model = small_resnet(drop_path_rate=0.5)
    args = run_args(drop_path=0.5, epochs=10, model_kwargs={**LAYERS, 'drop_warmup': 0.5})
    path = save_as(tmp_path / 'x.pth', model, args=args, epoch=4)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        overlay = dict(file=str(path))
        loaded = timm.create_model(
            'resnet50_sd_block', pretrained=True, pretrained_cfg_overlay=overlay, **LAYERS
        ).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_same_output(loaded(x), model(x))


def rates_by_hand(model):
    ts.apply_stochastic_depth(model.layer4, 'sample', 'ResNetBottleneck', 0.6, 'uniform')


def activations_by_hand(model):
    for module in model.modules():
        if isinstance(module, ts.StochasticBlock):
            module.act3 = nn.SiLU()


@pytest.mark.parametrize(
    'change, message',
    [
        (rates_by_hand, 'must have one drop rate and distribution'),
        (activations_by_hand, r'must be what timm builds as resnet50_sd_block.*but layer1\.0\.act3'),
    ],
)
def test_what_a_config_cannot_say_is_not_pushed(change, message):
    model = small_resnet()
    change(model)
    with pytest.raises(ValueError, match=message):
        ts.push_to_hub(model, 'user/net', dry_run=True)


def test_rates_by_hand_are_pushed_folded(tmp_path):
    model = small_resnet()
    rates_by_hand(model)
    ts.push_to_hub(model, 'user/net', plain=True, dry_run=True, out=tmp_path / 'net')
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_same_output(timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval()(x), model(x))


def test_weights_without_counters_are_whole(tmp_path):
    model = small_resnet()
    path = tmp_path / 'model.pth'
    torch.save({k: v for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')}, path)
    kwargs = dict(pretrained_cfg_overlay=dict(file=str(path)), **LAYERS)
    with pytest.warns(UserWarning, match='do not say whether they were trained with stochastic depth'):
        timm.create_model('resnet50_sd_block', pretrained=True, **kwargs)
    loaded = timm.create_model('resnet50_sd_block', pretrained=True, fold_pretrained=False, **kwargs).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_same_output(loaded(x), model(x))


@pytest.mark.parametrize('plain', [False, True])
def test_frozen_and_checkpointed_networks_are_pushed(plain, tmp_path):
    model = small_resnet(num_classes=3)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        y = model(x)
    freeze(model, ['layer1'])
    apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, ts.StochasticBlock))
    ts.push_to_hub(model, 'user/net', plain=plain, dry_run=True, out=tmp_path / 'net')
    with torch.no_grad():
        loaded = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval()
        assert_same_output(loaded(x), y)
        assert_same_output(load_model(tmp_path / 'net')[0].eval()(x), y)


@pytest.mark.parametrize('source', ['checkpoint', 'folder', 'weights alone'])
def test_plain_networks_of_any_shape_are_unfolded(source, tmp_path):
    shape = dict(stem_type='deep', num_classes=3, **LAYERS)
    plain = small_resnet('resnet50', **shape)
    more = []
    if source == 'checkpoint':
        args = run_args(model='resnet50', drop_path=None, model_kwargs=dict(stem_type='deep', **LAYERS))
        path = save_as(tmp_path / 'last.pth.tar', plain, args=args)
    elif source == 'folder':
        path = tmp_path / 'plain'
        timm.models.save_for_hf(plain, str(path), safe_serialization=True)
    else:
        path = tmp_path / 'plain.safetensors'
        save_file(plain.state_dict(), path)
        more = ['--model-kwargs', *(f'{name}={value}' for name, value in LAYERS.items()), 'stem_type=deep']
    target = tmp_path / 'back.safetensors'
    unfold = ['--unfold', 'resnet50_sd_block', '--drop-path', '0.6']
    assert main(['fold', str(path), str(target), *unfold, *more]) == 0
    model = timm.create_model('resnet50_sd_block', drop_path_rate=0.6, **shape).eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model.load_state_dict(load_file(target))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_same_output(model(x), plain(x))


def test_a_stochastic_network_is_not_unfolded(tmp_path, capsys):
    path = save_as(tmp_path / 'last.pth.tar', small_resnet(), args=run_args())
    assert main(['fold', str(path), str(tmp_path / 'x.pth'), '--unfold', 'resnet50_sd_block']) == 1
    assert 'rates up to 0.1' in capsys.readouterr().err


def test_what_somebody_wrote_under_the_same_name_is_left(tmp_path, capsys):
    path = save_as(tmp_path / 'last.pth.tar', small_resnet(), args=run_args())
    target = tmp_path / 'plain.pth'
    target.write_text('my notes')
    assert main(['fold', str(path), str(target)]) == 2
    assert '--force replaces it' in capsys.readouterr().err and target.read_text() == 'my notes'
    assert main(['fold', str(path), str(target), '--force']) == 0
    assert torch.load(target)['arch'] == 'resnet50'


def test_a_home_folder_that_no_shell_expanded(tmp_path, monkeypatch):
    (tmp_path / 'home').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path)
    path = save_as(tmp_path / 'home' / 'last.pth.tar', small_resnet(), args=run_args())
    assert main(['fold', '~/last.pth.tar', '~/plain.pth']) == 0
    assert main(['push', str(path), 'user/net', '--dry-run', '--out=~/net']) == 0
    names = sorted(p.name for p in (tmp_path / 'home').iterdir() if p.name != '.cache')  # the Hub's client has one
    assert names == ['last.pth.tar', 'net', 'plain.pth']
    assert [p.name for p in tmp_path.iterdir()] == ['home']


def script_archive(path):
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


def whole_model(path):
    torch.save(small_resnet(), path)


FILES = {
    'empty': (lambda p: p.write_bytes(b''), 'must hold weights, but is empty'),
    'LFS pointer': (
        lambda p: p.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'),
        'pointer of Git LFS',
    ),
    'text': (lambda p: p.write_text('my notes'), 'must be a checkpoint or state_dict of torch.save'),
    'TorchScript': (script_archive, 'is a TorchScript archive: save model.state_dict()'),
    'whole model': (whole_model, 'which could run any code'),
    'names that are numbers': (lambda p: torch.save({0: torch.zeros(1)}, p), 'but 0 is a Tensor'),
    'another key': (
        lambda p: torch.save({'model_state_dict': small_resnet().state_dict()}, p),
        "but 'model_state_dict' is a",
    ),
    'arguments that are a list': (
        lambda p: save_as(p, small_resnet(), args=run_args(model_kwargs=[1])),
        'does not fit the model',  # a ResNet-50 of the usual depth, since they say nothing
    ),
    'a rate out of range': (
        lambda p: save_as(p, small_resnet(), args=run_args(drop_path=7)),
        'drop_path_rate must be in [0, 1]',
    ),
    'a rate that is a word': (lambda p: save_as(p, small_resnet(), args=run_args(drop_path='high')), "but got 'high'"),
    'an argument unknown to timm': (
        lambda p: save_as(p, small_resnet(), args=run_args(model_kwargs=dict(act_layer='foo'))),
        'model_args must be arguments of resnet50_sd_block',
    ),
    'an argument of create_model': (
        lambda p: save_as(p, small_resnet(), args=run_args(model_kwargs=dict(checkpoint_path='x'))),
        'arguments of the network alone, but has checkpoint_path',
    ),
    'a scalar for a matrix': (
        lambda p: torch.save(
            dict(args=run_args(), state_dict={**small_resnet().state_dict(), 'conv1.weight': torch.tensor(1.0)}), p
        ),
        'does not fit the model',
    ),
}


@pytest.mark.parametrize('file', FILES)
def test_a_file_of_something_else_is_one_sentence(file, tmp_path, capsys):
    write, message = FILES[file]
    path = tmp_path / 'last.pth.tar'
    write(path)
    assert main(['push', str(path), 'user/net', '--dry-run']) == 1
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1 and 'internal error' not in err and len(err) < 2000
    assert str(path) in err or 'model_args' in err


@pytest.mark.parametrize('suffix', ['.bin', '.pth', '.safetensors', '.SAFETENSORS'])
def test_safetensors_are_known_under_any_name(suffix, tmp_path):
    path = tmp_path / f'model{suffix}'
    path.write_bytes(save(small_resnet(**dict(layers=[3, 4, 6, 3], base_width=64, num_classes=3)).state_dict()))
    with pytest.warns(UserWarning, match='does not say which network it is for'):
        load_model(path)
