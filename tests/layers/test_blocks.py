import copy
import math
from functools import partial

import pytest
import timm
import torch
from networks import (
    FAMILIES,
    ZOO_CASES,
    assert_same_gradients,
    branch_formula,
    images,
    plain_name,
    randomize,
    same_weights,
    stack,
)
from timm.models.resnet import Bottleneck
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import timm_stochdepth as ts
from timm_stochdepth.layers.block_class import cuts_of


def stochastic(family, method, drop_rate, num_blocks=3, **kwargs):
    model, target_layer_name = stack(family, num_blocks)
    kwargs = {'drop_distribution': 'uniform', **kwargs}
    ts.apply_stochastic_depth(model, method, target_layer_name, drop_rate, **kwargs)
    return model


class OperationCounter(TorchDispatchMode):
    """Counts what really runs, below the modules."""

    def __init__(self):
        super().__init__()
        self.operations = []

    @property
    def convolutions(self):
        return self.operations.count(torch.ops.aten.convolution.default)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(func)
        return func(*args, **(kwargs or {}))


def observe_drops(blocks, x_NCHW):
    """Run blocks with identity shortcuts, and see in each one's output which samples it left as they were."""
    drops_LN = []
    for block in blocks:
        y_NCHW = block(x_NCHW)
        drops_LN.append((y_NCHW == torch.relu(x_NCHW)).flatten(1).all(1))
        x_NCHW = y_NCHW
    return torch.stack(drops_LN)


@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('training', [True, False])
def test_rate_zero_equals_the_plain_block_bit_for_bit(family, method, training):
    plain, target_layer_name = stack(family)
    plain.train(training)
    model = copy.deepcopy(plain)
    with pytest.warns(UserWarning, match='drop_rate is 0'):
        ts.apply_stochastic_depth(model, method, target_layer_name, 0.0)
    x = torch.randn(4, 16, 8, 8)
    with OperationCounter() as counter:
        y = model(x)
    with OperationCounter() as counter_plain:
        y_plain = plain(x)
    assert torch.equal(y, y_plain)
    assert counter.operations == counter_plain.operations  # no draw, no mask, no scale
    y.square().sum().backward()
    y_plain.square().sum().backward()
    for (name, p), p_plain in zip(model.named_parameters(), plain.parameters()):
        assert torch.equal(p.grad, p_plain.grad), name
    for (name, b), b_plain in zip(model.named_buffers(), plain.buffers()):
        assert torch.equal(b, b_plain), name


@pytest.mark.parametrize('name', ZOO_CASES)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.filterwarnings('ignore:drop_rate is 0')
def test_zoo_at_rate_zero_equals_timm_bit_for_bit(name, training):
    model = randomize(timm.create_model(name, num_classes=10, drop_path_rate=0.0)).train(training)
    plain = same_weights(model, plain_name(name), num_classes=10)
    x = images(2)
    assert torch.equal(model(x), plain(x))
    for b, b_plain in zip(model.buffers(), plain.buffers()):
        assert torch.equal(b, b_plain)


BLOCK_ARGS = {
    'anti_aliasing': dict(aa_layer=timm.layers.BlurPool2d),
    'squeeze_excite': dict(block_args=dict(attn_layer='se')),
    'eca': dict(block_args=dict(attn_layer='eca')),
    'cbam': dict(block_args=dict(attn_layer='cbam')),
    'average_pool_downsample': dict(avg_down=True, stem_width=32, stem_type='deep'),
    'silu_group_norm': dict(act_layer='silu', norm_layer='groupnorm'),
    'cardinality_and_dilation': dict(cardinality=8, base_width=4, output_stride=8),
}


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('kwargs', BLOCK_ARGS.values(), ids=BLOCK_ARGS)
def test_whatever_a_block_holds_behaves_as_in_timm(kwargs, training):
    plain = randomize(timm.models.ResNet(Bottleneck, (1, 1, 2, 1), num_classes=10, **kwargs)).train(training)
    model = copy.deepcopy(plain)
    # no draw drops a thing: all that is left is how branch, shortcut and activation are put together
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBottleneck', 1e-12, 'uniform')
    x = images()
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


