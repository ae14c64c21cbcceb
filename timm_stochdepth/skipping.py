"""Residual additions of a branch that ran for a part of the batch, or not at all.

The backward passes touch what is needed and no more: no tensor of zeros is filled to be added.
"""
from typing import Any, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .functional import format_of_sum, is_channels_last
from .transforms import is_transformed

__all__ = ['add_kept_branch', 'select_kept', 'skip_branch', 'take_kept']


def take_kept(x: Tensor, kept: Tensor) -> Tensor:
    """The kept samples of a tensor, shape (K, ...), contiguous or channels_last as it is."""
    if is_channels_last(x):
        # index_select alone would give a contiguous tensor, and be slow at it
        return x.permute(0, 2, 3, 1).index_select(0, kept).permute(0, 3, 1, 2)
    return x.index_select(0, kept)


class _SelectKept(torch.autograd.Function):
    """The input twice: whole for the shortcut, its kept samples for the branch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor) -> Tuple[Tensor, Tensor]:
        ctx.save_for_backward(kept)
        return x.view_as(x), take_kept(x, kept)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        kept, = ctx.saved_tensors
        grad_shortcut, grad_kept = grad_outputs
        return grad_shortcut.clone().index_add_(0, kept, grad_kept), None


def select_kept(x: Tensor, kept: Tensor) -> Tuple[Tensor, Tensor]:
    """Split the input of a block into that of its shortcut and that of its branch.

    Args:
        x: Shape (N, ...), contiguous or channels_last, which the second output then is, too.
        kept: Indices of the K samples that keep their branch, each once, shape (K,).

    Returns:
        x itself, not to be written to, and its kept samples, shape (K, ...).
    """
    if is_transformed():
        return x, take_kept(x, kept)
    return _SelectKept.apply(x, kept)


class _AddKeptBranch(torch.autograd.Function):

    @staticmethod
    def forward(
            ctx: Any,
            shortcut: Tensor,
            branch: Tensor,
            kept: Tensor,
            scale: float,
            memory_format: torch.memory_format,
    ) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(kept)
        # index_add would give a contiguous tensor
        return shortcut.clone(memory_format=memory_format).index_add_(0, kept, branch, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        kept, = ctx.saved_tensors
        grad, = grad_outputs
        grad_branch = take_kept(grad, kept)
        if ctx.scale != 1.:
            grad_branch = grad_branch * ctx.scale
        return grad, grad_branch, None, None, None


def add_kept_branch(
        shortcut: Tensor,
        branch: Tensor,
        kept: Tensor,
        scale: float = 1.,
        branch_first: bool = False,
) -> Tensor:
    """`shortcut + keep_N * scale * branch`, of a branch that ran for the samples with keep_N = 1 alone.

    Args:
        shortcut: Shape (N, ...).
        branch: Shape (K, ...), its samples are those at kept.
        kept: Indices of the K samples that keep their branch, each once, shape (K,).
        scale: Factor of the branch.
        branch_first: The sum has the memory format of `branch + shortcut`, and not of `shortcut + branch`.

    Returns:
        A tensor of its own memory, shape (N, ...).
    """
    dtype = torch.result_type(shortcut, branch)
    if is_transformed():
        return shortcut.to(dtype).index_add(0, kept, branch.to(dtype), alpha=scale)
    memory_format = format_of_sum(shortcut, branch, branch_first)
    return _AddKeptBranch.apply(shortcut.to(dtype), branch.to(dtype), kept, scale, memory_format)


class _SkipBranch(torch.autograd.Function):
    """Identity on the shortcut, with a gradient of zero for the parameters of the branch that did not run."""

    @staticmethod
    def forward(ctx: Any, shortcut: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        # never the shortcut's own memory: it may be the block's input, and an activation in place may follow
        return shortcut.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        needed = ctx.needs_input_grad[1:]
        return (*grad_outputs, *(torch.zeros_like(p) if n else None for p, n in zip(ctx.parameters, needed)))


def skip_branch(shortcut: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """`shortcut + 0 * branch`, without the branch: its parameters get the gradient that the formula gives, zero.

    DistributedDataParallel waits for a gradient of every parameter (https://github.com/pytorch/pytorch/issues/90171),
    and momentum and weight decay go on for a dropped block as they do in the paper.

    Args:
        shortcut: Shape (N, ...).
        parameters: Those of the branch alone.

    Returns:
        A tensor of its own memory, shape (N, ...).
    """
    if is_transformed():  # which knows unused parameters, and gives them zeros by itself
        return shortcut.clone()
    return _SkipBranch.apply(shortcut, *parameters)
