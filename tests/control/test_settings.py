"""`Settings` in one object: what single arguments give, and what is said of both together."""

import copy
import inspect
from dataclasses import fields

import pytest
import timm
from networks import images

import timm_stochdepth as ts
from timm_stochdepth.inspection import drop_paths

GIVEN = dict(
    stochastic_method='sample',
    drop_rate=0.3,
    drop_distribution='uniform',
    use_same_gpu_seed=True,
    drop_warmup=0.25,
    scale_by_keep=True,
    skip_dropped=True,
    round_up=True,
)


@pytest.fixture(scope='module')
def plain():
    return timm.create_model('test_vit', num_classes=4)


def test_an_object_gives_what_single_arguments_give(plain):
    model, other = copy.deepcopy(plain), copy.deepcopy(plain)
    ts.apply_stochastic_depth(model, settings=ts.Settings(**GIVEN), target_layer_name='DropPath')
    ts.apply_stochastic_depth(other, target_layer_name='DropPath', **GIVEN)
    assert repr(model) == repr(other) and ts.drop_rates(model) == ts.drop_rates(other)
    assert {d.settings for _, d in drop_paths(model)} == {ts.Settings(**GIVEN)}


def test_the_public_signatures_have_all_settings():
    names = {field.name for field in fields(ts.Settings)}
    for function in (ts.apply_stochastic_depth, ts.StochasticDepth):
        assert names <= inspect.signature(function).parameters.keys()
    first = ['model', 'stochastic_method', 'target_layer_name', 'drop_rate', 'drop_distribution', 'use_same_gpu_seed']
    assert list(inspect.signature(ts.apply_stochastic_depth).parameters)[:6] == first


@pytest.mark.parametrize(
    'args, single, named',
    [
        (('block',), {}, 'stochastic_method'),
        ((), dict(stochastic_method='block'), 'stochastic_method'),
        ((), dict(drop_rate=0.2), 'drop_rate'),  # the default, in words
        ((), dict(drop_rate=None, skip_dropped=False), 'drop_rate, skip_dropped'),
    ],
)
def test_both_together_are_refused_by_name(args, single, named, plain):
    model = copy.deepcopy(plain)
    with pytest.raises(ValueError, match=rf'^settings must not be given with single ones, but {named} were given, too'):
        ts.apply_stochastic_depth(model, *args, settings=ts.Settings('sample'), target_layer_name='DropPath', **single)
    assert not ts.drop_rates(model)


def test_what_is_no_settings_or_lacks_the_layer_is_refused(plain):
    with pytest.raises(TypeError, match='^settings must be a timm_stochdepth.Settings, but got .*dict'):
        ts.apply_stochastic_depth(plain, settings=dict(GIVEN), target_layer_name='DropPath')
    with pytest.raises(ValueError, match='^target_layer_name must be .*but got None'):
        ts.apply_stochastic_depth(plain, settings=ts.Settings('sample'))
    with pytest.raises(ValueError, match='^stochastic_method must be one of .*but got None'):
        ts.apply_stochastic_depth(plain, target_layer_name='DropPath')
    assert not ts.drop_rates(plain)


def test_a_warning_points_at_the_line_that_called(plain):
    with pytest.warns(UserWarning, match='drop_rate is 0') as record:
        ts.apply_stochastic_depth(copy.deepcopy(plain), 'sample', 'DropPath', 0.0)
    assert record[0].filename == __file__
    with pytest.warns(UserWarning, match='set_drop_rate has no effect') as record:
        ts.set_drop_rate(plain, 0.1)
    assert record[0].filename == __file__


def test_keep_function_goes_with_an_object(plain):
    model = copy.deepcopy(plain).eval()
    x = images(2)
    y = model(x)
    ts.apply_stochastic_depth(
        model, settings=ts.Settings('block', 0.4), target_layer_name='DropPath', keep_function=True
    )
    assert (model(x) - y).abs().max() < 1e-4 * y.abs().max()
