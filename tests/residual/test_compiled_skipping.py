"""Samples that are skipped within one compiled graph: the draws, both directions, convolutions, and whole networks."""

import copy

import pytest
import torch
import torch._inductor.config
from family_networks import create_family, family_images
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.profiler import ProfilerActivity, profile

import timm_stochdepth as ts
from timm_stochdepth.draws.bernoulli import Draws, draw_keep_samples
from timm_stochdepth.residual.conv_layout import known_layout
from timm_stochdepth.residual.skip_in_graph import add_branch_in_graph, draw_in_graph, split_input_in_graph

VIT, CONVNEXT = 'vision_transformer.Block', 'convnext.ConvNeXtBlock'


pytestmark = pytest.mark.usefixtures('fresh_compiler')


def draw_to_run(x, keep_prob, scale_by_keep):
    scale = 1 / keep_prob.item() if scale_by_keep and keep_prob > 0 else 1.0
    return draw_in_graph(Draws(), keep_prob, 0, scale, False, x)


def create(family, rate=0.5):
    return create_family(family, 'sample', rate, scale_by_keep=True, skip_dropped=True).double()


def images(family, batch_size=4):
    torch.manual_seed(1)
    return family_images(family, batch_size).double()


def gradients(model, run, x, seed=3):
    model.zero_grad()
    torch.manual_seed(seed)
    y = run(x)
    y.square().mean().backward()
    return [y.detach(), *(p.grad for p in model.parameters())]


