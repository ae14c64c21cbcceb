import copy
from functools import partial

import pytest
import timm
import torch
import torchvision
from networks import LAYERS, ZOO_CASES, assert_same_output, images, plain_name, randomize, same_weights
from timm.utils import freeze

import timm_stochdepth as ts
from timm_stochdepth.folding.rescale import fold_weights

TIMM_MODELS = {
    'resnet18': 'ResNetBasicBlock',
    'resnet26d': 'ResNetBottleneck',
    'resnet14t': 'ResNetBottleneck',
    'resnext50_32x4d': 'ResNetBottleneck',
    'seresnet18': 'ResNetBasicBlock',
    'seresnext26d_32x4d': 'ResNetBottleneck',
    'ecaresnet26t': 'ResNetBottleneck',
    'wide_resnet50_2': 'ResNetBottleneck',
    'resnetrs50': 'ResNetBottleneck',
    'resnetblur50': 'ResNetBottleneck',
    'resnet50_gn': 'ResNetBottleneck',
}
TORCHVISION_MODELS = {
    'torchvision.resnet18': 'ResNetBasicBlock',
    'torchvision.resnet50': 'ResNetBottleneck',
    'torchvision.resnext50_32x4d': 'ResNetBottleneck',
    'torchvision.wide_resnet50_2': 'ResNetBottleneck',
}


def create(name):
    if name.startswith('torchvision.'):
        return torchvision.models.get_model(name.removeprefix('torchvision.'), num_classes=10)
    return timm.create_model(name, num_classes=10)


QUICK = ('resnet18', 'resnet26d', 'seresnext26d_32x4d', 'torchvision.resnet18', 'torchvision.resnet50')


@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize(
    'name, layer',
    [
        pytest.param(name, layer, marks=[] if name in QUICK else pytest.mark.long)
        for name, layer in (TIMM_MODELS | TORCHVISION_MODELS).items()
    ],
)
def test_folded_families_infer_the_same_and_load_into_the_plain_model(name, layer, method):
    model = randomize(create(name)).eval()
    ts.apply_stochastic_depth(model, method, layer, 0.6)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = images(2)
    with torch.no_grad():
        y = model(x)
        folded = ts.fold_stochastic_depth(model)
        assert_same_output(folded(x), y)
        assert_same_output(same_weights(folded, name, num_classes=10)(x), y)
    assert not any(isinstance(m, ts.StochasticBlock) for m in folded.modules())
    assert len(ts.drop_rates(model)) > 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('name', ZOO_CASES)
def test_folded_zoo_is_timms_plain_model(name):
    model = randomize(timm.create_model(name, num_classes=10)).eval()
    folded = ts.fold_stochastic_depth(model)
    x = images(2)
    with torch.no_grad():
        assert_same_output(folded(x), model(x))
        assert_same_output(same_weights(folded, plain_name(name), num_classes=10)(x), model(x))
    assert folded.pretrained_cfg['architecture'] == plain_name(name)
    assert model.pretrained_cfg['architecture'] == name


def test_folding_at_rate_one_leaves_the_shortcuts():
    model = randomize(timm.create_model('resnet50_sd_block', num_classes=10, drop_path_rate=1.0)).eval()
    with torch.no_grad():
        x = images(2)
        assert_same_output(ts.fold_stochastic_depth(model)(x), model(x))


def test_folding_at_rate_one_under_attention_has_no_nan():
    model = randomize(timm.create_model('seresnet18', num_classes=10)).eval()
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBasicBlock', 1.0, 'uniform')
    with torch.no_grad():
        x = images(2)
        assert_same_output(ts.fold_stochastic_depth(model)(x), model(x))


def test_scale_by_keep_folds_to_the_very_same_weights():
    model = randomize(timm.create_model('resnet50_sd_sample', num_classes=10, scale_by_keep=True))
    folded = ts.fold_stochastic_depth(model)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in folded.state_dict().items())


