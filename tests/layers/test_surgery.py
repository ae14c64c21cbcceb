import pytest
import timm
import torch
import torchvision
from networks import FAMILIES, images, plain_name, randomize, stack
from torch import nn

import timm_stochdepth as ts

APPLY = dict(stochastic_method='block', target_layer_name='ResNetBottleneck')


def test_everything_of_the_model_stays_the_same_object():
    model = timm.create_model('resnet50', num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []
    model.layer1[0].register_forward_hook(lambda *args: calls.append(1))
    modules = dict(model.named_modules())
    tensors = {k: v.data_ptr() for k, v in model.state_dict().items()}
    assert ts.apply_stochastic_depth(model, **APPLY) is None
    assert {n: m for n, m in model.named_modules() if not n.endswith('.drop_path')} == modules
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == tensors
    assert all(p is q for p, q in zip(optimizer.param_groups[0]['params'], model.parameters()))
    model(images(2)).sum().backward()
    assert calls
    before = model.fc.weight.clone()
    optimizer.step()
    assert not torch.equal(model.fc.weight, before)


def test_positional_arguments_come_in_the_order_of_the_method_card():
    model = timm.create_model('resnet18')
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBasicBlock', 0.3, 'uniform', True)
    assert set(ts.drop_rates(model).values()) == {0.3}


@pytest.mark.parametrize('name, num_blocks', [('resnet50', 16), ('resnet101', 33)])
def test_linear_rates_follow_the_formula(name, num_blocks):
    model = timm.create_model(name)
    ts.apply_stochastic_depth(model, **APPLY, drop_rate=0.4)
    rates = ts.drop_rates(model)
    assert list(rates)[:4] == ['layer1.0', 'layer1.1', 'layer1.2', 'layer2.0']
    assert list(rates.values()) == pytest.approx([0.4 * i / (num_blocks - 1) for i in range(num_blocks)])
    assert list(rates.values())[0] == 0 and list(rates.values())[-1] == 0.4


@pytest.mark.parametrize('name', ['resnet50', 'resnet18', 'wide_resnet50_2', 'resnext50_32x4d'])
def test_torchvision_and_timm_blocks_are_found(name):
    layer = 'ResNetBasicBlock' if name == 'resnet18' else 'ResNetBottleneck'
    for model in (timm.create_model(name), torchvision.models.get_model(name)):
        ts.apply_stochastic_depth(model, 'sample', layer)
        assert len(ts.drop_rates(model)) == (8 if name == 'resnet18' else 16)


@pytest.mark.parametrize('family', FAMILIES)
def test_applying_twice_reconfigures(family):
    model, layer = stack(family, 3)
    keys = list(model.state_dict())
    ts.apply_stochastic_depth(model, 'block', layer, 0.9, 'uniform', drop_warmup=0.5)
    classes = [type(m) for m in model]
    ts.apply_stochastic_depth(model, 'sample', layer, 0.2)
    assert [type(m) for m in model] == classes
    assert list(ts.drop_rates(model).values()) == [0.0, 0.1, 0.2]
    assert list(model.state_dict()) == keys
    torch.manual_seed(0)
    once, _ = stack(family, 3)
    once.load_state_dict(model.state_dict())
    ts.apply_stochastic_depth(once, 'sample', layer, 0.2)
    x = torch.randn(4, 16, 8, 8)
    torch.manual_seed(0)
    y = model(x)
    torch.manual_seed(0)
    assert torch.equal(y, once(x))


def test_drop_path_in_the_blocks_is_replaced_and_said():
    model = timm.create_model('resnet50', drop_path_rate=0.2)
    with pytest.warns(UserWarning, match=r'replaced: layer1\.1\.drop_path \(DropPath\), '):
        ts.apply_stochastic_depth(model, **APPLY)
    assert not any(isinstance(m, timm.layers.DropPath) for m in model.modules())
    with pytest.warns(UserWarning, match='drop_rate is 0'):
        ts.apply_stochastic_depth(model, **APPLY, drop_rate=0.0)
    plain = timm.create_model('resnet50').train()
    plain.load_state_dict(model.state_dict())
    x = images(2)
    assert torch.equal(model(x), plain(x))


def test_set_drop_rate_keeps_distribution_and_warmup():
    model, layer = stack('timm_basic', 3)
    ts.apply_stochastic_depth(model, 'sample', layer, 0.2, drop_warmup=0.5)
    ts.set_training_progress(model, 0.25)
    ts.set_drop_rate(model, 0.8)
    assert list(ts.drop_rates(model).values()) == pytest.approx([0.0, 0.2, 0.4])
    ts.set_training_progress(model, 1.0)
    assert list(ts.drop_rates(model).values()) == pytest.approx([0.0, 0.4, 0.8])


def test_a_model_that_nobody_tells_stands_at_its_full_rate():
    model = timm.create_model('resnet50_sd_block', drop_warmup=0.3)
    assert max(ts.drop_rates(model).values()) == 0.2


def test_a_single_block_may_be_the_model():
    block = timm.models.resnet.BasicBlock(8, 8)
    ts.apply_stochastic_depth(block, 'sample', 'ResNetBasicBlock', 0.5, 'uniform')
    assert ts.drop_rates(block) == {'': 0.5}


@pytest.mark.parametrize(
    'changes, error, message',
    [
        (dict(stochastic_method='batch'), ValueError, "stochastic_method must be one of 'block', 'sample'.*'batch'"),
        (dict(stochastic_method=None), ValueError, 'stochastic_method must be one of'),
        (
            dict(target_layer_name='ViTBlock'),
            ValueError,
            "'ResNetBasicBlock', 'ResNetBottleneck', 'ResidualBlock', or .*, but got 'ViTBlock'",
        ),
        (dict(target_layer_name=['ResNetBottleneck']), ValueError, 'target_layer_name must be one of'),
        (dict(drop_rate=1.5), ValueError, r'drop_rate must be in \[0, 1\], but got 1.5'),
        (dict(drop_rate=-1), ValueError, r'drop_rate must be in \[0, 1\], but got -1'),
        (dict(drop_rate=float('nan')), ValueError, r'drop_rate must be in \[0, 1\], but got nan'),
        (dict(drop_rate='0.1'), TypeError, "drop_rate must be a real number.*'0.1'"),
        (dict(drop_distribution='cubic'), ValueError, "drop_distribution must be one of 'linear', 'uniform'.*'cubic'"),
        (dict(drop_warmup=2), ValueError, r'drop_warmup must be in \[0, 1\], but got 2'),
        (dict(drop_warmup='10ep'), TypeError, "drop_warmup must be a real number.*'10ep'"),
        (dict(use_same_gpu_seed='False'), TypeError, "use_same_gpu_seed must be True or False, but got 'False'"),
        (dict(skip_dropped='yes'), TypeError, "skip_dropped must be True or False, but got 'yes'"),
        (dict(scale_by_keep=1), TypeError, 'scale_by_keep must be True or False, but got 1'),
    ],
)
def test_bad_input_is_named_and_changes_nothing(changes, error, message):
    model = timm.create_model('resnet50', drop_path_rate=0.1)
    modules = [(type(m), m) for m in model.modules()]
    with pytest.raises(error, match=message):
        ts.apply_stochastic_depth(model, **{**APPLY, **changes})
    assert all(c is type(m) and m is n for (c, m), n in zip(modules, model.modules()))


@pytest.mark.parametrize('value, error', [(1.1, ValueError), (float('nan'), ValueError), ('1', TypeError)])
def test_bad_rates_and_fractions_are_named(value, error):
    model = timm.create_model('resnet50_sd_block')
    rates = ts.drop_rates(model)
    with pytest.raises(error, match='drop_rate must be'):
        ts.set_drop_rate(model, value)
    with pytest.raises(error, match='fraction must be'):
        ts.set_training_progress(model, value)
    assert ts.drop_rates(model) == rates


def test_a_model_without_target_layers_is_told():
    with pytest.warns(UserWarning, match='No ResNetBottleneck found in Linear'):
        ts.apply_stochastic_depth(nn.Linear(2, 2), **APPLY)
    with pytest.warns(
        UserWarning, match=r'nothing is dropped, the names that fit it are DropPath, vision_transf\w+.Block'
    ):
        ts.apply_stochastic_depth(timm.create_model('test_vit'), **APPLY)
    with pytest.warns(
        UserWarning, match=r'the names that fit it are DropPath, ResNetBasicBlock, ResidualBlock, resnet\.BasicBlock\.'
    ):
        ts.apply_stochastic_depth(timm.create_model('resnet18'), **APPLY)


def test_settings_without_effect_are_told():
    model = timm.create_model('resnet50')
    with pytest.warns(UserWarning, match='drop_rate is 0'):
        ts.apply_stochastic_depth(model, **APPLY, drop_rate=0)
    with pytest.warns(UserWarning, match='use_same_gpu_seed=False has no effect'):
        ts.apply_stochastic_depth(model, 'sample', 'ResNetBottleneck', use_same_gpu_seed=False)
    with pytest.warns(UserWarning, match='skip_dropped=True has no effect'):
        ts.apply_stochastic_depth(model, 'block', 'ResNetBottleneck', skip_dropped=True)


@pytest.mark.parametrize(
    'name, settings',
    [
        ('resnet50_sd_block', dict(use_same_gpu_seed=False, scale_by_keep=True, skip_dropped=False)),
        ('resnet50_sd_sample', dict(use_same_gpu_seed=True, scale_by_keep=False, skip_dropped=True)),
    ],
)
def test_settings_come_back_as_model_args(name, settings):
    settings = dict(
        drop_path_rate=0.3,
        drop_distribution='uniform',
        drop_warmup=0.1,
        **settings,
    )
    model = timm.create_model(name, **settings)
    assert ts.stochastic_depth_args(model) == settings
    with pytest.raises(ValueError, match='must hold stochastic blocks'):
        ts.stochastic_depth_args(nn.Linear(2, 2))


class PreActivationBlock(nn.Module):
    """A block of a user's own."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return x + self.norm(self.conv(x))


class StochasticPreActivationBlock(ts.StochasticBlock, PreActivationBlock):
    last_norm = 'norm'

    def shortcut(self, x):
        return x

    def branch(self, x):
        return self.norm(self.conv(x))

    def activation(self, x):
        return x


def test_a_block_written_by_hand_is_taken_with_a_warning(monkeypatch):
    monkeypatch.setitem(ts.STOCHASTIC_LAYER_MAPPING, 'Mine', {PreActivationBlock: StochasticPreActivationBlock})
    model = randomize(nn.Sequential(*[PreActivationBlock(4) for _ in range(3)]))
    with pytest.warns(FutureWarning, match=r"BRANCH_ENDS\[PreActivationBlock\] = 'name of the child"):
        ts.apply_stochastic_depth(model, 'block', 'Mine', 0.5)
    assert list(ts.drop_rates(model).values()) == [0.0, 0.25, 0.5]
    folded = ts.fold_stochastic_depth(model)
    assert all(type(m) is PreActivationBlock for m in folded)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(folded.eval()(x), model.eval()(x))


def test_rates_of_the_zoo_are_those_of_the_method_cards():
    for name, rate in {
        'resnet50_sd_sample': 0.1,
        'resnet101_sd_sample': 0.1,
        'resnet50_sd_block': 0.2,
        'resnet101_sd_block': 0.4,
    }.items():
        with torch.device('meta'):
            model = timm.create_model(name)
            num_blocks = sum(len(getattr(timm.create_model(plain_name(name)), f'layer{i}')) for i in range(1, 5))
        assert list(ts.drop_rates(model).values()) == pytest.approx([
            rate * i / (num_blocks - 1) for i in range(num_blocks)
        ])
