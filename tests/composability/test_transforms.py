"""torch.func, forward-mode differentiation, hooks and replicas: what timm's DropPath gives, and no error."""

import copy
from itertools import repeat

import pytest
import timm
import torch
import torchvision
from draws_of import GivenDecisions, NotedDraws
from networks import assert_same_output, of_seed
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

import timm_stochdepth as ts
from timm_stochdepth.layers.block import decide
from timm_stochdepth.layers.drop_path import StochasticDropPath

NETWORKS = {
    'resnet': ('resnet18', dict(layers=(2, 1, 1, 1), channels=(32, 32, 32, 32), norm_layer='groupnorm')),
    'vit': ('vit_tiny_patch16_224', dict(img_size=64, depth=3, embed_dim=48, num_heads=3)),
    'convnext': ('convnext_atto', dict(depths=(1, 1, 2, 1), dims=(16, 16, 24, 32))),
}
NETWORK_CASES = ['vit', *(pytest.param(name, marks=pytest.mark.long) for name in ('resnet', 'convnext'))]
METHODS = [('sample', {}), ('sample', dict(skip_dropped=True)), ('block', {})]


def create_reference(network, rate=0.5):
    name, kwargs = NETWORKS[network]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, drop_path_rate=rate, **kwargs).double()
    for module in model.modules():
        if hasattr(module, 'fused_attn'):  # PyTorch's has no forward mode on the CPU
            module.fused_attn = False
    for p in model.parameters():
        if p.ndim <= 1:
            nn.init.uniform_(p, 0.2, 0.5)
    return model.train(), torch.randn(4, 3, 64, 64, dtype=torch.float64)


def with_depth(reference, method, **settings):
    model = copy.deepcopy(reference)
    ts.apply_stochastic_depth(model, method, 'DropPath', None, scale_by_keep=True, **settings)
    return model


def loss_of(model, x):
    return lambda p: functional_call(model, p, (x,)).square().mean()


def parameters_of(model):
    return {n: p.detach() for n, p in model.named_parameters()}


def eager_gradients(model, x):
    model.zero_grad()
    model(x).square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize('method, settings', METHODS)
@pytest.mark.parametrize('network', NETWORKS)
def test_func_grad(network, method, settings):
    reference, x = create_reference(network)
    model = with_depth(reference, method, **settings)
    for seed in range(3):
        gradients = of_seed(lambda: grad(loss_of(model, x))(parameters_of(model)), seed)
        torch.testing.assert_close(gradients, of_seed(lambda: eager_gradients(model, x), seed))
        if method == 'sample':
            torch.testing.assert_close(gradients, of_seed(lambda: eager_gradients(reference, x), seed))


@pytest.mark.parametrize('method, settings', METHODS)
@pytest.mark.parametrize('network', NETWORK_CASES)
def test_forward_mode(network, method, settings):
    """A directional derivative is the product of the gradients and the direction."""
    reference, x = create_reference(network)
    model = with_depth(reference, method, **settings)
    p = parameters_of(model)
    direction = {n: torch.randn_like(t) for n, t in p.items()}
    _, tangent = of_seed(lambda: jvp(loss_of(model, x), (p,), (direction,)))
    gradients = of_seed(lambda: eager_gradients(reference if method == 'sample' else model, x))
    torch.testing.assert_close(tangent, sum((gradients[n] * direction[n]).sum() for n in p))

    with torch.autograd.forward_ad.dual_level():  # without torch.func
        duals = {n: torch.autograd.forward_ad.make_dual(t, direction[n]) for n, t in p.items()}
        y = of_seed(lambda: loss_of(model, x)(duals))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, tangent)


@pytest.mark.parametrize('method, settings', METHODS)
@pytest.mark.parametrize('network', NETWORK_CASES)
def test_per_sample_gradients(network, method, settings):
    reference, x = create_reference(network)
    model = with_depth(reference, method, **settings)

    def per_sample_gradients(model):
        def gradients(p, x):
            return grad(loss_of(model, x[None]))(p)

        return vmap(gradients, in_dims=(None, 0), randomness='different')(parameters_of(model), x)

    found = of_seed(lambda: per_sample_gradients(model))
    if method == 'sample':
        torch.testing.assert_close(found, of_seed(lambda: per_sample_gradients(reference)))
    else:  # one decision for the batch: the gradients of its mean are the mean of its samples' gradients
        of_batch = of_seed(
            lambda: grad(lambda p: functional_call(model, p, (x,)).square().mean())(parameters_of(model))
        )
        torch.testing.assert_close({n: g.mean(0) for n, g in found.items()}, of_batch)


