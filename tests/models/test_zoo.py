"""The registered models are timm's networks at its rates: one name of each of its modules, and what is asked of any."""

import json

import pytest
import timm
import torch
from timm.layers import DropPath
from zoo_networks import ONE_OF_EACH_MODULE

import timm_stochdepth as ts
from timm_stochdepth.hub.load import load_structure
from timm_stochdepth.inspection import drop_paths
from timm_stochdepth.zoo.exceptions import methods_of
from timm_stochdepth.zoo.names import timm_modules
from timm_stochdepth.zoo.without_drop_paths import RESIDUAL_MODULES

QUICK = ['convnext', 'efficientnet', 'resnet', 'rexnet', 'vision_transformer']
NAMES = [
    *(
        pytest.param(name, marks=[] if module in QUICK else pytest.mark.families)
        for module, name in ONE_OF_EACH_MODULE.items()
    ),
    'ecaresnet50d_pruned',  # whose layers timm cuts once they are made
]


def shapes(model):
    return [(key, value.shape) for key, value in model.state_dict().items()]


def timms_rates(model):
    """The rates of all drop paths that timm has made, where they are not 0."""
    return {name: m.drop_prob for name, m in model.named_modules() if isinstance(m, DropPath) and m.drop_prob}


@pytest.fixture
def on_meta():
    with torch.device('meta'):
        yield


def refuse_to_run(module, *args):
    raise AssertionError(f'{module} drops at a rate of its own')


@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('plain_name', NAMES)
def test_a_model_is_timms_network_at_its_rates(plain_name, method, on_meta):
    name = f'{plain_name}_sd_{method}'
    if method not in methods_of(plain_name, timm_modules()[plain_name]):
        assert not timm.is_model(name)
        return
    plain = timm.create_model(plain_name, num_classes=5, drop_path_rate=0.3)
    model = timm.create_model(name, num_classes=5, drop_path_rate=0.3)
    assert shapes(model) == shapes(plain)
    ours = {name: d.drop_prob for name, d in drop_paths(model) if d.drop_prob}
    assert {**timms_rates(model), **ours} == pytest.approx(timms_rates(plain), rel=1e-6)
    assert ts.stochastic_depth_args(model)['drop_path_rate'] == 0.3
    assert type(model) is type(plain) and model.pretrained_cfg['architecture'] == name

    for left in (m for m in model.modules() if isinstance(m, DropPath)):
        left.register_forward_pre_hook(refuse_to_run)
    x = torch.empty(3, *model.pretrained_cfg['input_size'])
    assert first(model.train()(x)).shape == first(plain(x)).shape
    folded = ts.fold_stochastic_depth(model)
    assert shapes(folded) == shapes(plain) and folded.pretrained_cfg['architecture'] == plain_name


def first(y):
    return y[0] if isinstance(y, tuple) else y


@pytest.mark.families
def test_every_module_of_timm_with_a_drop_path_is_tested():
    modules = timm_modules()
    found = {modules[n].rpartition('.')[2] for n in modules if methods_of(n, modules[n])}
    assert found - set(RESIDUAL_MODULES) == set(ONE_OF_EACH_MODULE)
    assert {modules[name].rpartition('.')[2]: name for name in ONE_OF_EACH_MODULE.values()} == ONE_OF_EACH_MODULE


def settings_of(model):
    return next(drop_path.settings for _, drop_path in drop_paths(model))


@pytest.mark.parametrize(
    'name, scale_by_keep, skip_dropped',
    [
        ('test_vit_sd_sample', True, True),  # no norm looks at the batch
        ('test_vit_sd_block', True, False),
        ('mobilenetv3_small_050_sd_sample', True, False),
        ('resnet10t_sd_sample', False, False),  # the paper's
        ('resnet10t_sd_block', False, False),
        ('edgenext_xx_small_sd_sample', True, False),  # masked, whatever its norms
    ],
)
def test_conventions_are_those_of_the_family_and_are_written_down(name, scale_by_keep, skip_dropped, tmp_path):
    model = timm.create_model(name, num_classes=3)
    settings = settings_of(model)
    assert (settings.scale_by_keep, settings.skip_dropped) == (scale_by_keep, skip_dropped)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    args = json.loads((tmp_path / 'config.json').read_text())['model_args']
    assert (args['scale_by_keep'], args['skip_dropped']) == (scale_by_keep, skip_dropped)
    assert args['drop_path_rate'] == 0.1 and args['drop_distribution'] == 'linear'


@pytest.mark.parametrize('norm_layer, skip_dropped', [('evonormb0', False), ('evonormb2', False), ('evonorms0', True)])
def test_nothing_is_skipped_where_a_norm_that_is_asked_for_looks_at_the_batch(norm_layer, skip_dropped, on_meta):
    model = timm.create_model('resnetv2_18_sd_sample', norm_layer=norm_layer)
    assert settings_of(model).skip_dropped == skip_dropped


@pytest.mark.parametrize(
    'name, rate',
    [
        ('convnext_small_sd_sample', 0.4),
        ('swin_base_patch4_window7_224_sd_block', 0.5),
        ('deit3_large_patch16_224_sd_sample', 0.45),
        ('nest_tiny_sd_sample', 0.5),
        ('resnet101_sd_block', 0.4),
        ('resnet101_sd_sample', 0.1),
        ('resnet18_sd_block', 0.1),
    ],
)
def test_default_rates(name, rate, on_meta):
    assert ts.stochastic_depth_args(timm.create_model(name))['drop_path_rate'] == rate


