"""Weights that were trained: drop paths that are there keep their convention, and what changes the function is told."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from family_networks import FAMILIES, FIRST
from networks import Block
from timm.layers import DropPath
from timm.utils import ModelEmaV3
from told import told
from torch import nn
from torch._subclasses import FakeTensorMode
from torchvision.ops import StochasticDepth as TorchvisionDropPath

import timm_stochdepth as ts
from timm_stochdepth.folding.trained_weights import shows_training
from timm_stochdepth.inspection import drop_paths

CLASSES = [
    pytest.param(name, marks=[] if name in FIRST else pytest.mark.families, id=name) for name in sorted(FAMILIES)
]
VIT = dict(img_size=32, depth=4, embed_dim=48, num_heads=3, num_classes=10)


def train(model, num_steps=2, size=32):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    for _ in range(num_steps):
        y = model(torch.randn(2, 3, size, size))
        y = y[0] if isinstance(y, tuple) else y
        (y * torch.randn_like(y)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def vit(drop_path_rate=0.3):
    return timm.create_model('vit_tiny_patch16_224', drop_path_rate=drop_path_rate, **VIT)


@pytest.fixture
def plain():
    return train(vit())


def x_NCHW():
    return torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize(
    'settings',
    [
        dict(stochastic_method='sample'),
        dict(stochastic_method='sample', skip_dropped=True),
        dict(stochastic_method='block'),
    ],
)
def test_timms_drop_paths_keep_their_rates_and_their_convention(plain, settings):
    model, x = copy.deepcopy(plain), x_NCHW()
    assert told(ts.apply_stochastic_depth, model, target_layer_name='DropPath', drop_rate=None, **settings) == []
    assert max(ts.drop_rates(model).values()) == pytest.approx(0.3)
    assert torch.equal(model(x), plain(x))
    if settings['stochastic_method'] == 'sample':  # the very draws of timm, and its factor
        torch.manual_seed(5)
        y = model.train()(x)
        torch.manual_seed(5)
        torch.testing.assert_close(y, plain.train()(x))


def test_composers_algorithm_follows_the_same_rule(plain):
    x = x_NCHW()
    logger = SimpleNamespace(log_metrics=lambda metrics: None, log_hyperparameters=lambda parameters: None)
    for settings, is_kept in ((dict(), True), (dict(scale_by_keep=True), True), (dict(scale_by_keep=False), False)):
        state = SimpleNamespace(model=copy.deepcopy(plain))
        algorithm = ts.StochasticDepth('sample', 'DropPath', None, **settings)
        assert algorithm.match('init', state)
        assert (told(algorithm.apply, 'init', state, logger) == []) == is_kept
        assert torch.equal(state.model(x), plain(x)) == is_kept
        assert eval(str(algorithm), {'StochasticDepth': ts.StochasticDepth}).settings == algorithm.settings


@pytest.mark.parametrize(
    'stands, given, expected',
    [
        ([DropPath(0.2)], None, True),
        ([DropPath(0.0)], None, True),
        ([DropPath(0.2, scale_by_keep=False)], None, False),
        ([nn.Identity(), DropPath(0.2, scale_by_keep=False)], None, False),
        ([TorchvisionDropPath(0.2, 'row')], None, True),
        ([nn.Identity()], None, True),  # timm's, at rate 0
        ([DropPath(0.2)], False, False),
        ([DropPath(0.2, scale_by_keep=False)], True, True),
        ([DropPath(0.2), DropPath(0.2, scale_by_keep=False)], True, True),
        ([DropPath(0.2), DropPath(0.2, scale_by_keep=False)], False, False),
    ],
)
@pytest.mark.filterwarnings('ignore:drop_rate is 0')
def test_the_convention_of_what_stands_there_is_taken_over_unless_it_is_given(stands, given, expected):
    model = nn.Sequential(*map(Block, stands))
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, scale_by_keep=given)
    assert {place.scale_by_keep for _, place in drop_paths(model)} == {expected}
    assert ts.stochastic_depth_args(model)['scale_by_keep'] is expected
    # its own, called again
    ts.apply_stochastic_depth(model, 'block', 'DropPath', None)
    assert ts.stochastic_depth_args(model)['scale_by_keep'] is expected
    # a rate that is given is the paper's
    ts.apply_stochastic_depth(model, 'block', 'DropPath', 0.3, 'uniform')
    assert ts.stochastic_depth_args(model)['scale_by_keep'] is False


def test_two_conventions_in_one_network_have_to_be_decided():
    model = nn.Sequential(Block(DropPath(0.2)), Block(DropPath(0.2, scale_by_keep=False)))
    with pytest.raises(ValueError, match='scale_by_keep must be given with drop_rate=None'):
        ts.apply_stochastic_depth(model, 'sample', 'DropPath', None)
    assert not ts.drop_rates(model)


@pytest.mark.parametrize('family', CLASSES)
def test_a_fresh_network_is_told_nothing_and_a_trained_one_is(family):
    name, kwargs, size = FAMILIES[family]
    model = timm.create_model(name, num_classes=5, **kwargs)
    settings = dict(stochastic_method='sample', target_layer_name='DropPath', drop_distribution='uniform')
    assert told(ts.apply_stochastic_depth, model, drop_rate=0.2, **settings) == []
    assert told(ts.apply_stochastic_depth, model, drop_rate=0.2, **settings, scale_by_keep=True) == []
    train(model, 2, size)
    assert told(ts.apply_stochastic_depth, model, drop_rate=0.2, **settings, scale_by_keep=True) == []
    (text,) = told(ts.apply_stochastic_depth, model, drop_rate=0.2, **settings)
    assert text.startswith('The network has been trained, and computes something else at inference from now on')


@pytest.mark.parametrize('name', ['resnet18', 'resnet50', 'convnext_tiny', 'efficientnet_b0', 'regnet_y_400mf'])
def test_torchvisions_networks_alike(name):
    model = torchvision.models.get_model(name, num_classes=4)
    if 'resnet' in name:
        layer = 'ResNetBasicBlock' if name == 'resnet18' else 'ResNetBottleneck'
        assert told(ts.apply_stochastic_depth, model, 'block', layer, 0.2) == []
        train(model)
        assert 'has been trained' in told(ts.apply_stochastic_depth, model, 'block', layer, 0.3)[0]
    assert shows_training(train(model))
    assert not shows_training(torchvision.models.get_model(name, num_classes=4))


def test_weights_that_are_nowhere_show_nothing():
    with torch.device('meta'):
        model = vit()
    assert told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.3) == []
    with FakeTensorMode():
        fake = nn.Sequential(Block(DropPath(0.1)), nn.BatchNorm1d(4))
        assert told(ts.apply_stochastic_depth, fake, 'sample', 'DropPath', 0.3, 'uniform') == []
    lazy = nn.Sequential(Block(DropPath(0.1)), nn.LazyBatchNorm1d(), nn.LazyLinear(3))
    assert told(ts.apply_stochastic_depth, lazy, 'sample', 'DropPath', 0.3, 'uniform') == []


def test_set_drop_rate_tells_of_trained_weights_but_not_in_the_course_of_training():
    model = timm.create_model('vit_tiny_patch16_224', **VIT)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.2)
    assert told(ts.set_drop_rate, model, 0.3) == []  # nothing was trained
    ts.set_drop_rate(model, 0.2)
    trained = train(model)
    for rate in (0.1, 0.3):  # epochs
        assert told(ts.set_drop_rate, trained, rate) == []
    ts.set_drop_rate(trained, 0.2)

    loaded = timm.create_model('vit_tiny_patch16_224', **VIT)
    ts.apply_stochastic_depth(loaded, 'sample', 'DropPath', 0.2)
    loaded.load_state_dict(trained.state_dict())
    x = x_NCHW()
    y = loaded.eval()(x)
    (text,) = told(ts.set_drop_rate, loaded, 0.4)
    assert 'has been trained' in text and 'keep_function=True' in text and 'after set_drop_rate(model, 0.2) has' in text
    assert not torch.equal(loaded(x), y)
    assert told(ts.set_drop_rate, loaded, 0.2) == []  # what the message says
    assert torch.equal(loaded(x), y)
    assert told(ts.set_drop_rate, loaded, 0.4, keep_function=True) == []
    torch.testing.assert_close(loaded(x), y, rtol=1e-4, atol=1e-5)

    masked = timm.create_model('vit_tiny_patch16_224', **VIT)
    ts.apply_stochastic_depth(masked, 'sample', 'DropPath', 0.2, scale_by_keep=True)
    masked.load_state_dict(dict(trained.state_dict()))
    assert told(ts.set_drop_rate, masked, 0.4) == []  # no other function


def test_what_the_warning_says_undoes_the_change_exactly(plain):
    model, x = copy.deepcopy(plain), x_NCHW()
    (text,) = told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.3)
    assert (
        'keep_function=True' in text and 'scale_by_keep=True' in text and 'after set_drop_rate(model, 0.) has' in text
    )
    assert (model(x) - plain(x)).abs().max() > 1e-3
    assert told(ts.set_drop_rate, model, 0.0) == []
    assert torch.equal(model(x), plain(x))
    assert told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.3, keep_function=True) == []
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    assert max(ts.drop_rates(model).values()) == 0.3


@pytest.mark.parametrize(
    'function, args',
    [
        (ts.apply_stochastic_depth, ('sample', 'DropPath', 0.5)),
        (ts.set_drop_rate, (0.1,)),
    ],
)
def test_a_second_call_that_keeps_the_changed_function_is_told(plain, function, args):
    model, x = copy.deepcopy(plain), x_NCHW()
    told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.3)
    changed = model(x)
    (text,) = told(function, model, *args, keep_function=True)
    assert text.startswith('What is kept is what the network computes now, and not what it computed when it was')
    assert 'set_drop_rate(model, 0.)' in text and 'loaded again' in text
    torch.testing.assert_close(model(x), changed, rtol=1e-4, atol=1e-5)  # as it says
    assert told(function, model, *args, keep_function=True) == []  # once


@pytest.mark.parametrize(
    'function, args',
    [(ts.apply_stochastic_depth, ('sample', 'DropPath', 0.3)), (ts.set_drop_rate, (0.3,))],
)
def test_a_second_call_that_scales_no_weights_can_still_be_undone_as_it_says(plain, function, args):
    model, x = copy.deepcopy(plain), x_NCHW()
    told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.3)
    (text,) = told(function, model, *args, keep_function=True)
    assert text.endswith('Call again with it after set_drop_rate(model, 0.) has undone that.')
    assert told(ts.set_drop_rate, model, 0.0) == []
    assert torch.equal(model(x), plain(x))
    assert told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.3, keep_function=True) == []
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


def test_a_warmup_that_starts_from_the_changed_function_is_told(plain):
    model = copy.deepcopy(plain)
    told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.3, drop_warmup=0.5)
    (text,) = told(ts.start_warmup, model)
    assert text.startswith('What is kept is what the network computes now')
    model = copy.deepcopy(plain)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.3, drop_warmup=0.5, keep_function=True)
    assert told(ts.start_warmup, model) == []


@pytest.mark.parametrize(
    'go_on',
    [
        lambda model: train(model, 1),
        lambda model: pickle.loads(pickle.dumps(train(model, 1))),
        lambda model: model.load_state_dict(copy.deepcopy(model).state_dict()),
        lambda model: ts.set_drop_rate(model, 0.0),
        lambda model: ts.apply_stochastic_depth(model, 'block', 'DropPath', 0.9, scale_by_keep=True),
    ],
    ids=['trained', 'trained elsewhere', 'loaded', 'undone', 'undone by scale_by_keep'],
)
def test_weights_that_are_right_for_the_network_are_not_spoken_of(plain, go_on):
    model = copy.deepcopy(plain)
    told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.3)
    other = go_on(model)
    model = other if isinstance(other, nn.Module) else model
    assert told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.5, keep_function=True) == []


def test_copies_know_what_their_weights_are_for(plain):
    model = copy.deepcopy(plain)
    told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.3)
    for other in (copy.deepcopy(model), ModelEmaV3(model).module, pickle.loads(pickle.dumps(model))):
        (text,) = told(ts.apply_stochastic_depth, other, 'sample', 'DropPath', 0.5, keep_function=True)
        assert text.startswith('What is kept is what the network computes now')


def test_former_rates_are_what_undoes_a_change_from_rates(plain):
    model, x = copy.deepcopy(plain), x_NCHW()
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.3, keep_function=True)
    y = model(x)
    (text,) = told(ts.apply_stochastic_depth, model, 'block', 'DropPath', 0.5)
    assert 'after a call with the rates and scale_by_keep of before has undone' in text
    assert told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.3) == []
    assert torch.equal(model(x), y)
    assert told(ts.apply_stochastic_depth, model, 'block', 'DropPath', 0.5, keep_function=True) == []
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
