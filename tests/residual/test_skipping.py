"""A branch that runs for the kept samples alone, or not at all."""

import copy
from itertools import repeat

import pytest
import timm
import torch
from draws_of import give_draws, note_draws
from networks import LAYERS, assert_same_gradients, assert_same_output, branch_formula, images, randomize
from operations import Operations
from torch import nn
from torch.utils.checkpoint import checkpoint

import timm_stochdepth as ts
from timm_stochdepth.bench.counters import kept_storages
from timm_stochdepth.draws.selection import Selection, select_kept
from timm_stochdepth.residual.leave_out import skip_branch
from timm_stochdepth.residual.mask import add_branch, add_masked_branch
from timm_stochdepth.residual.skip import add_branch_of_some, split_input

FORMATS = [torch.contiguous_format, torch.channels_last]


def kept_of(keep_N, as_on_gpu=False, dtype=torch.float32):
    """Which samples are kept; where the branch is on a GPU, their rows, too."""
    keep_N = torch.tensor(keep_N, dtype=torch.float32)
    if not as_on_gpu:
        return Selection(keep_N.nonzero().flatten(), int(keep_N.count_nonzero()))
    (selection,) = select_kept(keep_N[None], torch.device('cpu'), dtype)
    return selection


def test_skipped_branch_has_zero_gradients_and_passes_the_shortcut_on():
    shortcut = torch.randn(2, 3, requires_grad=True)
    weight, frozen = torch.randn(4, requires_grad=True), torch.randn(4)
    y = skip_branch(shortcut, [weight, frozen])
    assert torch.equal(y, shortcut) and y.data_ptr() != shortcut.data_ptr()
    grads = torch.autograd.grad((2 * y).sum(), [shortcut, weight])
    assert torch.equal(grads[0], torch.full_like(shortcut, 2))
    assert torch.equal(grads[1], torch.zeros_like(weight))


def test_skipped_branch_adds_nothing_to_accumulated_gradients():
    weight = torch.randn(4, requires_grad=True)
    weight.grad = torch.ones(4)
    skip_branch(torch.randn(2, 3, requires_grad=True), [weight]).sum().backward()
    assert torch.equal(weight.grad, torch.ones(4))