def test_the_rate_that_is_asked_for_is_the_one_recorded_though_no_block_reaches_it(on_meta):
    model = timm.create_model('efficientnet_b0_sd_sample', drop_path_rate=0.4)
    assert ts.stochastic_depth_args(model)['drop_path_rate'] == 0.4
    rates = ts.drop_rates(model)
    assert max(rates.values()) == pytest.approx(0.4 * 14 / 16)  # the last of 16 blocks has no shortcut
    uniform = timm.create_model('efficientnet_b0_sd_sample', drop_path_rate=0.4, drop_distribution='uniform')
    assert ts.drop_rates(uniform) == dict.fromkeys(rates, 0.4)


@pytest.mark.parametrize('name', ['test_vit_sd_sample', 'efficientnet_b0_sd_block', 'cait_xxs24_224_sd_sample'])
@pytest.mark.filterwarnings('ignore:drop_rate is 0')
def test_a_network_of_rate_0_is_given_one_later(name, on_meta):
    model = timm.create_model(name, drop_path_rate=0.0)
    assert set(ts.drop_rates(model).values()) == {0.0}
    ts.set_drop_rate(model, 0.3)
    assert ts.drop_rates(model) == ts.drop_rates(timm.create_model(name, drop_path_rate=0.3))


@pytest.mark.parametrize(
    'name, settings, message',
    [
        ('rexnet_100_sd_sample', dict(skip_dropped=True), 'skip_dropped must be False for rexnet_100_sd_sample'),
        ('rexnet_100_sd_sample', dict(scale_by_keep=False), 'scale_by_keep must be True for rexnet_100_sd_sample'),
        ('convit_tiny_sd_block', dict(scale_by_keep=False), 'scale_by_keep must be True for convit_tiny_sd_block'),
        ('convit_tiny_sd_block', dict(drop_path_rate=1.5), 'drop_path_rate must be in'),
        ('convit_tiny_sd_block', dict(stochastic_method='sample'), 'The names are convit_tiny_sd_sample, convit_'),
        ('rexnet_100_sd_sample', dict(stochastic_method='block'), 'The names are rexnet_100_sd_sample.$'),
    ],
)
def test_what_a_network_cannot_have_is_refused_before_it_is_built(name, settings, message, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, '__init__', refuse_to_run)
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **settings)


@pytest.mark.parametrize(
    'name, reason',
    [
        ('vgg16_sd_sample', 'vgg16 has no branches that could be dropped: it has no shortcuts'),
        ('rexnet_100_sd_block', 'rexnet_100_sd_sample masks them'),
    ],
)
def test_names_that_there_are_not_are_refused_with_the_reason(name, reason):
    assert not timm.is_model(name)
    with pytest.raises(ValueError, match=reason):
        load_structure(name)


FEATURES = ['test_convnext_sd_block', 'mobilenetv3_small_050_sd_sample', 'test_vit_sd_sample', 'ghostnet_050_sd_block']


@pytest.mark.parametrize('name', FEATURES)
@pytest.mark.parametrize('feature_cls', [None, 'fx', 'getter'])
def test_features_drop_at_the_rates_of_the_network(name, feature_cls):
    kwargs = dict(drop_path_rate=0.4, features_only=True, out_indices=(0, 2))
    if feature_cls:
        kwargs.update(feature_cls=feature_cls)
    features = timm.create_model(name, **kwargs)
    whole = {
        name.replace('.', '_'): rate
        for name, rate in ts.drop_rates(timm.create_model(name, drop_path_rate=0.4)).items()
    }
    rates = ts.drop_rates(features)
    assert rates
    for path, rate in rates.items():
        (expected,) = [r for name, r in whole.items() if path.replace('.', '_').endswith(name)]
        assert rate == expected
    del kwargs['drop_path_rate']
    plain = timm.create_model(name.partition('_sd_')[0], **kwargs).eval()
    plain.load_state_dict(features.state_dict())
    x = torch.randn(2, 3, *([160, 160] if 'vit' in name else [64, 64]))
    for y, y_plain in zip(features.eval()(x), plain(x)):
        torch.testing.assert_close(y, y_plain)


@pytest.mark.parametrize('name, size', [('legacy_xception', 64), ('mnasnet_small', 32)])
@pytest.mark.parametrize('method, settings', [('block', {}), ('sample', dict(skip_dropped=True))])
def test_features_within_a_branch_are_there_for_all_samples(name, size, method, settings):
    kwargs = dict(features_only=True, drop_path_rate=1.0, drop_distribution='uniform')
    if name == 'mnasnet_small':
        kwargs.update(feature_location='expansion')
    masked = timm.create_model(f'{name}_sd_sample', skip_dropped=False, **kwargs).train()
    model = timm.create_model(f'{name}_sd_{method}', **settings, **kwargs).train()
    model.load_state_dict(masked.state_dict())
    x = torch.randn(3, 3, size, size)
    expected = masked(x)
    assert [y.shape[0] for y in expected] == [3] * 5
    torch.testing.assert_close(model(x), expected)
