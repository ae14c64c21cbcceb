"""Networks of this package's names through the commands, whatever the family: what one writes, the next one reads."""

import argparse
import json
from pathlib import Path

import pytest
import timm
import torch
from networks import assert_same_output, plain_name, randomize

import timm_stochdepth as ts
from timm_stochdepth.cli.main import main

RATE = 0.3
NETWORKS = {
    'test_vit_sd_sample': 160,
    'test_convnext_sd_block': 64,
    'resnet10t_sd_block': 64,  # the paper's convention
    'efficientnet_b0_sd_sample': 64,  # whose blocks do not reach the rate that is asked for
    'rexnet_100_sd_sample': 64,  # which can only mask
    'shvit_s1_sd_sample': 128,  # to which timm gives no drop paths
    'ghostnet_050_sd_block': 64,  # and which cannot be folded, but is plain at inference
}
QUICK = ('resnet10t_sd_block', 'shvit_s1_sd_sample')
CASES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in NETWORKS]


def images(name):
    size = NETWORKS[name]
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def logits(model, name):
    with torch.no_grad():
        return model.eval()(images(name))


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A function that writes the checkpoint which timm's train.py would write of a name, and gives its network."""

    def train(name):
        torch.manual_seed(0)
        model = randomize(timm.create_model(name, num_classes=4, drop_path_rate=RATE))
        args = argparse.Namespace(model=name, drop_path=RATE, num_classes=4, model_kwargs={})
        torch.save(dict(epoch=0, arch=name, state_dict=model.state_dict(), args=args), 'last.pth.tar')
        return model

    monkeypatch.chdir(tmp_path)
    return train


def run(capsys, *line):
    assert main(list(line)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize('name', CASES)
def test_from_a_checkpoint_to_a_repository_and_back(name, trained, capsys):
    model = trained(name)
    expected, rates = logits(model, name), ts.drop_rates(model)
    run(capsys, 'push', 'last.pth.tar', 'user/net', '--dry-run', '--out', 'pushed')
    config = json.loads(Path('pushed', 'config.json').read_text())
    assert config['architecture'] == name and config['model_args']['drop_path_rate'] == RATE
    for source in ('last.pth.tar', 'pushed'):
        assert all(line.startswith('ok ') for line in run(capsys, 'verify', source).splitlines())
        rows = {row[0]: row[1] for line in run(capsys, 'show', source).splitlines() if len(row := line.split()) == 4}
        assert {n: float(rows[n]) for n in rates} == pytest.approx(rates, abs=5e-5)
        run(capsys, 'fold', source, f'{source.partition(".")[0]}_plain.pth')
        plain = timm.create_model(plain_name(name), num_classes=4)
        plain.load_state_dict(torch.load(f'{source.partition(".")[0]}_plain.pth')['state_dict'])
        assert_same_output(logits(plain, name), expected)
    run(capsys, 'push', 'pushed', 'user/net', '--dry-run', '--out', 'again')
    for folder in ('pushed', 'again'):
        loaded = timm.create_model(f'local-dir:{folder}', pretrained=True)
        assert torch.equal(logits(loaded, name), expected) and ts.drop_rates(loaded) == rates
    run(capsys, 'push', 'pushed', 'user/net', '--plain', '--dry-run', '--out', 'plain')
    plain = timm.create_model('local-dir:plain', pretrained=True)
    assert not ts.drop_rates(plain) and plain.pretrained_cfg['architecture'] == plain_name(name)
    assert_same_output(logits(plain, name), expected)
    run(capsys, 'fold', 'plain', 'back.safetensors', '--unfold', name, '--drop-path', '0.2')
    run(capsys, 'verify', 'back.safetensors')
    run(capsys, 'push', 'back.safetensors', 'user/net', '--dry-run', '--out', 'back')
    back = timm.create_model('local-dir:back', pretrained=True)
    assert_same_output(logits(back, name), expected)
    assert ts.stochastic_depth_args(back)['drop_path_rate'] == 0.2


APPLIED = {
    'resnet10t': dict(stochastic_method='block', target_layer_name='ResNetBasicBlock', drop_rate=RATE),
    'test_vit': dict(stochastic_method='sample', target_layer_name='DropPath', drop_rate=None, skip_dropped=True),
    'efficientnet_b0': dict(stochastic_method='sample', target_layer_name='DropPath', drop_rate=None),
    'shvit_s1': dict(stochastic_method='block', target_layer_name='ResidualBlock', drop_rate=RATE, drop_warmup=0.5),
}


def with_stochastic_depth(name, **settings):
    torch.manual_seed(0)
    args = {**APPLIED[name], **settings}
    kwargs = dict(drop_path_rate=RATE) if args['drop_rate'] is None else {}
    model = timm.create_model(name, num_classes=4, **kwargs)
    ts.apply_stochastic_depth(model, **args)
    return randomize(model)


@pytest.mark.parametrize('name', [pytest.param(n, marks=pytest.mark.long if n[0] == 'e' else []) for n in APPLIED])
def test_a_plain_network_keeps_its_stochastic_depth_under_its_name(name, tmp_path):
    model = with_stochastic_depth(name)
    method = APPLIED[name]['stochastic_method']
    ts.push_to_hub(model, 'user/net', keep_stochastic_depth=True, dry_run=True, out=tmp_path / 'net')
    config = json.loads((tmp_path / 'net' / 'config.json').read_text())
    assert config['architecture'] == f'{name}_sd_{method}' and config['model_args']['drop_path_rate'] == RATE
    assert 'drop_rates.png' in {path.name for path in (tmp_path / 'net').iterdir()}
    loaded = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True)
    size = 160 if name == 'test_vit' else 128
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), model.eval()(x))
    assert ts.drop_rates(loaded) == pytest.approx(ts.drop_rates(model), rel=1e-6)
    for (_, one), (_, other) in zip(ts.inspection.drop_paths(loaded), ts.inspection.drop_paths(model), strict=True):
        assert one.settings.skip_dropped == other.settings.skip_dropped
        assert one.scale_by_keep == other.scale_by_keep and one.settings.drop_warmup == other.settings.drop_warmup


