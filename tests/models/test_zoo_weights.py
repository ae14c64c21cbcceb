"""Weights of timm's plain networks in the registered models of fourteen families, and models on their way to others."""

import pytest
import timm
import torch
from family_networks import FAMILIES, FIRST
from networks import assert_same_output
from training_steps import assert_same_training_step, output, randomize, train_without_batch_statistics

import timm_stochdepth as ts
from timm_stochdepth.hub.folder import write_folder
from timm_stochdepth.inspection import drop_paths
from timm_stochdepth.zoo.exceptions import can_scale_at_inference
from timm_stochdepth.zoo.names import timm_modules

QUICK = ['convnext.ConvNeXtBlock', 'regnet.Bottleneck', 'vision_transformer.Block']
FOURTEEN = [pytest.param(family, marks=[] if family in QUICK else pytest.mark.long) for family in FIRST]
MODULES = timm_modules()


def create(family, method='', **settings):
    name, kwargs, _ = FAMILIES[family]
    return timm.create_model(f'{name}_sd_{method}' if method else name, num_classes=5, **kwargs, **settings)


def conventions(family):
    name = FAMILIES[family][0]
    return (True, False) if can_scale_at_inference(name, MODULES[name]) else (True,)


def image(family):
    size = FAMILIES[family][2]
    return torch.randn(2, 3, size, size, dtype=torch.float64)


@torch.no_grad()
def assert_same_function(model, reference, family):
    """In double precision, so that what is left is the rounding of the weights, which are in single precision."""
    x = image(family)
    assert_same_output(output(model.double().eval(), x), output(reference.double().eval(), x))


@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('family', FOURTEEN)
def test_plain_weights_give_the_plain_logits(family, method, tmp_path):
    plain = randomize(create(family))
    path = tmp_path / 'plain.pth'
    torch.save(plain.state_dict(), path)
    for scale_by_keep in conventions(family):
        model = create(
            family,
            method,
            drop_path_rate=0.6,
            scale_by_keep=scale_by_keep,
            pretrained=True,
            pretrained_cfg_overlay=dict(file=str(path), num_classes=5),
        )
        assert model.pretrained_cfg['file'] == str(path) and 'state_dict' not in model.pretrained_cfg
        assert max(ts.drop_rates(model).values()) > 0.3
        assert_same_function(model, plain, family)


@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('family', FOURTEEN)
def test_a_model_comes_back_from_a_folder_of_the_hub(family, method, tmp_path):
    for scale_by_keep in conventions(family):
        model = randomize(create(family, method, drop_path_rate=0.6, scale_by_keep=scale_by_keep, drop_warmup=0.1))
        folders = tmp_path / f'pushed_{scale_by_keep}', tmp_path / f'saved_{scale_by_keep}'
        write_folder(model, folders[0], 'user/net')
        timm.models.save_for_hf(model, folders[1], safe_serialization=True)
        for folder in folders:
            loaded = timm.create_model(f'local-dir:{folder}', pretrained=True)
            assert ts.stochastic_depth_args(loaded) == ts.stochastic_depth_args(model)
            assert ts.drop_rates(loaded) == ts.drop_rates(model)
            assert_same_function(loaded, model, family)
            other = timm.create_model(f'local-dir:{folder}', pretrained=True, drop_path_rate=0.2)
            assert ts.stochastic_depth_args(other)['drop_path_rate'] == 0.2
            assert_same_function(other, model, family)
            model.float()


@pytest.mark.parametrize('family', FOURTEEN)
def test_a_training_step_is_that_of_timms_drop_path(family):
    """In single precision, in which most families of timm compute their rates."""
    torch.manual_seed(0)
    plain = randomize(create(family, drop_path_rate=0.5))
    for settings in ({}, dict(skip_dropped=True)):
        model = create(family, 'sample', drop_path_rate=0.5, scale_by_keep=True, **settings)
        model.load_state_dict(plain.state_dict())
        assert_same_training_step(
            family, train_without_batch_statistics(plain), train_without_batch_statistics(model), seed=1
        )
    assert any(d.skip_dropped for _, d in drop_paths(model))
