"""A network that was trained computes what it computed, whatever becomes of its rates, or its user is told."""

import copy

import pytest
import timm
import torch
import torchvision
from networks import ZOO_CASES, assert_same_output, images, randomize
from told import told
from torch import nn

import timm_stochdepth as ts


@pytest.fixture
def plain():
    """A network that shows that it has been trained."""
    model = randomize(timm.create_model('resnet26', num_classes=10))
    model.train()
    with torch.no_grad():
        model(images(2))
    return model.eval()


@pytest.mark.parametrize('distribution', ['linear', 'uniform'])
@pytest.mark.parametrize('method', ['sample', 'block'])
@torch.no_grad()
def test_surgery(plain, method, distribution):
    model = copy.deepcopy(plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = images(2)
    ts.apply_stochastic_depth(model, method, 'ResNetBottleneck', 0.4, distribution, keep_function=True)
    assert_same_output(model(x), plain(x))
    ts.apply_stochastic_depth(model, method, 'ResNetBottleneck', 0.7, keep_function=True)
    assert_same_output(model(x), plain(x))
    ts.apply_stochastic_depth(model, method, 'ResNetBottleneck', 0.7, scale_by_keep=True, keep_function=True)
    assert_same_output(model(x), plain(x))
    torch.testing.assert_close(model.layer4[1].bn3.weight, plain.layer4[1].bn3.weight)
    assert {id(p) for group in optimizer.param_groups for p in group['params']} == {id(p) for p in model.parameters()}


@torch.no_grad()
def test_surgery_on_torchvisions_network():
    plain = randomize(torchvision.models.resnet18(num_classes=10)).eval()
    model = copy.deepcopy(plain)
    ts.apply_stochastic_depth(model, 'block', 'ResNetBasicBlock', 0.5, keep_function=True)
    x = images(2)
    assert_same_output(model(x), plain(x))


@torch.no_grad()
def test_a_warmup_afterwards_starts_as_the_same_function(plain):
    model = copy.deepcopy(plain)
    x = images(2)
    ts.apply_stochastic_depth(model, 'block', 'ResNetBottleneck', 0.4, drop_warmup=0.5, keep_function=True)
    assert_same_output(model(x), plain(x))
    ts.start_warmup(model)
    assert max(ts.drop_rates(model).values()) == 0.0
    assert_same_output(model(x), plain(x))
    torch.testing.assert_close(model.layer4[1].bn3.weight, plain.layer4[1].bn3.weight)


@torch.no_grad()
def test_all_norms_of_a_split_norm_are_scaled():
    model = timm.layers.convert_splitbn_model(randomize(timm.create_model('resnet26', num_classes=10)), 2)
    plain = copy.deepcopy(model)
    ts.apply_stochastic_depth(model, 'block', 'ResNetBottleneck', 0.5, keep_function=True)
    for norm, before in ((m.layer4[1].bn3, p.layer4[1].bn3) for m, p in [(model, plain)]):
        torch.testing.assert_close(norm.weight, before.weight / 0.5)
        torch.testing.assert_close(norm.aux_bn[0].weight, before.aux_bn[0].weight / 0.5)


@pytest.mark.parametrize('name', ZOO_CASES)
@torch.no_grad()
def test_another_rate(name):
    model = randomize(timm.create_model(name, num_classes=10, layers=(2, 1, 1, 2))).eval()
    x = images(2)
    y = model(x)
    for rate in (0.5, 0.1, 0.0):
        ts.set_drop_rate(model, rate, keep_function=True)
        assert max(ts.drop_rates(model).values()) == rate
        assert_same_output(model(x), y)


@pytest.mark.filterwarnings('ignore')
@torch.no_grad()
def test_what_cannot_be_kept_leaves_all_as_it_was(plain):
    x = images(2)
    model = copy.deepcopy(plain)
    with pytest.raises(ValueError, match='drop_rate must be below 1'):
        ts.apply_stochastic_depth(model, 'block', 'ResNetBottleneck', 1.0, keep_function=True)
    assert not ts.drop_rates(model) and torch.equal(model(x), plain(x))
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]

    ts.apply_stochastic_depth(model, 'block', 'ResNetBottleneck', 0.3, drop_schedule=[(0, 1), (1, 0.5)])
    y, rates, text = model(x), ts.drop_rates(model), repr(model)
    with pytest.raises(ValueError, match='drop_rate must be below 1'):
        ts.apply_stochastic_depth(model, 'sample', 'ResNetBottleneck', 1.0, 'uniform', keep_function=True)
    with pytest.raises(ValueError, match='drop_rate must be below 1'):
        ts.set_drop_rate(model, 1.0)  # half of it is in force
        ts.start_warmup(model)
    ts.set_drop_rate(model, 0.3)
    assert torch.equal(model(x), y) and ts.drop_rates(model) == rates and repr(model) == text
    ts.set_training_progress(model, 0.0)
    y = model(x)
    with pytest.raises(ValueError, match='drop_rate must be below 1'):
        ts.set_drop_rate(model, 1.0, keep_function=True)
    assert torch.equal(model(x), y)
    ts.set_training_progress(model, 1.0)
    assert ts.drop_rates(model) == rates


def test_who_trained_the_network_is_told_of_the_keyword(plain):
    args = ('block', 'ResNetBottleneck', 0.4)
    (text,) = told(ts.apply_stochastic_depth, copy.deepcopy(plain), *args)
    assert 'keep_function=True' in text and 'scale_by_keep=True' in text
    # inference is what it was, or nothing has been trained
    assert told(ts.apply_stochastic_depth, copy.deepcopy(plain), *args, keep_function=True) == []
    assert told(ts.apply_stochastic_depth, copy.deepcopy(plain), *args, scale_by_keep=True) == []
    assert told(ts.apply_stochastic_depth, timm.create_model('resnet26'), *args) == []
    # the very same settings again
    model = copy.deepcopy(plain)
    told(ts.apply_stochastic_depth, model, *args)
    assert told(ts.apply_stochastic_depth, model, *args) == []


@pytest.mark.parametrize(
    'function, args', [(ts.set_drop_rate, (0.1,)), (ts.set_training_progress, (0.1,)), (ts.start_warmup, ())]
)
def test_a_network_without_stochastic_depth_is_told(function, args):
    (text,) = told(function, nn.Linear(2, 2), *args)
    assert text.startswith(f'{function.__name__} has no effect: Linear has no stochastic depth')


@pytest.mark.parametrize('value', [1, 'yes', None])
def test_keep_function_is_a_flag(value):
    model = timm.create_model('resnet18')
    with pytest.raises(TypeError, match=f'keep_function must be True or False, but got {value!r}'):
        ts.apply_stochastic_depth(model, 'block', 'ResNetBasicBlock', keep_function=value)
    with pytest.raises(TypeError, match=f'keep_function must be True or False, but got {value!r}'):
        ts.set_drop_rate(model, 0.1, keep_function=value)