def test_a_checkpoint_of_a_plain_network_keeps_it_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = with_stochastic_depth('test_vit')
    torch.save(dict(arch='test_vit', state_dict=model.state_dict()), 'last.pth.tar')
    run(capsys, 'push', 'last.pth.tar', 'user/net', '--keep-stochastic-depth', '--dry-run', '--out', 'net')
    assert all(line.startswith('ok ') for line in run(capsys, 'verify', 'net').splitlines())
    loaded = timm.create_model('local-dir:net', pretrained=True)
    assert loaded.pretrained_cfg['architecture'] == 'test_vit_sd_sample'
    assert ts.drop_rates(loaded) == pytest.approx(ts.drop_rates(model), rel=1e-6)
    assert torch.equal(logits(loaded, 'test_vit_sd_sample'), logits(model, 'test_vit_sd_sample'))


def rate_of_a_block(model):
    ts.set_drop_rate(model.layer4[0], 0.9)


def some_blocks(model):
    for block in list(model.layer1):
        ts.set_drop_rate(block, 0.0)


def own_head(model):
    model.fc = torch.nn.Sequential(torch.nn.Linear(512, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))


@pytest.mark.parametrize(
    'change, message',
    [
        (rate_of_a_block, 'must have one drop rate and distribution, which config.json can say'),
        (some_blocks, 'must have one drop rate and distribution, which config.json can say'),
        (own_head, r'must be what timm builds as resnet10t_sd_block, .* but fc\.0\.bias, '),
    ],
)
@pytest.mark.filterwarnings('ignore:Blocks were given settings of their own')
def test_what_its_arguments_would_not_rebuild_is_refused(change, message, tmp_path):
    model = with_stochastic_depth('resnet10t', drop_distribution='uniform')
    change(model)
    with pytest.raises(ValueError, match=message):
        ts.push_to_hub(model, 'user/net', keep_stochastic_depth=True, dry_run=True, out=tmp_path / 'net')
    assert not (tmp_path / 'net').exists()


def test_nothing_to_keep_is_said():
    plain = timm.create_model('resnet10t', num_classes=4)
    with pytest.raises(
        ValueError, match='keep_stochastic_depth must be False where nothing is kept, .*: ResNet has no'
    ):
        ts.push_to_hub(plain, 'user/net', keep_stochastic_depth=True, dry_run=True)
    model = with_stochastic_depth('resnet10t')
    with pytest.raises(ValueError, match='keep_stochastic_depth must be False .*: plain=True folds it'):
        ts.push_to_hub(model, 'user/net', keep_stochastic_depth=True, plain=True, dry_run=True)
    masked = timm.create_model('rexnet_100', num_classes=4)
    ts.apply_stochastic_depth(masked, 'sample', 'DropPath', 0.1)
    with pytest.raises(ValueError, match='scale_by_keep must be True for rexnet_100_sd_sample'):
        ts.push_to_hub(masked, 'user/net', keep_stochastic_depth=True, dry_run=True)
