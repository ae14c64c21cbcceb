"""Whatever timm's scripts write can be pushed and folded."""

import argparse
import json
import warnings

import pytest
import timm
import torch
import torch.distributed as dist
from networks import LAYERS, assert_same_output, small_resnet
from safetensors.torch import load_file, save_file
from timm.layers import convert_splitbn_model
from timm.models import clean_state_dict
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.optim.swa_utils import AveragedModel

import timm_stochdepth as ts
from timm_stochdepth.cli.main import main
from timm_stochdepth.hub.load import load_model

WHOLE = dict(layers=[3, 4, 6, 3], base_width=64)


def save_run(path, state_dict, **args):
    """What timm's CheckpointSaver writes for a run with these arguments, others as train.py has them by default."""
    defaults = dict(
        model='resnet50_sd_block', pretrained=False, num_classes=None, in_chans=None, input_size=None, img_size=None,
        gp=None, drop_path=None, head_init_scale=None, model_kwargs={},
    )  # fmt: skip
    args = argparse.Namespace(**{**defaults, **args, 'model_kwargs': {**LAYERS, **args.pop('model_kwargs', {})}})
    torch.save(dict(epoch=1, arch=args.model, state_dict=state_dict, args=args, version=2, metric=90.0), path)
    return path


def assert_rebuilt(path, model, in_chans=3, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loaded, record = load_model(path, **kwargs)
    x = torch.randn(2, in_chans, 64, 64)
    with torch.no_grad():
        assert_same_output(loaded.eval()(x), model(x))
    return loaded, record


@pytest.mark.parametrize('says_its_scales', [True, False])
@pytest.mark.parametrize(
    'model_args, run_args',
    [
        (dict(num_classes=3), dict()),
        (dict(num_classes=3), dict(num_classes=3)),
        (dict(num_classes=0), dict()),
        (dict(in_chans=1), dict()),
        (dict(in_chans=1), dict(in_chans=1)),
        (dict(in_chans=4), dict(input_size=[4, 32, 32])),
        (dict(global_pool='max'), dict(gp='max')),
        (dict(global_pool='catavgmax'), dict(gp='catavgmax')),
        (dict(drop_path_rate=0.6), dict(drop_path=0.6)),
        (dict(drop_path_rate=0.0), dict(drop_path=0.0)),
        (dict(drop_distribution='uniform'), dict(model_kwargs=dict(drop_distribution='uniform'))),
        (dict(scale_by_keep=True), dict(model_kwargs=dict(scale_by_keep=True, fold_pretrained=True))),
        (dict(output_stride=16), dict(model_kwargs=dict(output_stride=16))),
        (dict(layers=[1, 1, 1, 3]), dict(model_kwargs=dict(layers=[1, 1, 1, 3]))),
        (dict(num_classes=5), dict(head_init_scale=0.001)),
    ],
)
def test_a_run_is_rebuilt_whatever_its_arguments(model_args, run_args, says_its_scales, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'drop_rate is 0')
        model = small_resnet(**model_args)
        state_dict = model.state_dict()
        path = save_run(
            tmp_path / 'x.pth.tar', state_dict if says_its_scales else clean_state_dict(state_dict), **run_args
        )
        x = torch.randn(2, model_args.get('in_chans', 3), 64, 64)
        with torch.no_grad():
            loaded, _ = load_model(path)
            assert_same_output(loaded.eval()(x), model(x))
    assert ts.drop_rates(loaded) == ts.drop_rates(model)


def checkpointed(model):
    apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, ts.StochasticBlock))
    return model


def compiled_blocks(model):
    model.layer2[0] = torch.compile(model.layer2[0])
    return model


def distributed(model):
    return nn.parallel.DistributedDataParallel(model)


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


