import pytest

import timm_stochdepth as ts


@pytest.mark.parametrize(
    'changes, error',
    [
        (dict(stochastic_method='x'), ValueError),
        (dict(target_layer_name='x'), ValueError),
        (dict(drop_rate=2), ValueError),
        (dict(drop_rate='a'), TypeError),
        (dict(drop_distribution='x'), ValueError),
        (dict(drop_warmup=-1), ValueError),
        (dict(drop_warmup=None), TypeError),
        (dict(use_same_gpu_seed='x'), TypeError),
    ],
)
def test_bad_arguments_are_named_at_once(changes, error):
    arguments = dict(stochastic_method='block', target_layer_name='ResNetBottleneck')
    with pytest.raises(error, match=next(iter(changes))):
        ts.StochasticDepth(**{**arguments, **changes})


@pytest.mark.parametrize('target_layer_name', ['ResNetBottleneck', 'DropPath', 'vision_transformer.Block'])
def test_the_order_of_composers_own_is_told(target_layer_name):
    with pytest.raises(ValueError, match=rf"swapped.* must be StochasticDepth\('sample', '{target_layer_name}', ...\)"):
        ts.StochasticDepth(target_layer_name, 'sample')


def test_print_shows_what_makes_it():
    made = ts.StochasticDepth('sample', 'DropPath', None, drop_schedule=[(0, 1), (0.2, 0)], skip_dropped=True)
    again = eval(f'ts.{made}')
    assert (again.settings, again.target_layer_name) == (made.settings, 'DropPath')
