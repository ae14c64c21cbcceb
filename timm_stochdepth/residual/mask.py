"""Add a branch that ran for the whole batch: masked or scaled, in one pass over memory."""
from typing import Any, Optional, Tuple, Union

import torch
from torch import Tensor

from ..capture import is_transformed

__all__ = [
    'add_branch',
    'add_masked_branch',
    'add_plain_branch',
    'add_product',
    'format_of_sum',
    'is_channels_last',
    'multiply_as',
    'per_sample',
]


def per_sample(factor_N: Tensor, x: Tensor) -> Tensor:
    """A factor for each sample, shape (N,), in a shape that x, (N, ...), can be multiplied with."""
    return factor_N.view([-1] + [1] * (x.ndim - 1))


def is_channels_last(x: Tensor) -> bool:
    """Whether a tensor has that memory format; a batch of tensors that PyTorch maps over says nothing of its memory."""
    try:
        return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    except RuntimeError:
        return False


def format_of_sum(shortcut: Tensor, branch: Tensor, branch_is_left: bool) -> torch.memory_format:
    """The memory format that PyTorch gives `branch + shortcut`, or `shortcut + branch`: that of the first."""
    first = branch if branch_is_left else shortcut
    if is_channels_last(first) and not first.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format if branch_is_left and first.is_contiguous() else torch.preserve_format


def add_plain_branch(shortcut: Tensor, branch: Tensor, inplace_add: bool = True, branch_is_left: bool = True) -> Tensor:
    """`shortcut + branch`, written as the plain block writes it.

    Args:
        shortcut: Shape (N, ...).
        branch: Shape (N, ...).
        inplace_add: The sum takes the branch's memory, as in `branch += shortcut`.
        branch_is_left: `branch + shortcut`, whose first operand gives the memory format.
    """
    if inplace_add:
        return branch.add_(shortcut)
    return branch + shortcut if branch_is_left else shortcut + branch


def add_branch(
        shortcut: Tensor,
        branch: Tensor,
        scale: float,
        inplace_add: bool = True,
        branch_is_left: bool = True,
) -> Tensor:
    """`shortcut + scale * branch` [paper, eq. 5], the scale at no cost of its own.

    Args:
        shortcut: Shape (N, ...).
        branch: Shape (N, ...).
        scale: Factor of the branch.
        inplace_add: The branch is of its own memory: without gradients the sum takes its place.
        branch_is_left: The sum has the memory format of `branch + shortcut`, and not of `shortcut + branch`.
    """
    # autograd, its transforms and graphs know no `out`
    is_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if inplace_add and not (torch.is_grad_enabled() or is_graph or is_transformed()):
        return torch.add(shortcut, branch, alpha=scale, out=branch)
    return torch.add(_like_sum(shortcut, branch, branch_is_left), branch, alpha=scale)


def _like_sum(shortcut: Tensor, branch: Tensor, branch_is_left: bool) -> Tensor:
    if not branch_is_left or shortcut.ndim != 4 or torch.compiler.is_compiling():
        return shortcut
    memory_format = format_of_sum(shortcut, branch, branch_is_left)
    # a branch that is neither contiguous nor channels_last, a transposed view for instance, has no format to take over
    return shortcut if memory_format == torch.preserve_format else shortcut.contiguous(memory_format=memory_format)


def add_product(x: Tensor, y: Tensor, factor: Tensor, value: float = 1.) -> Tensor:
    """`x + value * factor * y` in one pass over memory, whatever the types are."""
    if x.dtype != y.dtype and torch.is_autocast_enabled(x.device.type):
        # whose addcmul makes a copy of the narrower one first
        with torch.autocast(x.device.type, enabled=False):
            return torch.addcmul(x, y, factor, value=value)
    return torch.addcmul(x, y, factor, value=value)


def multiply_as(x: Tensor, factor: Union[Tensor, float], dtype: torch.dtype) -> Tensor:
    """`x * factor` in a type of one's own, in one pass where it is not to be differentiated or mapped."""
    if x.dtype == dtype or torch.is_grad_enabled() or is_transformed():
        return (x * factor).to(dtype)
    return torch.mul(x, factor, out=torch.empty_like(x, dtype=dtype))


class _AddMaskedBranch(torch.autograd.Function):
    """torch.addcmul as autograd does not know it: with the sum in place of the branch, or of two types."""

    @staticmethod
    def forward(ctx: Any, shortcut: Tensor, branch: Tensor, keep: Tensor, inplace_add: bool) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.dtype = branch.dtype
        if not inplace_add:
            return add_product(shortcut, branch, keep)
        ctx.mark_dirty(branch)
        return torch.addcmul(shortcut, branch, keep, out=branch)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad, = grad_outputs
        keep, = ctx.saved_tensors
        return grad, multiply_as(grad, keep, ctx.dtype), None, None


def add_masked_branch(
        shortcut: Tensor,
        branch: Tensor,
        keep_N: Tensor,
        inplace_add: bool = True,
        branch_is_left: bool = True,
) -> Tensor:
    """`shortcut + keep_N * branch` [paper, eq. 2], in the one pass over memory that the sum alone takes.

    Args:
        shortcut: Shape (N, ...).
        branch: Shape (N, ...).
        keep_N: Shape (N,), the factor of each sample's branch, or shape () or (1,), one for all.
        inplace_add: The branch is of its own memory: in eager mode the sum takes its place.
        branch_is_left: The sum has the memory format of `branch + shortcut`, and not of `shortcut + branch`.
    """
    keep = keep_N.view([-1] + [1] * (branch.ndim - 1))
    # a compiler fuses by itself, and a trace of TorchScript would hold what one draw was, and knows no function of ours
    if not (torch.compiler.is_compiling() or torch._C._is_tracing() or is_transformed()):
        # there is no device to wait for, and a value: FakeTensorMode, which counts memory, has none
        if keep.is_cpu and type(keep) is Tensor and bool((keep == 1.).all()):
            return add_plain_branch(shortcut, branch, inplace_add, branch_is_left)
        if inplace_add and not branch._is_view():  # autograd has no gradient of one that this writes to
            return _AddMaskedBranch.apply(shortcut, branch, keep, True)
        if branch.dtype != shortcut.dtype:
            return _AddMaskedBranch.apply(_like_sum(shortcut, branch, branch_is_left), branch, keep, False)
    return torch.addcmul(_like_sum(shortcut, branch, branch_is_left), branch, keep)