WRAPPERS = {
    'DataParallel': nn.DataParallel,
    'DistributedDataParallel': distributed,
    'torch.compile': torch.compile,
    'both': lambda model: distributed(torch.compile(model)),
    'the other way round': lambda model: torch.compile(distributed(model)),
    'compiled blocks': compiled_blocks,
    'activation checkpointing': checkpointed,
    'all of them': lambda model: distributed(torch.compile(checkpointed(model))),
    'AveragedModel': AveragedModel,
    'ModelEmaV3': ModelEmaV3,
    'split BatchNorm': lambda model: convert_splitbn_model(model, 2),
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_names_that_wrappers_give_are_understood(wrapper, tmp_path, process_group):
    model = small_resnet(drop_path_rate=0.5, num_classes=3)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        y = model(x)
        wrapped = WRAPPERS[wrapper](model)
        path = save_run(tmp_path / 'last.pth.tar', wrapped.state_dict(), drop_path=0.5)
        assert_same_output(load_model(path)[0].eval()(x), y)
        overlay = dict(file=str(path), num_classes=3)
        loaded = timm.create_model(
            'resnet50_sd_sample', pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, **LAYERS
        )
        assert_same_output(loaded.eval()(x), y)


@pytest.mark.parametrize(
    'wrapper', [w for w in WRAPPERS if w not in ('AveragedModel', 'ModelEmaV3', 'split BatchNorm')]
)
def test_a_wrapped_model_is_pushed_under_its_own_names(wrapper, tmp_path, process_group):
    model = small_resnet(drop_path_rate=0.5, num_classes=3)
    names = list(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        y = model(x)
    wrapped = WRAPPERS[wrapper](model)
    ts.push_to_hub(wrapped, 'user/net', dry_run=True, out=tmp_path / 'net')
    assert sorted(load_file(tmp_path / 'net' / 'model.safetensors')) == sorted(names)
    with torch.no_grad():
        assert_same_output(timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval()(x), y)


@pytest.mark.parametrize('source', ['local-dir', 'hf-hub'])
@pytest.mark.parametrize('drop_path', [None, 0.6])
def test_a_run_that_started_from_a_pushed_model(source, drop_path, tmp_path, monkeypatch):
    base = small_resnet(num_classes=4, drop_path_rate=0.3, drop_distribution='uniform')
    folder = tmp_path / 'cache' / 'models--user--net' / 'snapshots' / ('0' * 40)
    folder.parent.mkdir(parents=True)
    ts.push_to_hub(base, 'user/net', dry_run=True, out=folder)
    (folder.parent.parent / 'refs').mkdir()
    (folder.parent.parent / 'refs' / 'main').write_text('0' * 40)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'cache'))
    name = f'local-dir:{folder}' if source == 'local-dir' else 'hf-hub:user/net'

    tuned = timm.create_model(name, pretrained=True, num_classes=3, drop_path_rate=drop_path).eval()
    args = dict(model=name, drop_path=drop_path, pretrained=True)
    path = save_run(tmp_path / 'model_best.pth.tar', clean_state_dict(tuned.state_dict()), **args)
    loaded, record = assert_rebuilt(path, tuned)
    assert set(ts.drop_rates(loaded).values()) == {drop_path or 0.3}
    assert record.base_model == ('user/net' if source == 'hf-hub' else None)
    assert main(['fold', str(path), str(tmp_path / 'plain.safetensors')]) == 0


def test_a_run_that_started_from_a_folder_that_is_gone_is_named(tmp_path, capsys):
    path = save_run(tmp_path / 'x.pth.tar', small_resnet().state_dict(), model=f'local-dir:{tmp_path / "gone"}')
    assert main(['push', str(path), 'user/net', '--dry-run']) == 1
    err = capsys.readouterr().err
    assert f'{tmp_path / "gone"} must hold a file config.json' in err and err.count('\n') == 1
    assert main(['push', str(path), 'user/net', '--dry-run', '--model', 'resnet50_sd_block']) == 0


def average_of_two(**kwargs):
    """What timm's avg_checkpoints.py makes of two checkpoints: a bare state_dict, its counters as floats."""
    networks = [small_resnet(**kwargs) for _ in range(2)]
    states = [network.state_dict() for network in networks]
    average = {key: ((states[0][key].double() + states[1][key].double()) / 2).float() for key in states[0]}
    model = small_resnet(**kwargs)
    model.load_state_dict(average)
    return average, model


