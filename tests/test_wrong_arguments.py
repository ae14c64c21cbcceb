"""Wrong values for the public functions: the error names the argument, the value and what is allowed."""

import pytest
from timm.models import create_model

import timm_stochdepth as ts

MODEL = create_model('resnet18')
LAYER = 'ResNetBasicBlock'
NO_FRACTION = [-0.1, 1.1, float('nan'), float('inf'), '0.5', None, True, [0.5], 1j]
NO_FLAG = [None, 0, 1, 'True', []]
NO_MODEL = [None, 'resnet18', 18, {}, type(MODEL)]


def apply(model=MODEL, stochastic_method='block', target_layer_name=LAYER, drop_rate=0.2, **settings):
    ts.apply_stochastic_depth(model, stochastic_method, target_layer_name, drop_rate, **settings)


def algorithm(stochastic_method='block', target_layer_name=LAYER, **settings):
    ts.StochasticDepth(stochastic_method, target_layer_name, **settings)


CALLS = [
    *((apply, 'model', v) for v in NO_MODEL),
    *((ts.drop_rates, 'model', v) for v in NO_MODEL),
    *((ts.stochastic_depth_args, 'model', v) for v in NO_MODEL),
    *((lambda model: ts.set_drop_rate(model, 0.1), 'model', v) for v in NO_MODEL),
    *((lambda model: ts.set_training_progress(model, 0.1), 'model', v) for v in NO_MODEL),
    *((lambda drop_rate: ts.set_drop_rate(MODEL, drop_rate), 'drop_rate', v) for v in NO_FRACTION),
    *((lambda fraction: ts.set_training_progress(MODEL, fraction), 'fraction', v) for v in NO_FRACTION),
    *(
        (call, name, value)
        for call in (apply, algorithm)
        for name, values in (
            ('stochastic_method', ['', 'blocks', None, 1, ['block']]),
            ('target_layer_name', ['', 'ResNet', None, 1, ['ResNetBasicBlock']]),
            ('drop_rate', NO_FRACTION),
            ('drop_distribution', ['', 'Linear', None, 0.5]),
            ('drop_warmup', NO_FRACTION),
            ('use_same_gpu_seed', NO_FLAG),
        )
        for value in values
    ),
    *((apply, name, value) for name in ('scale_by_keep', 'skip_dropped') for value in NO_FLAG),
]


@pytest.mark.parametrize('call, name, value', [pytest.param(*c, id=f'{c[0].__name__} {c[1]} {c[2]!r}') for c in CALLS])
def test_a_wrong_value_is_named(call, name, value):
    before = [type(module) for module in MODEL.modules()]
    with pytest.raises((TypeError, ValueError)) as error:
        call(**{name: value})
    message = str(error.value)
    assert message.startswith(f'{name} must ') and repr(value) in message, message
    assert [type(module) for module in MODEL.modules()] == before