def assert_same(tensors, expected):
    for tensor, reference in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('rate', [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize('scale_by_keep', [False, True])
def test_those_who_run_are_those_who_keep_their_branch_and_two_at_least(rate, scale_by_keep):
    for seed in range(20):
        torch.manual_seed(seed)
        run_K, _, row_N, keep_N = draw_to_run(torch.empty(7, 3), torch.tensor(1.0 - rate), scale_by_keep)
        torch.manual_seed(seed)
        torch.testing.assert_close(keep_N, draw_keep_samples(torch.empty(7), rate, scale_by_keep))
        kept = keep_N.nonzero().flatten().tolist()
        run = run_K.tolist()
        assert len(run) == len(set(run)) and set(kept) <= set(run) and len(run) == max(len(kept), 2)
        assert [run[row_N[sample]] for sample in kept] == kept
        assert row_N.min() >= 0 and row_N.max() < len(run)


@pytest.mark.parametrize('branch_is_left', [False, True])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_derivatives_are_those_of_the_formula(memory_format, branch_is_left):
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3, 3, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weight = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    for rate in (0.5, 1.0):
        drawn = draw_to_run(x, torch.tensor(1.0 - rate), True)

        def skipped(x, weight, drawn=drawn):
            shortcut, x_K = split_input_in_graph(x, drawn)
            return add_branch_in_graph(shortcut, (x_K * weight).sin(), drawn, branch_is_left=branch_is_left)

        def formula(x, weight, drawn=drawn):
            return x + drawn.keep_N.view(-1, 1, 1, 1) * (x * weight).sin()

        y, expected = skipped(x, weight), formula(x, weight)
        assert y.is_contiguous(memory_format=memory_format)
        cotangent = torch.randn_like(y)
        assert_same(
            [y, *torch.autograd.grad(y, (x, weight), cotangent)],
            [expected, *torch.autograd.grad(expected, (x, weight), cotangent)],
        )


@pytest.mark.parametrize('branch_is_left', [False, True])
def test_a_sum_has_the_memory_format_of_the_plain_sum(branch_is_left):
    shortcut = torch.randn(3, 4, 2, 2)
    branch = torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last)
    y = add_branch_in_graph(
        shortcut, branch, draw_to_run(shortcut, torch.tensor(1.0), True), branch_is_left=branch_is_left
    )
    plain = branch + shortcut if branch_is_left else shortcut + branch
    assert torch.equal(y, plain) and y.stride() == plain.stride()


def test_what_ran_and_is_not_kept_leaves_no_trace():
    drawn = draw_to_run(torch.empty(3, 1), torch.tensor(0.0), True)
    shortcut = torch.ones(3, 2, requires_grad=True)
    branch = torch.full((2, 2), torch.nan, requires_grad=True)
    y = add_branch_in_graph(shortcut, branch, drawn, branch_is_left=False)
    y.sum().backward()
    assert torch.equal(y, shortcut) and not branch.grad.any()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_sum_has_the_type_of_the_plain_sum(dtype):
    for types in ((dtype, dtype), (torch.float32, dtype), (dtype, torch.float32)):
        shortcut, branch = (torch.randn(4, 3, dtype=t, requires_grad=True) for t in types)
        drawn = draw_to_run(shortcut, torch.tensor(1.0), True)
        y = add_branch_in_graph(shortcut, branch, drawn, branch_is_left=True)
        torch.testing.assert_close(y, shortcut + branch)
        y.sum().backward()
        assert shortcut.grad.dtype == types[0] and branch.grad.dtype == types[1]


CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 8, 3, stride=2, padding=(0, 1), groups=2, bias=False),
    nn.Conv2d(4, 4, 7, padding=3, groups=4),
    nn.Conv2d(4, 4, (3, 2), padding='same', dilation=(2, 1)),
    nn.Conv2d(4, 4, 3, padding='valid'),
    nn.Conv1d(4, 6, 3, padding=2),
    nn.Conv3d(4, 2, 2, stride=2),
]


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('convolution', CONVOLUTIONS, ids=lambda c: f'{type(c).__name__}-{c.padding}')
def test_a_convolution_of_known_layout_is_pytorchs(convolution, memory_format):
    convolution = copy.deepcopy(convolution).double()
    x = torch.randn(3, 4, *[8] * (convolution.weight.ndim - 2), dtype=torch.float64)
    if x.ndim == 4:
        x = x.to(memory_format=memory_format)
    outputs = []
    for context in (torch.enable_grad(), known_layout(convolution)):
        inputs = [x.detach().requires_grad_(), *convolution.parameters()]
        with context:
            y = convolution(inputs[0])
        outputs.append([y, *torch.autograd.grad(y.sin().sum(), inputs)])
    assert_same(outputs[1], outputs[0])
    if x.ndim == 4:
        assert outputs[1][0].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('weight_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('has_bias', [True, False])
def test_the_compiler_is_told_the_truth_about_convolutions(has_bias, memory_format, weight_format):
    x = torch.randn(3, 4, 8, 8).to(memory_format=memory_format).requires_grad_()
    weight = torch.randn(6, 2, 3, 3).to(memory_format=weight_format).requires_grad_()
    bias = torch.randn(6, requires_grad=True)
    args = (x, weight, bias if has_bias else None, [2, 2], [1, 0], [1, 1], 2)
    torch.library.opcheck(torch.ops.timm_stochdepth.convolution.default, args)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_convolution_of_known_layout_under_autocast(dtype):
    convolution, x = nn.Conv2d(4, 6, 3), torch.randn(3, 4, 8, 8)
    with torch.autocast('cpu', dtype):
        y = convolution(x)
        with known_layout(convolution):
            assert torch.equal(convolution(x), y) and y.dtype == dtype


@pytest.mark.parametrize(
    'family',
    [
        pytest.param(CONVNEXT, marks=pytest.mark.long),  # with convolutions
        *(
            pytest.param(name, marks=pytest.mark.families)
            for name in (
                VIT,
                'swin_transformer.SwinTransformerBlock',
                'davit.SpatialBlock',
                'eva.EvaBlock',
                'focalnet.FocalNetBlock',
                'maxxvit.ConvNeXtBlock',
                'metaformer.MetaFormerBlock',
                'pvt_v2.Block',
                'twins.Block',
            )
        ),
    ],
)
def test_inductor_makes_one_graph_for_all_draws_and_rates(family):
    if tuple(map(int, torch.__version__.split('.')[:2])) < (2, 13):
        pytest.skip('inductor fails on a plain ViT in double precision up to torch 2.12, on a plain ConvNeXt on 2.7')
    torch.set_default_dtype(torch.float64)  # of constants that a network makes in its forward pass
    try:
        model, x = create(family), images(family)
        eager = copy.deepcopy(model)
        counter = CompileCounterWithBackend('inductor')
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        counts = []
        # in the order of the forward pass the draws are those of eager mode
        with torch._inductor.config.patch(reorder_for_peak_memory=False, reorder_for_locality=False):
            for seed in range(6):
                if seed >= 4:
                    ts.set_drop_rate(model, seed / 6)
                    ts.set_drop_rate(eager, seed / 6)
                assert_same(gradients(model, compiled, x, seed), gradients(eager, eager, x, seed))
                counts.append(counter.frame_count)
        # in double precision the compiler may begin anew, and count twice, before a first graph is there
        assert counts[0] <= 2 and counts[:4] == counts[:1] * 4 and counts[4:] == counts[4:5] * 2
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('rate', [pytest.param(0.95, marks=pytest.mark.long), 1.0])
def test_a_batch_that_keeps_next_to_nothing(rate):
    model, x = create(VIT, rate), images(VIT, 2)
    eager = copy.deepcopy(model)
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for seed in range(6):
        assert_same(gradients(model, compiled, x, seed), gradients(eager, eager, x, seed))
    assert counter.frame_count == 1


@pytest.mark.long
def test_a_smaller_last_batch_and_a_batch_of_one():
    model = create(VIT)
    eager = copy.deepcopy(model)
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    frames = []
    for batch_size in (4, 4, 3, 4, 3, 2, 5, 1, 4):
        x = images(VIT, batch_size)
        assert_same(gradients(model, compiled, x), gradients(eager, eager, x))
        frames.append(counter.frame_count)
    # one for 4, one for any number, one for 1: as many as a plain network has
    assert frames[-1] == 3 and frames[6] == 2


def test_what_is_dropped_is_not_computed():
    model, x = create(VIT, 0.5), images(VIT, 8)
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)  # whose matrix products the profiler sees
    compiled(x)
    num_rows = []
    for seed in range(5):
        torch.manual_seed(seed)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            compiled(x)
        num_rows.append([e.input_shapes[1][0] for e in profiler.events() if e.name == 'aten::addmm'])
        torch.manual_seed(seed)
        kept = [max(int(draw_keep_samples(x.new_empty(8), 0.5).sum()), 2) for _ in range(6)]
        # in each of three blocks, query-key-value and projection, then two layers of the MLP, on 5 tokens a sample
        assert [n // 5 for n in num_rows[-1][:12]] == [n for n in kept for _ in range(2)]
    assert len(set(map(tuple, num_rows))) == 5


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.long)])
def test_checkpointing_recomputes_what_was_drawn(backend):
    model, x = create(VIT), images(VIT)
    eager = copy.deepcopy(model)
    model.set_grad_checkpointing(True)
    compiled = torch.compile(model, backend=backend)
    with torch._inductor.config.patch(reorder_for_peak_memory=False, reorder_for_locality=False):
        for seed in range(3):
            assert_same(gradients(model, compiled, x, seed), gradients(eager, eager, x, seed))


@pytest.mark.parametrize('family', [pytest.param(family, marks=pytest.mark.long) for family in (VIT, CONVNEXT)])
def test_autocast(family):
    model, x = create(family).float(), images(family).float()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    for seed in range(2):
        with torch.autocast('cpu', torch.bfloat16):
            torch.manual_seed(seed)
            y = compiled(x)
            torch.manual_seed(seed)
            expected = model(x)
        assert y.dtype == torch.bfloat16
        # eager mode adds in bfloat16 what the graph adds in float32
        assert (y - expected).abs().max() <= 2e-2 * expected.abs().max()
        y.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
