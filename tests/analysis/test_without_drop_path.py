"""timm's networks without a drop path: what is dropped is what timm's DropPath would drop at the end of each branch."""

import pytest
import timm
import torch
from residual_networks import NETWORKS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import timm_stochdepth as ts
from timm_stochdepth.analysis.survey import format_survey, survey_families
from timm_stochdepth.zoo.without_drop_paths import RESIDUAL_MODULES

# the drop path that timm's ResNet blocks would have, HRNet's among them
ENDS = {**ts.BRANCH_ENDS, timm.models.resnet.BasicBlock: 'bn2', timm.models.resnet.Bottleneck: 'bn3'}
QUICK = ['hrnet', 'senet', 'shvit']
MODULES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.families, id=name) for name in NETWORKS]


def create(module):
    """A network, of which every parameter matters, and no sample depends on others."""
    torch.manual_seed(0)
    model = timm.create_model(NETWORKS[module][0], num_classes=5, drop_rate=0.0).double().train()
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            nn.init.uniform_(part.weight, 0.5, 1.0)
            part.eval()
    return model


def with_timms_drop_paths(model, rates):
    """Call timm's DropPath on what the last child of each branch returns."""
    for name, rate in rates.items():
        block = model.get_submodule(name)
        drop_path = timm.layers.DropPath(rate)
        end = block.get_submodule(ENDS[type(block)])
        end.register_forward_hook(lambda module, args, y, drop_path=drop_path: drop_path(y))
    return model


def step(model, x):
    torch.manual_seed(1)
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return y.detach(), [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


@pytest.mark.parametrize('module', MODULES)
def test_a_step_is_that_of_timms_drop_path(module):
    model = create(module)
    size = NETWORKS[module][1]
    x = torch.randn(4, 3, size, size, dtype=torch.float64)
    args = dict(target_layer_name='ResidualBlock', drop_distribution='uniform', scale_by_keep=True)
    ts.apply_stochastic_depth(model, 'sample', drop_rate=0.5, **args)
    reference = with_timms_drop_paths(create(module), ts.drop_rates(model))
    y, grads = step(reference, x)
    largest = max(g.abs().max() for g in grads)
    for settings in ({}, dict(skip_dropped=True)):
        ts.apply_stochastic_depth(model, 'sample', drop_rate=0.5, **args, **settings)
        found, grads_found = step(model, x)
        torch.testing.assert_close(found, y)
        for grad, expected in zip(grads_found, grads, strict=True):
            assert (grad - expected).abs().max() <= 1e-9 * largest


@pytest.mark.parametrize('module', MODULES)
def test_a_network_that_drops_all_computes_no_branch(module):
    model = create(module)
    size = NETWORKS[module][1]
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    ts.apply_stochastic_depth(model, 'block', 'ResidualBlock', 1.0, 'uniform', scale_by_keep=True)
    reference = with_timms_drop_paths(create(module), ts.drop_rates(model))
    ran = []
    for name in ts.drop_rates(model):
        end = ENDS[type(reference.get_submodule(name))]
        model.get_submodule(f'{name}.{end}').register_forward_hook(lambda *args: ran.append(True))
    y, grads = step(reference, x)
    found, grads_found = step(model, x)
    assert not ran
    torch.testing.assert_close(found, y)
    largest = max(g.abs().max() for g in grads)
    for grad, expected in zip(grads_found, grads, strict=True):
        assert (grad - expected).abs().max() <= 1e-9 * largest


def test_networks_without_a_drop_path_are_listed_by_their_module():
    text = format_survey(survey_families(['lcnetv2_small', 'test_vit', 'shvit_s1', 'vgg11', 'shvit_s2']))
    assert 'so can 1 of 1 networks in every block' in text
    assert '4 networks of timm' in text and '3 of them have residual blocks' in text
    for line in (
        '| lcnetv2 | 1 | lcnetv2.RepDepthwiseSeparable |',
        '| shvit | 2 | shvit.Residual |',
        '| vgg | 1 | none: it has no shortcuts |',
    ):
        assert line in text.splitlines()


@pytest.mark.families
@pytest.mark.parametrize('module', RESIDUAL_MODULES)
def test_every_branch_of_networks_without_a_drop_path_is_left_out(module):
    for name in timm.list_models(module=module):
        with torch.device('meta'):
            model = timm.create_model(name)
        keys = list(model.state_dict())
        ts.apply_stochastic_depth(model, 'block', 'ResidualBlock', 0.2, RESIDUAL_MODULES[module])
        rates = list(ts.drop_rates(model).values())
        assert rates == sorted(rates) and rates[-1] == 0.2
        assert list(model.state_dict()) == keys
