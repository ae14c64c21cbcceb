"""Residual additions of a branch that runs for a part of the batch, within a graph that torch.compile makes.

The number of samples that run a branch is known when they are drawn, in the graph, and a size there. Both directions
gather: a scatter would need a tensor of zeros, and a compiler fuses it with nothing.
"""
from typing import Any, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch._library.fake_impl import allocate_size

from ..draws.bernoulli import draw_keep_samples, host_dtype
from .mask import per_sample
from .skip import take_kept

__all__ = ['MIN_RUN', 'Drawn', 'add_drawn', 'break_graph_in_checkpoint', 'draw_to_run', 'select_drawn']

# sizes of 0 and 1 are special to the compiler: where fewer samples are kept, others run, whose factor is 0
MIN_RUN = 2


class Drawn(NamedTuple):
    """Which samples of a batch run a branch.

    Attributes:
        run_K: Indices of the K samples that run it, each once, shape (K,): those that keep it, and MIN_RUN at least.
        row_N: For each sample its row in the branch's result, shape (N,); without meaning where it runs none.
        keep_N: Factor of each sample's branch, shape (N,), as `draw_keep_samples` gives it.
    """
    run_K: Tensor
    row_N: Tensor
    keep_N: Tensor


torch.library.define(
    'timm_stochdepth::draw_to_run',
    '(Tensor keep_prob, SymInt num_samples, bool scale_by_keep, ScalarType dtype, Device device)'
    ' -> (Tensor, Tensor, Tensor)',
    tags=(torch.Tag.nondeterministic_seeded,),
)


@torch.library.impl('timm_stochdepth::draw_to_run', 'cpu')
def _(
        keep_prob: Tensor,
        num_samples: int,
        scale_by_keep: bool,
        dtype: torch.dtype,
        device: torch.device,
) -> Tuple[Tensor, Tensor, Tensor]:
    # on the CPU: how many samples run is a shape, which a device would have to be asked for
    like = torch.empty((num_samples,), dtype=dtype, device='cpu')
    keep_N = draw_keep_samples(like, 1. - keep_prob.item(), scale_by_keep)
    runs_N = keep_N > 0.
    dropped = (~runs_N).nonzero().flatten()
    num_kept = num_samples - dropped.numel()
    runs_N[dropped[:max(MIN_RUN - num_kept, 0)]] = True
    row_N = runs_N.cumsum(0).sub_(1).clamp_(min=0)
    run_K = runs_N.nonzero().flatten()
    return (
        run_K.to(device, non_blocking=True),
        row_N.to(device, non_blocking=True),
        keep_N.to(device, non_blocking=True),
    )


@torch.library.register_fake('timm_stochdepth::draw_to_run')
def _(
        keep_prob: Tensor,
        num_samples: int,
        scale_by_keep: bool,
        dtype: torch.dtype,
        device: torch.device,
) -> Tuple[Tensor, Tensor, Tensor]:
    # `new_dynamic_size` in public is for users who have set capture_dynamic_output_shape_ops
    num_run = allocate_size(
        torch.library.get_ctx()._shape_env, MIN_RUN, num_samples if isinstance(num_samples, int) else None)
    return (
        torch.empty((num_run,), dtype=torch.int64, device=device),
        torch.empty((num_samples,), dtype=torch.int64, device=device),
        torch.empty((num_samples,), dtype=dtype, device=device),
    )


def break_graph_in_checkpoint() -> None:
    """Leave activation checkpointing to eager mode, which runs compiled graphs within, and restores generators.

    Inductor (torch 2.14) has no recomputation of an operator whose result has a size that it does not know.
    """
    from torch._dynamo.comptime import comptime

    comptime(_break_graph_in_checkpoint)


def _break_graph_in_checkpoint(context: Any) -> None:
    translator = context._i_will_not_complain_if_bc_breaks_InstructionTranslator()
    if not translator.output.is_root_tracer():  # but within the operator that a checkpoint is to the compiler
        context.graph_break()


def draw_to_run(x: Tensor, keep_prob: Tensor, scale_by_keep: bool) -> Drawn:
    """Draw which samples run a branch, from the CPU's generator; the draws are those of `draw_keep_samples` there.

    Args:
        x: Shape (N, ...), N >= MIN_RUN, gives batch size, dtype and device.
        keep_prob: Probability that a sample is kept, shape (), on the CPU; its value may change without a new graph.
        scale_by_keep: Divide what is kept by its probability.
    """
    draw = torch.ops.timm_stochdepth.draw_to_run
    return Drawn(*draw(keep_prob, x.shape[0], scale_by_keep, host_dtype(x), x.device))


def _where_kept(keep_N: Tensor, x: Tensor) -> Tensor:
    """x where a sample is kept, elsewhere 0, whatever there is in x."""
    return torch.where(per_sample(keep_N, x) > 0., x, 0.)


class _SelectDrawn(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, run_K: Tensor, row_N: Tensor, keep_N: Tensor) -> Tuple[Tensor, Tensor]:
        ctx.save_for_backward(row_N, keep_N)
        return x.view_as(x), take_kept(x, run_K)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        row_N, keep_N = ctx.saved_tensors
        grad_shortcut, grad_run = grad_outputs
        return grad_shortcut + _where_kept(keep_N, take_kept(grad_run, row_N)), None, None, None


def select_drawn(x: Tensor, drawn: Drawn) -> Tuple[Tensor, Tensor]:
    """Split the input of a block into that of its shortcut, shape (N, ...), and that of its branch, shape (K, ...)."""
    shortcut, x_run = _SelectDrawn.apply(x, *drawn)
    return shortcut, x_run


class _AddDrawn(torch.autograd.Function):

    @staticmethod
    def forward(
            ctx: Any,
            shortcut: Tensor,
            branch: Tensor,
            run_K: Tensor,
            row_N: Tensor,
            keep_N: Tensor,
            branch_first: bool,
    ) -> Tensor:
        ctx.save_for_backward(run_K, keep_N)
        branch = take_kept(branch, row_N)
        branch = _where_kept(keep_N, branch * per_sample(keep_N, branch))
        return branch + shortcut if branch_first else shortcut + branch

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        run_K, keep_N = ctx.saved_tensors
        grad, = grad_outputs
        return grad, take_kept(grad, run_K) * per_sample(keep_N[run_K], grad), None, None, None, None


def add_drawn(shortcut: Tensor, branch: Tensor, drawn: Drawn, branch_first: bool) -> Tensor:
    """`shortcut + keep_N * branch`, of a branch that ran for some of the samples.

    Args:
        shortcut: Shape (N, ...).
        branch: Shape (K, ...), its samples are those at run_K.
        drawn: Which ran it.
        branch_first: The sum has the memory format of `branch + shortcut`, and not of `shortcut + branch`.
    """
    dtype = torch.promote_types(shortcut.dtype, branch.dtype)
    run_K, row_N, keep_N = drawn
    total: Tensor = _AddDrawn.apply(
        shortcut.to(dtype), branch.to(dtype), run_K, row_N, keep_N.to(dtype), branch_first)
    return total