def test_drop_block_behaves_as_in_timm():
    plain = randomize(Bottleneck(16, 4, drop_block=partial(timm.layers.DropBlock2d, drop_prob=0.3, block_size=3)))
    model = nn.Sequential(copy.deepcopy(plain))
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBottleneck', 1e-12, 'uniform')
    x = torch.randn(4, 16, 8, 8)
    # one block draws for DropBlock first, so that one seed gives both the same
    torch.manual_seed(1)
    y = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(y, plain(x))
    assert not torch.equal(y, plain(x))


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('method', ['sample', 'block'])
def test_inference_scales_the_branch(family, method):
    model = stochastic(family, method, 0.3, num_blocks=1).eval()
    plain, _ = stack(family, 1)
    plain.load_state_dict(model.state_dict())
    pre_activation = {}
    plain[0].register_forward_pre_hook(lambda m, args: pre_activation.update(x=args[0].clone()))
    last_act = (
        plain[0].act3 if hasattr(plain[0], 'act3') else getattr(plain[0], 'act2', getattr(plain[0], 'relu', None))
    )
    last_act.register_forward_pre_hook(lambda m, args: pre_activation.update(sum=args[0].clone()))
    x = torch.randn(4, 16, 8, 8)
    plain.eval()(x)
    branch = pre_activation['sum'] - pre_activation['x']
    torch.testing.assert_close(model(x), torch.relu(x + 0.7 * branch))


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('method', ['sample', 'block'])
def test_scale_by_keep_is_plain_at_inference(family, method):
    model = stochastic(family, method, 0.3, scale_by_keep=True).eval()
    plain, _ = stack(family)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(4, 16, 8, 8)
    assert torch.equal(model(x), plain.eval()(x))


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('scale_by_keep', [False, True])
def test_training_mean_is_the_inference_output(family, scale_by_keep):
    """E[b] * branch, from many draws of one block whose norms do not depend on the batch."""
    model = stochastic(family, 'sample', 0.4, num_blocks=1, scale_by_keep=scale_by_keep)
    block = model.double()[0]
    plain = stack(family, 1)[0].double()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(1, 16, 4, 4, dtype=torch.float64) + 20  # a sum that the ReLU leaves as it is
    branch = plain.eval()(x) - x
    block.eval()
    block.training = block.drop_path.training = True  # this block draws, its norms stay at their running statistics
    num_draws = 20_000
    with torch.no_grad():
        mean = block(x.expand(num_draws, -1, -1, -1)).mean(0, keepdim=True)
    expected = x + (1.0 if scale_by_keep else 0.6) * branch
    bound = 5 * branch.abs() * math.sqrt(0.4 * 0.6 / num_draws) / (0.6 if scale_by_keep else 1.0)
    assert ((mean - expected).abs() <= bound + 1e-9).all()


def test_sample_draws_are_independent_over_samples_and_blocks():
    blocks = stochastic('timm_bottleneck', 'sample', 0.5, num_blocks=4)
    num_passes, batch_size = 400, 4
    drops_TLN = torch.stack([observe_drops(blocks, torch.rand(batch_size, 16, 2, 2)) for _ in range(num_passes)])
    columns = drops_TLN.flatten(1).double()
    # a correlation of independent variables has a standard deviation of 1 / sqrt(n)
    correlation = torch.corrcoef(columns.T) - torch.eye(columns.shape[1])
    assert correlation.abs().max() <= 5 / math.sqrt(num_passes)
    frequency_LN = drops_TLN.double().mean(0)
    assert ((frequency_LN - 0.5).abs() <= 5 * math.sqrt(0.25 / num_passes)).all()


def test_block_draws_are_one_for_the_batch_and_independent_over_blocks_and_passes():
    blocks = stochastic('timm_bottleneck', 'block', 0.5, num_blocks=4)
    num_passes = 600
    drops_TLN = torch.stack([observe_drops(blocks, torch.rand(3, 16, 2, 2)) for _ in range(num_passes)])
    assert (drops_TLN == drops_TLN[:, :, :1]).all()
    drops_TL = drops_TLN[:, :, 0].double()
    lagged = torch.cat([drops_TL[1:], drops_TL[:-1]], dim=1)
    correlation = torch.corrcoef(lagged.T) - torch.eye(8)
    # columns of one block and its own previous pass included
    assert correlation.abs().max() <= 5 / math.sqrt(num_passes - 1)


