"""Residual additions of a branch that ran for a part of the batch, in a graph that torch.compile makes.

Both directions gather: a scatter would need zeros, and a compiler fuses it with nothing. Samples may run whose factor
is 0, since sizes of 0 and 1 are special to a compiler.
"""
from typing import Any, Optional, Tuple, Union, cast

import torch
from torch import Tensor
from torch._library.fake_impl import allocate_size

from ..draws.bernoulli import Draws, host_dtype
from ..draws.fixed import FixedDraws, select_fixed
from ..draws.selection import Selection, rows_to_run, tell_device
from .gather import gather
from .mask import per_sample

__all__ = ['MIN_RUN', 'add_branch_in_graph', 'draw_in_graph', 'select_input_in_graph', 'split_input_in_graph']

# where fewer samples are kept, others run, too
MIN_RUN = 2


def _on(device: torch.device, is_kept_N: Tensor, round_up: bool) -> Tuple[Tensor, Tensor]:
    """Choose the samples that run a branch, MIN_RUN of them at least, and tell a device in one copy.

    Args:
        device: That of the branch.
        is_kept_N: 0 where a sample is dropped, else 1, shape (N,), N >= MIN_RUN, on the CPU.
        round_up: Whether more samples run, see `rows_to_run`.

    Returns:
        Indices of the samples that run, those that are kept first, shape (K,), and how many are kept up to each, shape
        (N,).
    """
    run_K = is_kept_N.nonzero().view(-1)
    num_kept_N = is_kept_N.cumsum(0, dtype=torch.int64)
    num_kept, num_samples = run_K.shape[0], is_kept_N.shape[0]
    num_run = max(rows_to_run(num_kept, num_samples) if round_up else num_kept, MIN_RUN)
    if num_run > num_kept:
        run_K = torch.cat([run_K, (is_kept_N == 0.).nonzero().view(-1)[:num_run - num_kept]])
    if device.type == 'cpu':
        return run_K, num_kept_N
    packed = tell_device(torch.cat([num_kept_N, run_K]), device)
    return packed[num_samples:].clone(), packed[:num_samples]  # no result is a view of the other


# how many samples run a branch is a size in the graph, known when they are drawn: on the CPU, as a device would have to
# be asked for it. Operators of their own, since a compiler has other random numbers than eager mode.
torch.library.define(
    'timm_stochdepth::draw_selection',
    '(Tensor keep_prob, SymInt num_samples, bool round_up, ScalarType dtype, Device device) -> (Tensor, Tensor)',
    tags=(torch.Tag.nondeterministic_seeded,),
)
torch.library.define(
    'timm_stochdepth::select',
    '(Tensor keep_N, bool round_up, Device device) -> (Tensor, Tensor)',
)


@torch.library.impl('timm_stochdepth::draw_selection', 'cpu')
def _(
        keep_prob: Tensor,
        num_samples: int,
        round_up: bool,
        dtype: torch.dtype,
        device: torch.device,
) -> Tuple[Tensor, Tensor]:
    # as `draw_keep_samples`
    return _on(device, torch.empty(num_samples, dtype=dtype, device='cpu').bernoulli_(keep_prob.item()), round_up)


@torch.library.impl('timm_stochdepth::select', 'cpu')
def _(keep_N: Tensor, round_up: bool, device: torch.device) -> Tuple[Tensor, Tensor]:
    return _on(device, (keep_N != 0.).to(keep_N.dtype), round_up)


def _fake_selection(num_samples: int, device: torch.device) -> Tuple[Tensor, Tensor]:
    # `new_dynamic_size` in public is for users who have set capture_dynamic_output_shape_ops
    num_run = allocate_size(
        torch.library.get_ctx()._shape_env, MIN_RUN, num_samples if isinstance(num_samples, int) else None)
    run_K = torch.empty((num_run,), dtype=torch.int64, device=device)
    return run_K, torch.empty((num_samples,), dtype=torch.int64, device=device)


@torch.library.register_fake('timm_stochdepth::draw_selection')
def _(
        keep_prob: Tensor,
        num_samples: int,
        round_up: bool,
        dtype: torch.dtype,
        device: torch.device,
) -> Tuple[Tensor, Tensor]:
    return _fake_selection(num_samples, device)


@torch.library.register_fake('timm_stochdepth::select')
def _(keep_N: Tensor, round_up: bool, device: torch.device) -> Tuple[Tensor, Tensor]:
    return _fake_selection(keep_N.shape[0], device)