@pytest.mark.filterwarnings('ignore:The weights do not say')
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_weights_alone_are_pushed_as_what_the_command_says(suffix, tmp_path, capsys):
    average, model = average_of_two(num_classes=4, drop_path_rate=0.3, drop_distribution='uniform', in_chans=1)
    path = tmp_path / f'averaged{suffix}'
    torch.save(average, path) if suffix == '.pth' else save_file(average, path)
    network = ['--model', 'resnet50_sd_block', '--drop-path', '0.3']
    network += ['--model-kwargs', 'drop_distribution=uniform', 'layers=[1, 2, 1, 1]', 'base_width=8']
    out = tmp_path / 'net'
    assert main(['push', str(path), 'user/net', '--dry-run', '--out', str(out), '--img-size', '32', *network]) == 0
    config = json.loads((out / 'config.json').read_text())
    assert config['model_args']['drop_path_rate'] == 0.3 and config['pretrained_cfg']['input_size'] == [1, 32, 32]
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert_same_output(timm.create_model(f'local-dir:{out}', pretrained=True).eval()(x), model(x))
        assert main(['fold', str(path), str(tmp_path / f'plain{suffix}'), *network]) == 0
        plain = timm.create_model(
            'resnet50', num_classes=4, in_chans=1, checkpoint_path=str(tmp_path / f'plain{suffix}'), **LAYERS
        )
        assert_same_output(plain.eval()(x), model(x))


@pytest.mark.parametrize('name', ['resnet50_sd_sample', 'resnet101_sd_block'])
def test_weights_alone_are_not_published_on_an_assumption(name, tmp_path, capsys):
    path = tmp_path / 'averaged.safetensors'
    save_file(timm.create_model(name, num_classes=4).state_dict(), path)
    assumed = name.replace('block', 'sample')
    with pytest.warns(UserWarning, match=f'does not say which network it is for. It is assumed to be {assumed}'):
        model, record = load_model(path)
    assert_not_published(model, record)


@pytest.mark.parametrize('says_its_scales', [True, False])
def test_a_name_without_its_rate_is_not_published_on_an_assumption(says_its_scales, tmp_path):
    state_dict = small_resnet(drop_path_rate=0.5, **WHOLE).state_dict()
    path = tmp_path / 'model.pth'
    torch.save(
        dict(arch='resnet50_sd_block', state_dict=state_dict if says_its_scales else clean_state_dict(state_dict)), path
    )
    if says_its_scales:
        load_model(path)
        return
    with pytest.warns(UserWarning, match='does not say the drop rate that its resnet50_sd_block was trained with'):
        assert_not_published(*load_model(path))


def assert_not_published(model, record):
    with pytest.raises(ValueError, match='Nothing is published on an assumption.*--model NAME'):
        ts.push_to_hub(model, 'user/net', record=record)


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth', '.pth.tar'])
def test_folded_weights_are_what_their_suffix_says(suffix, tmp_path):
    model = small_resnet(num_classes=3, drop_path_rate=0.5)
    path = save_run(tmp_path / 'last.pth.tar', model.state_dict(), drop_path=0.5)
    target = tmp_path / f'plain{suffix}'
    assert main(['fold', str(path), str(target)]) == 0
    plain = timm.create_model('resnet50', num_classes=3, checkpoint_path=str(target), **LAYERS).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_same_output(plain(x), model(x))


@pytest.mark.parametrize('command', ['push', 'fold'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_named(command, value, tmp_path, capsys):
    state_dict = small_resnet(num_classes=3).state_dict()
    state_dict['layer4.0.conv1.weight'][0, 0] = value
    path = save_run(tmp_path / 'last.pth.tar', state_dict)
    target = {'push': ['user/net', '--dry-run'], 'fold': [str(tmp_path / 'plain.safetensors')]}[command]
    assert main([command, str(path), *target]) == 1
    assert 'but layer4.0.conv1.weight holds values that are not finite' in capsys.readouterr().err
    assert not (tmp_path / 'plain.safetensors').exists()
    model = small_resnet()
    model.fc.bias.data[1] = value
    with pytest.raises(ValueError, match='fc.bias holds values that are not finite'):
        ts.push_to_hub(model, 'user/net', dry_run=True)
