"""Wrong values for the public functions: the error names the argument, the value and what is allowed."""

import pytest
from timm.models import create_model

import timm_stochdepth as ts
from timm_stochdepth.hub.folder import write_folder
from timm_stochdepth.hub.sources import load_model

MODEL = create_model('resnet18')
ZOO_MODEL = create_model('resnet50_sd_block', num_classes=2, layers=[1, 1, 1, 1])
LAYER = 'ResNetBasicBlock'
NO_FRACTION = [-0.1, 1.1, float('nan'), float('inf'), '0.5', None, True, [0.5], 1j]
NO_FLAG = [None, 0, 1, 'True', []]
NO_MODEL = [None, 'resnet18', 18, {}, type(MODEL)]


def apply(model=MODEL, stochastic_method='block', target_layer_name=LAYER, drop_rate=0.2, **settings):
    ts.apply_stochastic_depth(model, stochastic_method, target_layer_name, drop_rate, **settings)


def algorithm(stochastic_method='block', target_layer_name=LAYER, **settings):
    ts.StochasticDepth(stochastic_method, target_layer_name, **settings)


def push(model=ZOO_MODEL, repo_id='user/net', **settings):
    ts.push_to_hub(model, repo_id, dry_run=True, **settings)


def write(folder):
    write_folder(ZOO_MODEL, folder, 'user/net')


NO_PATH = [None, 3, ['x'], b'x']
CALLS = [
    *((call, 'model', v) for call in (push, ts.fold_stochastic_depth, ts.start_warmup) for v in NO_MODEL),
    *((push, 'repo_id', v) for v in [None, 3, '', 'a/b/c', '../x', 'user/x.git', 'us er/x', 'user/-x']),
    *((push, 'label_names', v) for v in ['abc', [1, 2], {'a': 1}, 3]),
    *((push, 'plain', v) for v in NO_FLAG),
    *((push, 'out', v) for v in [3, ['x'], b'x', '', 's3://bucket/net']),
    *((write, 'folder', v) for v in [*NO_PATH, '', 'file:///net']),
    *((load_model, 'source', v) for v in NO_PATH),
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
            ('drop_rate', [v for v in NO_FRACTION if v is not None]),
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