def double_backward(model, x):
    """Gradients of a gradient's size, as a gradient penalty has them."""
    x = x.clone().requires_grad_()
    gradient, *_ = torch.autograd.grad(model(x).square().mean(), x, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), list(model.parameters()), materialize_grads=True)


def batched_jacobian(model, x):
    x = x.clone().requires_grad_()
    y = model(x).sum(0)
    directions = torch.eye(len(y), dtype=y.dtype)
    return torch.autograd.grad(y, [x, *model.parameters()], directions, is_grads_batched=True)


def reverse_jacobian(model, x):
    return torch.func.jacrev(lambda v: functional_call(model, parameters_of(model), (v,)).sum(0))(x)


def ensemble(model, x):
    """Networks of equal structure as one, over their stacked parameters."""
    models = [copy.deepcopy(model) for _ in range(3)]
    for i, m in enumerate(models):
        for p in m.parameters():
            p.data.mul_(1.0 + 0.1 * i)
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(model).to('meta')
    run = vmap(lambda p, b: functional_call(base, (p, b), (x,)), randomness='different')
    return run(parameters, buffers)


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def note_decisions(model):
    """What a forward pass decides in block mode, by the names of its drop paths."""
    decisions = {}
    for name, drop_path in ts.inspection.drop_paths(model):
        drop_path.draws = NotedDraws(drop_path.draws, decisions.setdefault(name, []))
    return decisions


@pytest.mark.parametrize('compute', [double_backward, batched_jacobian, reverse_jacobian, ensemble])
@pytest.mark.parametrize('method, settings', METHODS)
@pytest.mark.parametrize('network', NETWORK_CASES)
def test_further_transforms(network, method, settings, compute):
    reference, x = create_reference(network)
    model = with_depth(reference, method, **settings)
    decisions = note_decisions(model)
    found = of_seed(lambda: compute(model, x))
    if method == 'block':
        for name, plain in list(reference.named_modules()):
            if isinstance(plain, timm.layers.DropPath):
                factor = (decisions[name] or [True])[-1] / (1 - plain.drop_prob)
                reference.set_submodule(name, Times(factor))
    torch.testing.assert_close(found, of_seed(lambda: compute(reference, x)))


def record_hooks(model, skip=()):
    """What full backward hooks and forward hooks see, on all modules that both networks call."""
    seen = {}

    def backward_hook(name):
        return lambda m, grad_in, grad_out: seen.__setitem__(f'{name} backward', grad_out[0].clone())

    def forward_hook(name):
        return lambda m, args, y: seen.__setitem__(f'{name} forward', y)

    for name, module in model.named_modules():
        if not any(s in name for s in skip):
            module.register_full_backward_hook(backward_hook(name))
            module.register_forward_hook(forward_hook(name))
    return seen


def inplace_off(model):
    # timm's own networks fail with full backward hooks on what an activation in place or a sum follows
    for module in model.modules():
        if hasattr(module, 'inplace'):
            module.inplace = False
    return model


@pytest.mark.parametrize('network', NETWORK_CASES)
def test_hooks_see_what_they_see_with_drop_path(network):
    reference, x = create_reference(network, rate=0.5)
    inplace_off(reference)
    for module in reference.modules():  # at rate 0 timm's own `x += shortcut` is not to be hooked
        if isinstance(module, timm.layers.DropPath):
            module.drop_prob = 0.5
        elif hasattr(module, 'drop_path') and module.drop_path is None:
            module.drop_path = timm.layers.DropPath(0.5)
    model = with_depth(reference, 'sample')
    skip = ('drop_path',) if network == 'resnet' else ()  # timm's sum would write to what a hooked DropPath gives
    seen, expected = record_hooks(model, skip), record_hooks(reference, skip)
    for run in (model, reference):
        of_seed(lambda run=run: run(x).square().mean().backward())
    missing = {key for key in expected if key not in seen}
    assert not missing
    for key, value in expected.items():
        torch.testing.assert_close(seen[key], value, msg=key)


