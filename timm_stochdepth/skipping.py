"""Residual additions of a branch that ran for a part of the batch, or not at all.

The backward passes touch what is needed and no more: no tensor of zeros is filled to be added, and what a function
made itself is written to in place. Under `create_graph`, where that would be wrong, they are plain operations.
"""
from typing import Any, Optional, Sequence, Tuple

import torch
from torch import Tensor

__all__ = ['add_kept_branch', 'select_kept', 'skip_branch']


def _index_select(x: Tensor, kept: Tensor) -> Tensor:
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        # index_select alone would give a contiguous tensor, and be slow at it
        return x.permute(0, 2, 3, 1).index_select(0, kept).permute(0, 3, 1, 2)
    return x.index_select(0, kept)


def _relu_backward(grad: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(grad, y, 0)


class _SelectKept(torch.autograd.Function):
    """The input twice: whole for the shortcut, its kept samples for the branch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, owns_grad: bool) -> Tuple[Tensor, Tensor]:
        ctx.save_for_backward(kept)
        ctx.owns_grad = owns_grad
        return x.view_as(x), _index_select(x, kept)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        kept, = ctx.saved_tensors
        grad_shortcut, grad_kept = grad_outputs
        if not ctx.owns_grad or torch.is_grad_enabled():
            grad_shortcut = grad_shortcut.clone()
        return grad_shortcut.index_add_(0, kept, grad_kept), None, None


def select_kept(x: Tensor, kept: Tensor, owns_grad: bool = False) -> Tuple[Tensor, Tensor]:
    """Split the input of a block into that of its shortcut and that of its branch.

    Args:
        x: Shape (N, ...), contiguous or channels_last, which the second output then is, too.
        kept: Indices of the K samples that keep their branch, each once, shape (K,).
        owns_grad: The first output goes into `add_kept_branch` with `relu`, and nowhere else: the gradient that
            comes back is of that function's own making, and is added to in place.

    Returns:
        x itself, not to be written to, and its kept samples, shape (K, ...).
    """
    return _SelectKept.apply(x, kept, owns_grad)


class _AddKeptBranch(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, shortcut: Tensor, branch: Tensor, kept: Tensor, scale: float, relu: bool) -> Tensor:
        y = shortcut.clone().index_add_(0, kept, branch, alpha=scale)  # index_add would give a contiguous tensor
        ctx.scale = scale
        if relu:
            y.relu_()
        ctx.save_for_backward(kept, *((y,) if relu else ()))
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        kept, *outputs = ctx.saved_tensors
        grad, = grad_outputs
        for y in outputs:
            grad = _relu_backward(grad, y)
        grad_branch = _index_select(grad, kept)
        if ctx.scale != 1.:
            grad_branch = grad_branch * ctx.scale
        return grad, grad_branch, None, None, None


def add_kept_branch(
        shortcut: Tensor,
        branch: Tensor,
        kept: Tensor,
        scale: float = 1.,
        relu: bool = False,
) -> Tensor:
    """`shortcut + keep_N * scale * branch`, of a branch that ran for the samples with keep_N = 1 alone.

    Args:
        shortcut: Shape (N, ...).
        branch: Shape (K, ...), its samples are those at kept.
        kept: Indices of the K samples that keep their branch, each once, shape (K,).
        scale: Factor of the branch.
        relu: Apply a ReLU to the sum.

    Returns:
        A tensor of its own memory, shape (N, ...).
    """
    dtype = torch.result_type(shortcut, branch)
    return _AddKeptBranch.apply(shortcut.to(dtype), branch.to(dtype), kept, scale, relu)


class _SkipBranch(torch.autograd.Function):
    """Identity on the shortcut, with a gradient of zero for the parameters of the branch that did not run."""

    @staticmethod
    def forward(ctx: Any, shortcut: Tensor, relu: bool, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        # never the shortcut's own memory: it may be the block's input, and an activation in place may follow
        y = torch.relu(shortcut) if relu else shortcut.clone()
        ctx.save_for_backward(*((y,) if relu else ()))
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad, = grad_outputs
        for y in ctx.saved_tensors:
            grad = _relu_backward(grad, y)
        needed = ctx.needs_input_grad[2:]
        return (grad, None, *(torch.zeros_like(p) if n else None for p, n in zip(ctx.parameters, needed)))


def skip_branch(shortcut: Tensor, parameters: Sequence[Tensor], relu: bool = False) -> Tensor:
    """`shortcut + 0 * branch`, without the branch: its parameters get the gradient that the formula gives, zero.

    DistributedDataParallel waits for a gradient of every parameter (https://github.com/pytorch/pytorch/issues/90171),
    and momentum and weight decay go on for a dropped block as they do in the paper.

    Args:
        shortcut: Shape (N, ...).
        parameters: Those of the branch alone.
        relu: Apply a ReLU to the shortcut.

    Returns:
        A tensor of its own memory, shape (N, ...).
    """
    return _SkipBranch.apply(shortcut, relu, *parameters)