def draw_in_graph(
        draws: Draws,
        keep_prob: Tensor,
        keep_steps: int,
        scale: Union[Tensor, float],
        round_up: bool,
        shortcut: Tensor,
) -> Selection:
    """Draw which samples run a branch.

    Args:
        draws: What draws.
        keep_prob: Probability that a sample is kept, shape (1,), on the CPU.
        keep_steps: The same as a whole number, see `select_fixed`.
        scale: Factor of what is kept, on the device of the branch.
        round_up: Whether more samples run, see `rows_to_run`.
        shortcut: Shape (N, ...), N >= MIN_RUN.
    """
    num_samples, dtype, device = shortcut.shape[0], host_dtype(shortcut), shortcut.device
    if type(draws) is FixedDraws:
        (run_K, num_sure, row_N, keep_N), = select_fixed([max(keep_steps, 1)], shortcut)
        # _replace is no part of a graph of torch 2.7
        return Selection(run_K, num_sure, row_N, cast(Tensor, keep_N) * scale)
    if type(draws) is Draws:
        run_K, num_kept_N = torch.ops.timm_stochdepth.draw_selection(keep_prob, num_samples, round_up, dtype, device)
    else:
        keep_N = draws.samples(torch.empty((num_samples,), dtype=dtype, device='cpu'), 1. - keep_prob)
        run_K, num_kept_N = torch.ops.timm_stochdepth.select(keep_N, round_up, device)
    is_kept_N = num_kept_N.diff(prepend=num_kept_N.new_zeros(1))
    return Selection(run_K, 0, num_kept_N.sub(1).clamp(min=0), is_kept_N.to(dtype) * scale)


def _where_kept(keep_N: Tensor, x: Tensor) -> Tensor:
    """x where a sample is kept, elsewhere 0, whatever there is in x."""
    return torch.where(per_sample(keep_N, x) > 0., x, 0.)


class _SplitInput(torch.autograd.Function):
    """The input twice: whole for the shortcut, and of the samples that run for the branch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run_K: Tensor, row_N: Tensor, keep_N: Tensor) -> Tuple[Tensor, Tensor]:
        ctx.save_for_backward(row_N, keep_N)
        return x.view_as(x), gather(x, run_K)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad_shortcut, grad_run = grad_outputs
        row_N, keep_N = ctx.saved_tensors
        return grad_shortcut + _where_kept(keep_N, gather(grad_run, row_N)), None, None, None


def split_input_in_graph(x: Tensor, selection: Selection) -> Tuple[Tensor, Tensor]:
    """The input of a block for its shortcut, and its samples that run the branch."""
    shortcut, x_run = _SplitInput.apply(x, selection.run_K, selection.row_N, selection.keep_N)
    return shortcut, x_run


class _Select(torch.autograd.Function):
    """The samples that run of what is an input of the branch alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run_K: Tensor, row_N: Tensor, keep_N: Tensor) -> Tensor:
        ctx.save_for_backward(row_N, keep_N)
        return gather(x, run_K)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad_run, = grad_outputs
        row_N, keep_N = ctx.saved_tensors
        return _where_kept(keep_N, gather(grad_run, row_N)), None, None, None


def select_input_in_graph(x: Tensor, selection: Selection) -> Tensor:
    """The samples that run of what is an input of the branch alone."""
    x_run: Tensor = _Select.apply(x, selection.run_K, selection.row_N, selection.keep_N)
    return x_run


class _AddBranch(torch.autograd.Function):

    @staticmethod
    def forward(
            ctx: Any,
            shortcut: Tensor,
            branch: Tensor,
            run_K: Tensor,
            row_N: Tensor,
            keep_N: Tensor,
            branch_is_left: bool,
    ) -> Tensor:
        ctx.save_for_backward(run_K, keep_N)
        branch = gather(branch, row_N)
        branch = _where_kept(keep_N, branch * per_sample(keep_N, branch))
        return branch + shortcut if branch_is_left else shortcut + branch

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        run_K, keep_N = ctx.saved_tensors
        grad, = grad_outputs
        return grad, gather(grad, run_K) * per_sample(keep_N[run_K], grad), None, None, None, None


def add_branch_in_graph(
        shortcut: Tensor,
        branch: Tensor,
        selection: Selection,
        branch_is_left: bool = False,
) -> Tensor:
    """`shortcut + keep_N * branch`, of a branch that ran for some of the samples.

    Args:
        shortcut: Shape (N, ...).
        branch: Shape (K, ...), its samples are those at run_K.
        selection: Which ran it, and their factors.
        branch_is_left: The sum has the memory format of `branch + shortcut`, and not of `shortcut + branch`.

    Returns:
        A tensor of its own memory, shape (N, ...).
    """
    run_K, _, row_N, keep_N = cast(Tuple[Tensor, int, Tensor, Tensor], selection)
    dtype = torch.promote_types(shortcut.dtype, branch.dtype)
    total: Tensor = _AddBranch.apply(
        shortcut.to(dtype), branch.to(dtype), run_K, row_N, keep_N.to(dtype), branch_is_left)
    return total