@pytest.mark.parametrize('is_training', [True, False])
@pytest.mark.parametrize('network', NETWORK_CASES)
def test_a_hook_before_a_drop_path_is_called_as_before_timms(network, is_training):
    reference, x = create_reference(network, rate=0.5)
    model = with_depth(reference, 'sample')
    seen = {'timm': {}, 'ours': {}}
    for kind, run in (('timm', reference), ('ours', model)):
        for name, module in run.train(is_training).named_modules():
            if isinstance(module, (timm.layers.DropPath, StochasticDropPath)) and module.drop_prob > 0:

                def before(module, args, name=name, to=seen[kind]):
                    to[name] = args[0].detach().clone()
                    return (2 * args[0],)

                module.register_forward_pre_hook(before)
    y, expected = of_seed(lambda: model(x)), of_seed(lambda: reference(x))
    assert len(seen['timm']) > 0
    torch.testing.assert_close((y, seen['ours']), (expected, seen['timm']))


@pytest.mark.parametrize('method, settings', METHODS)
@pytest.mark.parametrize('network', NETWORK_CASES)
def test_hooks_change_nothing(network, method, settings):
    reference, x = create_reference(network)
    model = with_depth(inplace_off(reference), method, **settings)
    ts.set_drop_rate(model, 0.5)
    for drop_path in (m for m in model.modules() if hasattr(m, 'depth_scale')):
        drop_path.depth_scale = 1.0  # no block is plain
        drop_path.update_drop_prob()
    expected = of_seed(lambda: eager_gradients(model, x), 2)
    record_hooks(model, skip=('drop_path',))
    torch.testing.assert_close(of_seed(lambda: eager_gradients(model, x), 2), expected)


@pytest.mark.parametrize('method, settings', METHODS)
def test_a_sum_is_not_written_to_what_a_hook_has(method, settings):
    """torchvision's blocks add in place, `out += identity`, which autograd refuses behind a full backward hook."""
    model = inplace_off(torchvision.models.resnet18(num_classes=4).double())
    ts.apply_stochastic_depth(model, method, 'ResNetBasicBlock', 0.5, 'uniform', **settings)
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    expected = of_seed(lambda: eager_gradients(model, x), 2)
    kept, copied = [], []

    def keep(module, args, y):
        kept.append(y)
        copied.append(y.detach().clone())

    for name, module in model.named_modules():
        if name.endswith('bn2'):
            module.register_full_backward_hook(lambda m, grad_in, grad_out: None)
            module.register_forward_hook(keep)
    torch.testing.assert_close(of_seed(lambda: eager_gradients(model, x), 2), expected)
    assert kept and all(torch.equal(y, y_copied) for y, y_copied in zip(kept, copied))


def replica_of(model):
    """A replica as nn.DataParallel makes it for a second device, which is not at hand: parameters are attributes."""
    copies = {m: m._replicate_for_data_parallel() for m in model.modules()}
    for module, replica in copies.items():
        for name, child in module._modules.items():
            setattr(replica, name, None if child is None else copies[child])
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter * 1.0)
        for name, buffer in module._buffers.items():
            setattr(replica, name, buffer)
    return copies[model]


@pytest.mark.parametrize('method, settings', METHODS)
@pytest.mark.parametrize('network', NETWORK_CASES)
def test_replicas_of_data_parallel(network, method, settings):
    reference, x = create_reference(network)
    model = with_depth(reference, method, **settings)
    classes = [type(m) for m in model.modules()]
    for rate in (0.5, 1.0):
        ts.set_drop_rate(model, rate)
        expected = of_seed(lambda: eager_gradients(model, x))
        model.zero_grad()
        replica = replica_of(model)
        of_seed(lambda replica=replica: replica(x).square().mean().backward())
        torch.testing.assert_close({n: p.grad for n, p in model.named_parameters()}, expected)
    assert [type(m) for m in model.modules()] == classes == [type(m) for m in replica.modules()]


def test_replicas_of_one_place_decide_for_themselves():
    reference, x = create_reference('vit')
    model = with_depth(reference, 'block')
    first, second = replica_of(model), replica_of(model)
    tokens = torch.randn(2, 17, 48, dtype=torch.float64)
    decided = []
    for replica, decision in ((first, True), (second, False)):
        block = replica.blocks[2]
        for place in ('drop_path1', 'drop_path2'):
            getattr(block, place).draws = GivenDecisions(repeat(decision))
        decided.append((block, *decide(block, (tokens,), {})))
    # both have decided before one of them runs, as threads may
    outputs = [run(block, *args, **kwargs) for block, run, args, kwargs in decided]
    assert not torch.equal(outputs[0], tokens) and torch.equal(outputs[1], tokens)
    first, second = replica_of(model), replica_of(model)
    assert_same_output(of_seed(lambda: first(x)), of_seed(lambda: model(x)))
