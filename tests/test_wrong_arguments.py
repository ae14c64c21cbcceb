"""Wrong values for the public functions: the error names the argument, the value and what is allowed."""

import pytest
import torch
import torchvision
from timm.models import create_model

import timm_stochdepth as ts
from timm_stochdepth.hub.folder import write_folder
from timm_stochdepth.hub.load import load_model
from timm_stochdepth.inspection import drop_paths

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


def create_sd(drop_path_rate):
    create_model('resnet50_sd_sample', drop_path_rate=drop_path_rate)


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
    *((load_model, 'network', v) for v in NO_PATH),
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
    *((call, 'scale_by_keep', v) for call in (apply, algorithm) for v in NO_FLAG if v is not None),
    *((apply, 'skip_dropped', v) for v in NO_FLAG),
    *((create_sd, 'drop_path_rate', v) for v in NO_FRACTION if v is not None),
]


@pytest.mark.parametrize('call, name, value', [pytest.param(*c, id=f'{c[0].__name__} {c[1]} {c[2]!r}') for c in CALLS])
def test_a_wrong_value_is_named(call, name, value):
    before = [type(module) for module in MODEL.modules()]
    with pytest.raises((TypeError, ValueError)) as error:
        call(**{name: value})
    message = str(error.value)
    assert message.startswith(f'{name} must ') and repr(value) in message, message
    assert [type(module) for module in MODEL.modules()] == before


@pytest.mark.parametrize('call', [ts.set_drop_rate, ts.set_training_progress])
def test_swapped_arguments_show_no_page_of_a_network(call):
    with pytest.raises(TypeError) as error:
        call(0.1, MODEL)
    assert 'an object of type ResNet' in str(error.value) and len(str(error.value)) < 100


def test_a_state_dict_is_no_model_and_not_shown():
    with pytest.raises(TypeError, match='^model must be a torch.nn.Module, but got an object of type OrderedDict.$'):
        ts.drop_rates(MODEL.state_dict())


@pytest.mark.parametrize('method, other', [('sample', 'block'), ('block', 'sample')])
def test_the_method_of_a_registered_name_is_in_its_name(method, other):
    with pytest.raises(ValueError, match=f"^stochastic_method must be .*, but got '{other}'.*resnet50_sd_{other}"):
        create_model(f'resnet50_sd_{method}', stochastic_method=other)
    with pytest.raises(ValueError, match="but got 'batch'"):
        create_model(f'resnet50_sd_{method}', stochastic_method='batch')
    model = create_model(f'resnet50_sd_{method}', layers=[1, 1, 1, 1], stochastic_method=method)
    assert {place.settings.stochastic_method for _, place in drop_paths(model)} == {method}


VIT = create_model('test_vit')
TV = torchvision.models.resnet18()
OF_RESNET = ['DropPath', LAYER, 'ResidualBlock', 'resnet.BasicBlock']


@pytest.mark.parametrize(
    'model, name, closest, fitting',
    [
        (VIT, 'droppath', ['DropPath'], ['DropPath', 'vision_transformer.Block']),
        (VIT, 'DROP_PATH', ['DropPath'], ['DropPath', 'vision_transformer.Block']),
        (VIT, 'Block', ['vision_transformer.Block'], ['DropPath', 'vision_transformer.Block']),
        (MODEL, 'ResNetBasicBlok', ['ResNetBasicBlock', 'resnet.BasicBlock'], OF_RESNET),
        (MODEL, 'basicblock', ['resnet.BasicBlock'], OF_RESNET),
        (TV, 'ResNetBottlneck', ['ResNetBottleneck', 'ResNetBasicBlock'], [LAYER, 'ResidualBlock']),
        (MODEL, 'xyz', [], OF_RESNET),
    ],
)
def test_a_wrong_name_is_answered_with_the_closest_and_those_that_fit(model, name, closest, fitting):
    with pytest.raises(ValueError) as error:
        ts.apply_stochastic_depth(model, 'sample', name)
    said = str(error.value).partition(f'but got {name!r}')[2]
    meant, _, fits = said.partition(' The names that fit this model are ')
    assert meant == (f': did you mean {" or ".join(map(repr, closest))}?' if closest else '.')
    assert fits == ', '.join(map(repr, fitting)) + '.'
    with pytest.raises(ValueError, match=f"target_layer_name must be .*'ResNetBottleneck'.* but got '{name}'"):
        ts.StochasticDepth('sample', name)  # of no model yet


@pytest.mark.parametrize('architecture', ['densenet121', 'vgg11'])
@pytest.mark.parametrize('name', ['DropPath', 'ResNetBottleneck', 'densenet.DenseLayer', 'vgg.VGG'])
def test_a_network_without_drop_paths_is_told_the_way_for_blocks_of_ones_own(architecture, name):
    with torch.device('meta'):
        model = create_model(architecture)
    with pytest.warns(UserWarning) as caught:
        ts.apply_stochastic_depth(model, 'sample', name)
    (text,) = [str(w.message) for w in caught]
    assert text.startswith(f'No {name} found in {type(model).__name__}: nothing is dropped, none of its blocks has a')
    assert 'BRANCH_ENDS' in text and 'docs/any_model.md' in text
    with pytest.raises(ValueError, match='BRANCH_ENDS'):
        ts.apply_stochastic_depth(model, 'sample', 'Layer')
