"""The tables of the names, compared with all of timm's networks."""

import pytest
import timm
import torch

from timm_stochdepth.folding.rescale import own_rescaling
from timm_stochdepth.inspection import drop_paths, inference_factors
from timm_stochdepth.layers.targets import find_targets
from timm_stochdepth.zoo.exceptions import can_scale_at_inference, methods_of
from timm_stochdepth.zoo.names import timm_modules
from timm_stochdepth.zoo.rates import default_rate

NAMES = {name: module for name, module in timm_modules().items() if methods_of(name, module)}
# one of each row of the tables, and its neighbours
SOME = [
    'cs3darknet_m',
    'cs3sedarknet_xdw',
    'cspdarknet53',
    'cspresnet50',
    'dla46_c',
    'dm_nfnet_f0',
    'efficientnetv2_rw_m',
    'efficientnetv2_rw_t',
    'efficientvit_b0',
    'efficientvit_m0',
    'fasternet_s',
    'hgnetv2_b3',
    'hgnetv2_b4',
    'hrnet_w18_small',
    'legacy_seresnet18',
    'legacy_seresnet50',
    'legacy_xception',
    'levit_128s',
    'levit_conv_128s',
    'lowformer_e1',
    'lowformer_e3',
    'nf_resnet26',
    'nest_tiny',
    'repvit_m1',
    'resnetv2_50',
    'resnetv2_50x1_bit',
    'swin_s3_tiny_224',
    'tf_efficientnetv2_b0',
    'tf_efficientnetv2_b1',
    'tiny_vit_5m_224',
]


def can_be_scaled(model):
    """Whether each branch of a network ends in weights for a rate to go into, that is 1 for all in a plain one."""
    try:
        own_rescaling(model, dict.fromkeys(inference_factors(model), 0.9), {})
        return True
    except ValueError:
        return False


def timms_default_rate(name, model):
    """The rate that timm's own entrypoint is given or gives, whatever the largest share of it that a drop path has."""
    rates = [rate for target in find_targets(timm.create_model(name), 'DropPath') for rate in target.rates()]
    return max(rates, default=0.0) / max(drop_path.depth_scale for _, drop_path in drop_paths(model))


def assert_tables_hold_for(name):
    with torch.device('meta'):
        model = timm.create_model(f'{name}_sd_sample')
        assert can_be_scaled(model) == can_scale_at_inference(name, NAMES[name]), name
        rate, source = default_rate(name, 'sample')
        if source == "timm's own default" or not source.startswith('http'):
            timms = timms_default_rate(name, model)
            assert timms == pytest.approx(rate if source == "timm's own default" else 0.0, abs=1e-6), name
    settings = next(drop_path.settings for _, drop_path in drop_paths(model))
    assert settings.drop_rate == rate and (settings.scale_by_keep is False) == (NAMES[name] == 'timm.models.resnet')
    return settings.skip_dropped


@pytest.mark.parametrize('name', SOME)
def test_tables_hold_for_some(name):
    assert_tables_hold_for(name)


@pytest.mark.families
def test_tables_hold_for_all():
    skipped = [name for name in NAMES if assert_tables_hold_for(name)]
    assert len(NAMES) >= 1246 + 83 and len(skipped) >= 603