def test_folding_uses_the_rate_in_force():
    model = randomize(timm.create_model('resnet50_sd_sample', num_classes=10, drop_warmup=0.5)).eval()
    ts.set_training_progress(model, 0.25)
    x = images(2)
    with torch.no_grad():
        assert_same_output(ts.fold_stochastic_depth(model)(x), model(x))


@pytest.mark.parametrize('name', ['seresnet18', 'ecaresnet26t', 'resnet18'])
def test_plain_weights_fold_in_and_out(name):
    layer = TIMM_MODELS[name]
    plain = randomize(create(name)).eval()
    model = copy.deepcopy(plain)
    ts.apply_stochastic_depth(model, 'sample', layer, 0.7)
    model.load_state_dict(fold_weights(plain.state_dict(), model, {}))
    x = images(2)
    with torch.no_grad():
        assert_same_output(model(x), plain(x))
    for key, value in ts.fold_stochastic_depth(model).state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[key])


def test_an_attention_that_is_no_gate_is_refused():
    model = timm.models.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), block_args=dict(attn_layer='cbam'))
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBasicBlock', 0.5)
    with pytest.raises(ValueError, match=r'layer2\.0\.se must be one of SEModule.*CbamModule'):
        ts.fold_stochastic_depth(model)


def frozen(name, **kwargs):
    model = randomize(timm.create_model(name, num_classes=10, **kwargs)).eval()
    freeze(model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    return model


@pytest.mark.filterwarnings('ignore:The (network has been trained|weights are of a plain)')
@pytest.mark.parametrize('freezes_first', [True, False])
@pytest.mark.parametrize(
    'name, kwargs', [('resnet26', LAYERS), ('efficientnet_b0', {}), ('regnety_002', {})], ids=lambda v: str(v)[:9]
)
@torch.no_grad()
def test_frozen_norms_are_scaled_though_they_have_no_parameters(name, kwargs, freezes_first):
    plain = frozen(name, **kwargs)
    model = copy.deepcopy(plain)
    if not freezes_first:
        model = randomize(timm.create_model(name, num_classes=10, **kwargs)).eval()
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.5)
    if not freezes_first:
        freeze(model)
        model.load_state_dict(plain.state_dict())
    x = images(2)
    folded = ts.fold_stochastic_depth(model)
    assert not torch.allclose(model(x), plain(x), rtol=1e-2)
    assert_same_output(folded(x), model(x))
    assert_same_output(frozen_of(folded, name, **kwargs)(x), model(x))
    scaled = {key for key, value in folded.state_dict().items() if not torch.equal(value, model.state_dict()[key])}
    assert scaled and all(key.endswith(('.weight', '.bias')) for key in scaled)
    model.load_state_dict(fold_weights(plain.state_dict(), model, {}))
    assert_same_output(model(x), plain(x))


def frozen_of(folded, name, **kwargs):
    plain = frozen(name, **kwargs)
    plain.load_state_dict(folded.state_dict())
    return plain


@pytest.mark.filterwarnings('ignore:The network has been trained')
def test_frozen_norms_of_torchvision_alike():
    norm = torchvision.ops.FrozenBatchNorm2d
    model = torchvision.models.resnet18(norm_layer=norm, num_classes=10).eval()
    for buffer in model.buffers():
        torch.nn.init.uniform_(buffer, 0.25, 0.75)
    ts.apply_stochastic_depth(model, 'block', 'ResNetBasicBlock', 0.5)
    x = images(2)
    with torch.no_grad():
        assert_same_output(ts.fold_stochastic_depth(model)(x), model(x))


def test_a_norm_without_weight_is_refused():
    model = timm.models.ResNet(
        timm.models.resnet.BasicBlock, (2, 1, 1, 1), norm_layer=partial(torch.nn.BatchNorm2d, affine=False)
    )
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBasicBlock', 0.5)
    with pytest.raises(ValueError, match=r'layer1\.1\.bn2 must have a weight'):
        ts.fold_stochastic_depth(model)
