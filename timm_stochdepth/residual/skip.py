"""Residual additions of a branch that ran for a part of the batch, in eager mode.

The backward passes touch what is needed and no more: no tensor of zeros is filled to be added, and on a GPU nothing is
summed atomically. Forward and backward pass share one object, which costs less than tensors that autograd is told of.
"""
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from ..draws.selection import Selection
from .gather import gather
from .mask import add_product, format_of_sum, per_sample

__all__ = ['add_branch_of_some', 'select_input', 'split_input']


def _add_rows(
        total: Tensor,
        rows: Tensor,
        selection: Selection,
        scale: float = 1.,
        memory_format: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """`total`, shape (N, ...), and the rows of the samples that ran, shape (K, ...), added in memory of its own."""
    run_K, _, row_N, keep_N = selection
    if row_N is None or keep_N is None:
        rows = rows if rows.dtype == total.dtype else rows.to(total.dtype)
        if total.ndim != 4 and total.is_contiguous():
            return total.index_add(0, run_K, rows, alpha=scale)
        # index_add would give a contiguous tensor
        return total.clone(memory_format=memory_format).index_add_(0, run_K, rows, alpha=scale)
    # on a GPU index_add_ is atomic, and in half precision many times slower than memory is
    if memory_format != torch.preserve_format:
        total = total.contiguous(memory_format=memory_format)
    return add_product(total, gather(rows, row_N), per_sample(keep_N, total), value=scale)


class _SplitInput(torch.autograd.Function):
    """The input twice: whole for the shortcut, and of the samples that run for the branch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, selection: Selection) -> Tuple[Tensor, Tensor]:
        ctx.selection = selection
        return x, gather(x, selection.run_K)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad, grad_run = grad_outputs
        return _add_rows(grad, grad_run, ctx.selection), None


def split_input(x: Tensor, selection: Selection) -> Tuple[Tensor, Tensor]:
    """Split the input of a block into that of its shortcut and that of its branch.

    Args:
        x: Shape (N, ...), contiguous or channels_last, which the second output then is, too.
        selection: Which samples run the branch.

    Returns:
        x itself, not to be written to, and its samples that run, shape (K, ...).
    """
    shortcut, x_run = _SplitInput.apply(x, selection)
    return shortcut, x_run


class _Select(torch.autograd.Function):
    """Rows of a tensor; the gradient of the others is zero, and that of these is copied, as each row is there once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run_K: Tensor) -> Tensor:
        ctx.run_K, ctx.shape = run_K, x.shape
        return gather(x, run_K)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad_run, = grad_outputs
        if grad_run.ndim == 4 and not grad_run.is_contiguous():  # channels_last, as the rows are
            grad = grad_run.permute(0, 2, 3, 1)
            zeros = grad.new_zeros((ctx.shape[0], *grad.shape[1:]))
            return zeros.index_copy(0, ctx.run_K, grad).permute(0, 3, 1, 2), None
        return grad_run.new_zeros(ctx.shape).index_copy(0, ctx.run_K, grad_run), None


def select_input(x: Tensor, selection: Selection) -> Tensor:
    """The samples that run of what is an input of the branch alone, shape (K, ...)."""
    x_run: Tensor = _Select.apply(x, selection.run_K)
    return x_run


class _AddBranchOfSome(torch.autograd.Function):

    @staticmethod
    def forward(
            ctx: Any,
            shortcut: Tensor,
            branch: Tensor,
            selection: Selection,
            scale: float,
            memory_format: torch.memory_format,
    ) -> Tensor:
        ctx.selection, ctx.scale, ctx.dtype = selection, scale, branch.dtype
        return _add_rows(shortcut, branch, selection, scale, memory_format)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad, = grad_outputs
        run_K, num_sure, _, keep_N = ctx.selection
        grad_run = gather(grad, run_K)
        if torch.is_grad_enabled():  # to be differentiated again
            grad_run = (grad_run * ctx.scale).to(ctx.dtype)
            return grad, grad_run if keep_N is None else grad_run * per_sample(keep_N[run_K], grad), None, None, None
        if grad_run.dtype != ctx.dtype:
            grad_run = torch.mul(grad_run, ctx.scale, out=torch.empty_like(grad_run, dtype=ctx.dtype))
        elif ctx.scale != 1.:
            grad_run.mul_(ctx.scale)
        if keep_N is not None and num_sure < len(grad_run):  # what runs for nothing has no gradient
            grad_run[num_sure:].mul_(per_sample(keep_N.index_select(0, run_K[num_sure:]), grad))
        return grad, grad_run, None, None, None


def add_branch_of_some(
        shortcut: Tensor,
        branch: Tensor,
        selection: Selection,
        scale: float = 1.,
        branch_is_left: bool = False,
) -> Tensor:
    """`shortcut + scale * branch` where a sample is kept, of a branch that ran for some of the samples.

    Args:
        shortcut: Shape (N, ...).
        branch: Shape (K, ...), its samples are those at run_K.
        selection: Which ran it.
        scale: Factor of the branch.
        branch_is_left: The sum has the memory format of `branch + shortcut`, and not of `shortcut + branch`.

    Returns:
        A tensor of its own memory, shape (N, ...).
    """
    if shortcut.dtype != branch.dtype:
        shortcut = shortcut.to(torch.result_type(shortcut, branch))
    memory_format = torch.preserve_format
    if shortcut.ndim == 4 or branch_is_left:
        memory_format = format_of_sum(shortcut, branch, branch_is_left)
    total: Tensor = _AddBranchOfSome.apply(shortcut, branch, selection, scale, memory_format)
    return total
