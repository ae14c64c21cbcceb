"""What push_to_hub takes, and what it would send, without a server."""

import warnings

import pytest
import timm
import torch
import torchvision
from networks import LAYERS, assert_same_output, randomize
from safetensors.torch import load_file
from torch import nn

import timm_stochdepth as ts
from timm_stochdepth.cli.main import main
from timm_stochdepth.hub.folder import save_weights
from timm_stochdepth.hub.named_models import build_model

OWN = {
    'resnet18': ('ResNetBasicBlock', {}),
    'resnet26d': ('ResNetBottleneck', dict(in_chans=1)),
    'seresnet18': ('ResNetBasicBlock', dict(global_pool='max')),
}


@pytest.mark.parametrize('folded_first', [True, False])
@pytest.mark.parametrize('name', OWN)
def test_a_model_of_ones_own_is_shared_folded(name, folded_first, tmp_path):
    layer, kwargs = OWN[name]
    model = randomize(timm.create_model(name, num_classes=4, drop_path_rate=0.0, **kwargs)).eval()
    ts.apply_stochastic_depth(model, 'sample', layer, 0.5)
    if folded_first:
        _, sizes = ts.push_to_hub(ts.fold_stochastic_depth(model), 'user/net', dry_run=True, out=tmp_path / 'net')
    else:
        with pytest.warns(UserWarning, match=f"pushed folded, as timm's {name} with the drop rates in its weights"):
            _, sizes = ts.push_to_hub(model, 'user/net', dry_run=True, out=tmp_path / 'net')
    assert set(sizes) == {'README.md', 'config.json', 'model.safetensors'}
    loaded = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval()
    x = torch.randn(2, kwargs.get('in_chans', 3), 64, 64)
    with torch.no_grad():
        assert_same_output(loaded(x), model(x))
    card = (tmp_path / 'net' / 'README.md').read_text()
    assert 'It was trained with stochastic depth' in card and 'Method `sample`, rate 0.5 with linear' in card


def test_the_card_says_the_largest_rate_where_a_block_has_one_of_its_own(tmp_path):
    model = timm.create_model('test_vit', num_classes=4)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.3, scale_by_keep=True)
    ts.set_drop_rate(model.blocks[2], 0.5)
    ts.push_to_hub(model, 'user/net', dry_run=True, out=tmp_path / 'net')
    card = (tmp_path / 'net' / 'README.md').read_text()
    assert 'rate 0.5 at the most over 6 blocks' in card and '| blocks.2 | 0.5 |' in card


def test_a_network_that_never_had_stochastic_depth_is_pushed_without_a_word_of_it(tmp_path):
    model = randomize(timm.create_model('resnet18', num_classes=4, drop_path_rate=0.2)).eval()
    ts.push_to_hub(model, 'user/net', dry_run=True, out=tmp_path / 'net')
    assert 'tochastic' not in (tmp_path / 'net' / 'README.md').read_text()
    loaded = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_same_output(loaded(x), model(x))


def own_head():
    model = timm.create_model('resnet18', num_classes=4)
    model.fc = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 4))
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBasicBlock', 0.5)
    return model


def torchvision_resnet():
    model = torchvision.models.resnet18(num_classes=4)
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBasicBlock', 0.5)
    return model


@pytest.mark.parametrize(
    'create, plain, message',
    [
        (
            lambda: timm.create_model('resnet50_sd_block', features_only=True, **LAYERS),
            False,
            'must be an image classifier, but is a FeatureListNet',
        ),
        (torchvision_resnet, True, 'model must be a network of timm, with a pretrained_cfg, but is a ResNet'),
        (own_head, True, r'must be what timm builds as resnet18.*but fc\.0\.bias, fc\.0\.weight, fc\.1 differ'),
    ],
)
def test_what_others_could_not_load_is_refused(create, plain, message):
    with pytest.raises(ValueError, match=message):
        ts.push_to_hub(create(), 'user/net', plain=plain, dry_run=True)


@pytest.mark.parametrize('model', ['resnet50_sd_block', None, 3, [nn.Identity()]])
def test_what_is_no_network_is_refused(model):
    with pytest.raises(TypeError, match='model must be a network'):
        ts.push_to_hub(model, 'user/net', dry_run=True)


@pytest.mark.parametrize('repo_id', [None, 3, ['user/net']])
def test_what_is_no_name_of_a_repository_is_refused(repo_id):
    with pytest.raises(TypeError, match='repo_id must be a name'):
        ts.push_to_hub(timm.create_model('resnet50_sd_block', **LAYERS), repo_id, dry_run=True)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / 'model.safetensors'
    save_weights(randomize(timm.create_model('resnet50_sd_block', num_classes=4, **LAYERS)), path)
    return path


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_dry_run_writes_the_files_that_would_be_sent(weights, tmp_path, capsys):
    out = tmp_path / 'net'
    args = ['push', str(weights), 'user/net', '--dry-run', '--out', str(out)]
    assert main(args) == 0
    printed = {
        line.split()[0]: int(line.split()[1].replace(',', '')) for line in capsys.readouterr().out.splitlines()[:-1]
    }
    before = contents(out)
    assert printed == {name: len(content) for name, content in before.items()}
    assert set(load_file(out / 'model.safetensors')) == set(load_file(weights))
    (out / 'notes.txt').write_text('mine')
    assert main([*args, '--plain']) == 2
    assert contents(out) == {**before, 'notes.txt': b'mine'}
    assert main([*args, '--plain', '--force']) == 0
    assert contents(out)['notes.txt'] == b'mine' and contents(out)['config.json'] != before['config.json']


def test_what_is_pushed_is_not_written_to(weights, tmp_path, capsys):
    assert main(['push', str(weights), 'user/net', '--dry-run', '--out', str(tmp_path / 'net')]) == 0
    for pushed, out in ((weights, tmp_path), (tmp_path / 'net', tmp_path / 'net')):
        before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
        capsys.readouterr()
        assert main(['push', str(pushed), 'user/net', '--dry-run', '--force', '--out', str(out)]) == 2
        assert '--out must not be what is read' in capsys.readouterr().err
        assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before


def test_what_is_written_beside_is_as_the_umask_says(weights, tmp_path):
    assert main(['push', str(weights), 'user/net', '--dry-run', '--out', str(tmp_path / 'net')]) == 0
    (tmp_path / 'probe').touch()
    assert {p.stat().st_mode for p in (tmp_path / 'net').iterdir()} == {(tmp_path / 'probe').stat().st_mode}


def test_a_network_that_was_pushed_loads_without_a_word(weights, tmp_path):
    main(['push', str(weights), 'user/net', '--dry-run', '--out', str(tmp_path / 'net')])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True, drop_path_rate=0.4)


@pytest.mark.parametrize('name', ['repvit_m0_9_sd_sample', 'efficientformer_l1', 'levit_128s_sd_block'])
def test_weights_of_a_network_with_two_classifiers_say_their_number_of_classes(name):
    with torch.device('meta'):
        weights = timm.create_model(name, num_classes=7).state_dict()
    model = build_model(name, {}, weights, on_meta=True)
    assert {key: value.shape for key, value in model.state_dict().items()} == {k: v.shape for k, v in weights.items()}