def test_inputs_of_a_skipped_branch_have_zero_gradients_unless_the_shortcut_comes_from_them():
    x, query = torch.randn(2, 3, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    no_gradient, number = torch.randn(2, 3), 5
    shortcut = (x * 3.0).relu()
    y = skip_branch(shortcut, [], [shortcut, x, (query, no_gradient), dict(size=number)])
    grads = torch.autograd.grad(y.sum(), [x, query])
    assert torch.equal(grads[0], 3.0 * (x > 0))
    assert torch.equal(grads[1], torch.zeros_like(query))


@pytest.mark.parametrize('name, kwargs', [('test_vit', dict(img_size=32)), ('resnet26', LAYERS)])
def test_a_skipped_branch_whose_input_the_shortcut_comes_from_allocates_nothing_for_it(name, kwargs, monkeypatch):
    model = timm.create_model(name, num_classes=4, **kwargs)
    ts.apply_stochastic_depth(model, 'block', 'DropPath', 1.0, 'uniform')

    def operations():
        model.zero_grad(set_to_none=True)
        with Operations() as operations:
            model(torch.randn(2, 3, 32, 32)).sum().backward()
        return operations.names

    found = operations()
    monkeypatch.setattr('timm_stochdepth.residual.leave_out.tensors_in', lambda inputs: [])
    assert found == operations() and 'zeros_like' in found


class Asking(nn.Module):
    """A block whose branch asks something that is computed outside of it, as in GCViT."""

    def __init__(self, drop_path):
        super().__init__()
        self.fc, self.drop_path = nn.Linear(4, 4), drop_path

    def forward(self, x, q_global):
        return x + self.drop_path(self.fc(x) * q_global)


class Asked(nn.Module):
    """What computes that for its blocks, whose parameters have a gradient through their branches alone."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.stem, self.query, self.reentrant = nn.Linear(3, 4), nn.Linear(4, 4), reentrant
        self.blocks = nn.ModuleList([Asking(timm.layers.DropPath(0.5)) for _ in range(2)])

    def forward(self, x):
        x = self.stem(x)
        query = self.query(x)
        for block in self.blocks:
            x = block(x, query) if self.reentrant is None else checkpoint(block, x, query, use_reentrant=self.reentrant)
        return x


ASKED = {
    'eager': Asked,
    'reentrant': lambda: Asked(reentrant=True),
    'not reentrant': lambda: Asked(reentrant=False),
    'compiled': lambda: torch.compile(Asked(), backend='aot_eager'),
}


@pytest.mark.parametrize('rate', [1.0, 0.6])
@pytest.mark.parametrize('method, settings', [('block', {}), ('sample', dict(skip_dropped=True))])
@pytest.mark.parametrize('kind', ASKED)
def test_what_a_left_out_branch_would_have_been_given_has_a_gradient(kind, method, settings, rate):
    model = ASKED[kind]()
    ts.apply_stochastic_depth(model, method, 'DropPath', rate, 'uniform', **settings)
    all_dropped = 0
    for seed in range(12):
        torch.manual_seed(seed)
        model.zero_grad(set_to_none=True)
        model(torch.randn(2, 3)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        all_dropped += not any(p.grad.any() for n, p in model.named_parameters() if 'query' in n)
    assert all_dropped > 0 if rate < 1.0 else all_dropped == 12


@pytest.mark.parametrize('as_on_gpu', [False, True])
@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('identity', [False, True])
def test_derivatives_equal_those_of_the_formula(identity, memory_format, as_on_gpu):
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weight = torch.randn(3, 1, 1, dtype=torch.float64, requires_grad=True)
    kept = kept_of([1, 0, 1, 0], as_on_gpu, torch.float64)

    def block(x, weight):
        shortcut, x = split_input(x, kept)
        shortcut = shortcut if identity else shortcut * weight
        return add_branch_of_some(shortcut, (x * weight).sin(), kept, scale=1.5).relu_()

    def formula(x, weight):
        keep_N = torch.tensor([1.5, 0.0, 1.5, 0.0], dtype=torch.float64)
        return ((x if identity else x * weight) + keep_N[:, None, None, None] * (x * weight).sin()).relu()

    y, y_ref = block(x, weight), formula(x, weight)
    torch.testing.assert_close(y, y_ref)
    assert y.is_contiguous(memory_format=memory_format)
    cotangent = torch.randn_like(y)
    for retain in (True, False):  # what the first pass back writes to, the second does not see
        grads = torch.autograd.grad(y, [x, weight], cotangent, retain_graph=retain)
        grads_ref = torch.autograd.grad(y_ref, [x, weight], cotangent, retain_graph=retain)
        for grad, grad_ref in zip(grads, grads_ref):
            torch.testing.assert_close(grad, grad_ref)
    assert torch.autograd.gradcheck(block, (x, weight))
    assert torch.autograd.gradgradcheck(block, (x, weight))


@pytest.mark.parametrize('as_on_gpu', [False, True])
@pytest.mark.parametrize('branch_is_left', [False, True])
def test_a_sum_has_the_memory_format_that_the_plain_sum_has(branch_is_left, as_on_gpu):
    shortcut, branch = torch.randn(4, 3, 2, 2), torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last)
    plain = branch.new_zeros(4, 3, 2, 2).to(memory_format=torch.channels_last)
    plain = plain + shortcut if branch_is_left else shortcut + plain
    y = add_branch_of_some(shortcut, branch, kept_of([1, 0, 1, 0], as_on_gpu), branch_is_left=branch_is_left)
    assert y.stride() == plain.stride()
    full = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    keep_N = torch.tensor([1.0, 0.0, 1.0, 1.0])
    y = add_masked_branch(shortcut, full, keep_N, inplace_add=False, branch_is_left=branch_is_left)
    assert y.stride() == plain.stride()


@pytest.mark.parametrize('training', [True, False])
def test_a_branch_of_any_strides_is_added(training):
    shortcut = torch.randn(4, 3, 2, 5).to(memory_format=torch.channels_last)
    branch = torch.randn(4, 3, 5, 2).transpose(2, 3)
    keep_N = torch.tensor([1.0, 0.0, 1.0, 1.0]) if training else torch.tensor([0.3])
    y = add_masked_branch(shortcut, branch, keep_N, inplace_add=False)
    torch.testing.assert_close(y, shortcut + keep_N[:, None, None, None] * branch)
    torch.testing.assert_close(add_branch(shortcut, branch, 0.3, inplace_add=False), shortcut + 0.3 * branch)
    for as_on_gpu in (False, True):
        kept = kept_of([1, 0, 1, 0], as_on_gpu)
        expected = shortcut.index_add(0, kept.run_K, branch[kept.run_K])
        y = add_branch_of_some(shortcut, branch[kept.run_K], kept, branch_is_left=True)
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize('types', [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_sums_of_two_types_and_their_gradients(types):
    shortcut, full = (torch.randn(4, 3, dtype=dtype, requires_grad=True) for dtype in types)
    keep_N = torch.tensor([1.25, 0.0, 1.25, 0.0])
    sums = [add_masked_branch(shortcut, full, keep_N, inplace_add=False)]
    for as_on_gpu in (False, True):
        kept = kept_of([1, 0, 1, 0], as_on_gpu)
        sums.append(add_branch_of_some(shortcut, full[kept.run_K], kept, 1.25))
    cotangent = torch.randn(4, 3)
    expected = shortcut + keep_N[:, None] * full
    grads_expected = torch.autograd.grad(expected, (shortcut, full), cotangent)
    for y in sums:
        torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)
        assert y.dtype == torch.float32
        for grad, grad_expected in zip(torch.autograd.grad(y, (shortcut, full), cotangent), grads_expected):
            torch.testing.assert_close(grad, grad_expected, rtol=1e-2, atol=1e-2)
            assert grad.dtype == grad_expected.dtype


def test_derivatives_of_a_skipped_branch():
    shortcut = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)

    query = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def skip(shortcut, weight, query):
        return skip_branch(shortcut * 2.0, [weight], [query])

    assert torch.autograd.gradcheck(skip, (shortcut, weight, query))
    assert torch.autograd.gradgradcheck(skip, (shortcut, weight, query))


def test_selected_samples_keep_their_memory_format():
    x = torch.randn(5, 3, 4, 4).to(memory_format=torch.channels_last)
    _, x_kept = split_input(x, kept_of([0, 1, 0, 0, 1]))
    assert torch.equal(x_kept, x[[1, 4]])
    assert x_kept.is_contiguous(memory_format=torch.channels_last)


def one_block(drop_rate=0.5, activation=nn.ReLU, **kwargs):
    model = nn.Sequential(timm.models.resnet.Bottleneck(16, 4, act_layer=activation))
    ts.apply_stochastic_depth(
        randomize(model), 'sample', 'ResNetBottleneck', drop_rate, 'uniform', skip_dropped=True, **kwargs
    )
    return model


@pytest.mark.parametrize('scale_by_keep', [False, True])
def test_gradients_equal_the_formula_on_the_kept_samples(scale_by_keep):
    model = one_block(scale_by_keep=scale_by_keep).double()
    state = {k: v.detach().clone().requires_grad_() for k, v in model[0].named_parameters()}
    numbers = set()
    for _ in range(30):
        x = torch.randn(3, 16, 5, 5, dtype=torch.float64, requires_grad=True)
        x_ref = x.detach().clone().requires_grad_()
        y = model(x)
        kept = (y != torch.relu(x)).flatten(1).any(1).nonzero().flatten()
        numbers.add(len(kept))
        y_ref = x_ref
        if len(kept):
            scale = 2.0 if scale_by_keep else 1.0
            y_ref = x_ref.index_add(0, kept, scale * branch_formula(state, x_ref[kept]))
        y_ref = y_ref.relu()
        assert_same_gradients(y, y_ref, [x, *model.parameters()], [x_ref, *state.values()])
    assert numbers == {0, 1, 2, 3}


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize(
    'name, sizes', [('resnet50', LAYERS), ('resnet18d', dict(layers=[1, 2, 1, 1])), ('seresnet50', LAYERS)]
)
def test_without_batch_statistics_it_equals_masking(name, sizes, memory_format):
    layer = 'ResNetBasicBlock' if '18' in name else 'ResNetBottleneck'
    masking = randomize(timm.create_model(name, num_classes=10, **sizes)).double().to(memory_format=memory_format)
    skipping = timm.create_model(name, num_classes=10, **sizes).double().to(memory_format=memory_format)
    skipping.load_state_dict(masking.state_dict())
    for model, skip_dropped in ((masking, False), (skipping, True)):
        ts.apply_stochastic_depth(model, 'sample', layer, 0.7, skip_dropped=skip_dropped)
        for module in model.train().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    # a skipped block draws before its branch runs: the other network is given the very draws
    x = images(6, 64).double()
    draws = note_draws(skipping)
    y = skipping(x)
    remaining = give_draws(masking, draws)
    y_masking = masking(x)
    assert_same_output(y, y_masking)
    assert next(remaining, None) is None
    y.square().sum().backward()
    y_masking.square().sum().backward()
    for (n, p), q in zip(skipping.named_parameters(), masking.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=n)


def test_torchscript_masks():
    model = one_block(0.3)
    masking = copy.deepcopy(model)
    ts.apply_stochastic_depth(masking, 'sample', 'ResNetBottleneck', 0.3, 'uniform')
    x = torch.randn(4, 16, 4, 4)
    outputs = []
    for run in (torch.jit.script(model), masking):
        torch.manual_seed(3)
        outputs.append(run(x))
    assert_same_output(*outputs)


def test_the_block_input_is_not_written_to():
    for activation in (nn.ReLU, nn.SiLU):
        model = one_block(activation=activation)
        for _ in range(8):
            x = torch.randn(3, 16, 4, 4)
            before = x.clone()
            model(x)
            assert torch.equal(x, before)


def test_hooks_of_the_activation_are_called():
    model = one_block(drop_rate=1.0)
    calls = []
    model[0].act3.register_forward_hook(lambda *args: calls.append(args))
    model(torch.randn(3, 16, 4, 4))
    assert len(calls) == 1


def test_norms_see_the_kept_samples_alone():
    model = one_block()
    give_draws(model, [[0.0, 1.0, 1.0, 0.0]])
    model[0].bn1.momentum = 1.0
    x = torch.randn(4, 16, 4, 4)
    model(x)
    torch.testing.assert_close(model[0].bn1.running_mean, model[0].conv1(x[[1, 2]]).mean((0, 2, 3)))


def test_a_batch_that_drops_all_runs_no_branch():
    model = one_block(drop_rate=1.0)
    x = torch.randn(3, 16, 4, 4, requires_grad=True)
    y = model(x)
    assert torch.equal(y, torch.relu(x))
    y.sum().backward()
    assert model[0].bn1.num_batches_tracked == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize('keep', [[0.0, 1.0, 0.0], [1.0]])
def test_a_lone_value_is_normalized_by_the_running_statistics(keep):
    model = one_block()
    give_draws(model, [keep])
    plain = timm.models.resnet.Bottleneck(16, 4).eval()
    plain.load_state_dict(model[0].state_dict())
    state = plain.state_dict()
    x = torch.randn(len(keep), 16, 1, 1)
    y = model(x)
    expected = torch.relu(x)
    kept = keep.index(1.0)
    expected[kept] = plain(x)[kept]
    torch.testing.assert_close(y, expected)
    assert all(torch.equal(v, state[k]) for k, v in model[0].state_dict().items())
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize('keep', [[1.0, 0.0, 0.0, 0.0], [1.0] * 4])
def test_a_network_trains_where_a_norm_is_left_with_one_value(keep):
    model = timm.create_model('resnet50_sd_sample', num_classes=10, drop_path_rate=0.5, skip_dropped=True)
    give_draws(model, repeat(keep))
    y = model(images(4, 32))
    y.sum().backward()
    assert torch.isfinite(y).all() and all(torch.isfinite(p.grad).all() for p in model.parameters())


METHODS = [('sample', {}), ('sample', dict(skip_dropped=True)), ('block', {})]


NETWORKS = {
    'resnet50': {},
    'vit_tiny_patch16_224': dict(img_size=32),
    'convnext_atto': {},
    'swin_tiny_patch4_window7_224': dict(img_size=32, window_size=4),
    'eva02_tiny_patch14_224': dict(img_size=32, patch_size=16),
    'regnety_002': {},
}


@pytest.mark.parametrize('hooked', [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    'name', [n if n in ('resnet50', 'convnext_atto') else pytest.param(n, marks=pytest.mark.long) for n in NETWORKS]
)
@pytest.mark.parametrize('method, settings', METHODS)
def test_no_decision_reads_a_tensor_of_the_model_device(method, settings, name, hooked):
    # there is nothing to read on the meta device: whatever waits for a value raises
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=4, **NETWORKS[name])
    ts.apply_stochastic_depth(model, method, 'DropPath', 0.5, 'uniform', **settings)
    model.train()
    if hooked:
        for module in model.modules():
            module.register_forward_hook(lambda m, args, y: None)
    for rate in (0.5, 0.2):
        ts.set_drop_rate(model, rate)
        for _ in range(2):
            model(images(4, 32).to('meta')).sum().backward()
    with ts.no_drop(model):
        model(images(4, 32).to('meta')).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', ['resnet50', 'vit_tiny_patch16_224', 'convnext_atto'])
@pytest.mark.parametrize('method, settings', METHODS)
def test_no_decision_synchronizes_with_the_gpu(method, settings, name):
    model = timm.create_model(name, **(dict(img_size=64) if 'vit' in name else {}))
    ts.apply_stochastic_depth(model, method, 'DropPath', 0.5, 'uniform', **settings)
    model.to('cuda').train()
    x = images(4, 64).to('cuda')
    model(x).sum().backward()  # cuDNN's choice of algorithms may wait
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(4):
            model(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


def kept_bytes(model, x):
    with kept_storages(model) as sizes:
        model(x)
    return list(sizes.values())


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_masking_keeps_one_number_a_sample_and_block_for_the_backward_pass(name):
    layer = 'ResNetBasicBlock' if '18' in name else 'ResNetBottleneck'
    model = timm.create_model(name).train()
    x = images(5, 64)
    plain = kept_bytes(model, x)
    ts.apply_stochastic_depth(model, 'sample', layer, 0.6, 'uniform')
    drawn = note_draws(model)
    masked = kept_bytes(model, x)
    num_masked = sum(not keep_N.all() for keep_N in drawn)  # a block that keeps all samples is a plain one
    assert len(drawn) == len(ts.drop_rates(model)) and num_masked
    assert sum(masked) == sum(plain) + num_masked * 5 * 4
    assert masked.count(5 * 4) == plain.count(5 * 4) + num_masked