@pytest.mark.parametrize('method', ['sample', 'block'])
def test_every_block_drops_at_its_own_rate(method):
    blocks = stochastic('timm_basic', method, 0.8, num_blocks=5, drop_distribution='linear')
    num_passes = 500
    drops_TLN = torch.stack([observe_drops(blocks, torch.rand(2, 16, 2, 2)) for _ in range(num_passes)])
    num_draws = num_passes * (2 if method == 'sample' else 1)
    frequency_L = drops_TLN.double().mean((0, 2))
    for frequency, rate in zip(frequency_L.tolist(), [0.0, 0.2, 0.4, 0.6, 0.8]):
        assert abs(frequency - rate) <= 5 * math.sqrt(rate * (1 - rate) / num_draws)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_dropped_block_computes_nothing_and_leaves_its_statistics(family):
    model = stochastic(family, 'block', 1.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(4, 16, 8, 8, requires_grad=True)
    with OperationCounter() as counter:
        y = model(x)
    assert counter.convolutions == 0
    assert torch.equal(y, torch.relu(x))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    y.sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and not p.grad.any(), name


@pytest.mark.parametrize('name', ['resnet50_sd_block', 'resnet101_sd_block'])
def test_a_dropped_network_still_computes_its_stem_and_shortcuts(name):
    model = timm.create_model(name, num_classes=10, drop_path_rate=1.0, drop_distribution='uniform')
    with OperationCounter() as counter:
        model(images(2))
    assert counter.convolutions == 1 + 4  # the stem, and a downsample for each stage
    num_tracked = {n: m.num_batches_tracked.item() for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {n for n, tracked in num_tracked.items() if tracked} == {
        'bn1',
        *(f'layer{i}.0.downsample.1' for i in range(1, 5)),
    }


@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('family', FAMILIES)
def test_rate_one_never_counts_the_branch(method, family):
    model = stochastic(family, method, 1.0)
    x = torch.randn(4, 16, 8, 8)
    for training in (True, False):
        torch.testing.assert_close(model.train(training)(x), torch.relu(x))


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('training', [True, False])
def test_the_input_is_never_written_into(family, method, training):
    model = stochastic(family, method, 0.5, num_blocks=1).train(training)
    x = torch.randn(4, 16, 8, 8)
    before = x.clone()
    for _ in range(8):  # both decisions
        model(x)
        assert torch.equal(x, before)


@pytest.mark.parametrize('scale_by_keep', [False, True])
@pytest.mark.parametrize('method', ['sample', 'block'])
def test_gradients_equal_the_formula(method, scale_by_keep):
    model = stochastic('timm_bottleneck', method, 0.5, num_blocks=1, scale_by_keep=scale_by_keep).double()
    state = {k: v.detach().clone().requires_grad_() for k, v in model[0].named_parameters()}
    seen = set()
    for _ in range(12):
        x = torch.randn(6, 16, 5, 5, dtype=torch.float64, requires_grad=True)
        x_ref = x.detach().clone().requires_grad_()
        y = model(x)
        keep_N = 1 - (y == torch.relu(x)).flatten(1).all(1).double()
        seen.update(keep_N.tolist())
        scale = 2.0 if scale_by_keep else 1.0
        y_ref = torch.relu(x_ref + scale * keep_N[:, None, None, None] * branch_formula(state, x_ref))
        assert_same_gradients(y, y_ref, [x, *model.parameters()], [x_ref, *state.values()])
    assert seen == {0.0, 1.0}


def test_shortcut_parameters_learn_when_the_branch_is_dropped():
    model = timm.create_model('resnet50_sd_block', num_classes=10, drop_path_rate=1.0, drop_distribution='uniform')
    model(images(2)).square().sum().backward()
    assert model.layer2[0].downsample[0].weight.grad.any()
    assert not model.layer2[0].conv1.weight.grad.any()


def test_only_parameters_of_the_branch_get_zeros():
    block = timm.create_model('resnet50_sd_block').layer2[0]
    ((_, branch),) = cuts_of(block)[0].branches
    names = {n for n, p in block.named_parameters() if any(p is q for q in branch.parameters(block))}
    assert names == {n for n, _ in block.named_parameters() if 'downsample' not in n}


def test_frozen_parameters_get_no_gradient():
    model = stochastic('timm_bottleneck', 'block', 1.0, num_blocks=1)
    model[0].conv1.weight.requires_grad_(False)
    model(torch.randn(2, 16, 4, 4, requires_grad=True)).sum().backward()
    assert model[0].conv1.weight.grad is None
    assert model[0].conv2.weight.grad is not None
