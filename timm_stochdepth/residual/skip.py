"""Residual additions of a branch that ran for a part of the batch, or not at all.

The backward passes touch what is needed and no more: no tensor of zeros is filled to be added.
"""
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..capture import is_transformed
from .mask import add_product, format_of_sum, is_channels_last, multiply_as, per_sample

__all__ = ['Kept', 'add_kept_branch', 'on_device', 'select_inputs', 'select_kept', 'skip_branch', 'take_kept']


class Kept(NamedTuple):
    """Which samples of a batch keep their branch.

    Attributes:
        kept_K: Indices of the K samples that do, each once, shape (K,).
        row_N: For each sample its row in the branch's result, shape (N,); without meaning where it is dropped. None
            where sums are made by `index_add_`.
        is_kept_N: 1 for each sample that does, else 0, shape (N,), or None.
    """
    kept_K: Tensor
    row_N: Optional[Tensor] = None
    is_kept_N: Optional[Tensor] = None


def on_device(kept_K: Tensor, keep_N: Tensor, device: torch.device) -> Kept:
    """Tell a device which samples keep their branch, in one copy.

    Args:
        kept_K: Indices of the K samples that do, shape (K,), on the CPU.
        keep_N: Factor of each sample's branch, shape (N,), on the CPU.
        device: That of the branch.
    """
    if device.type == 'cpu':
        return Kept(kept_K)
    is_kept_N = keep_N != 0.
    row_N = is_kept_N.cumsum(0).sub_(1).clamp_(min=0)
    packed = torch.cat([kept_K, row_N, is_kept_N]).to(device, non_blocking=True)
    return Kept(*packed.split([len(kept_K), len(row_N), len(row_N)]))


def take_kept(x: Tensor, kept_K: Tensor) -> Tensor:
    """The kept samples of a tensor, shape (K, ...), contiguous or channels_last as it is."""
    if is_channels_last(x):
        # index_select alone would give a contiguous tensor, and be slow at it
        return x.permute(0, 2, 3, 1).index_select(0, kept_K).permute(0, 3, 1, 2)
    return x.index_select(0, kept_K)


def _add_rows(
        total: Tensor,
        rows: Tensor,
        kept: Kept,
        scale: float = 1.,
        memory_format: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """`total`, shape (N, ...), and the kept samples' rows, shape (K, ...), added in memory of its own."""
    if kept.row_N is None or kept.is_kept_N is None:
        # index_add would give a contiguous tensor
        total = total.clone(memory_format=memory_format)
        return total.index_add_(0, kept.kept_K, rows.to(total.dtype), alpha=scale)
    # on a GPU index_add_ is atomic, and in half precision many times slower than memory is
    if memory_format != torch.preserve_format:
        total = total.contiguous(memory_format=memory_format)
    return add_product(total, take_kept(rows, kept.row_N), per_sample(kept.is_kept_N, total), value=scale)


class _SelectKept(torch.autograd.Function):
    """The input twice: whole for the shortcut, its kept samples for the branch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *kept: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        ctx.save_for_backward(*kept)
        return x.view_as(x), take_kept(x, Kept(*kept).kept_K)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad_shortcut, grad_kept = grad_outputs
        return _add_rows(grad_shortcut, grad_kept, Kept(*ctx.saved_tensors)), None, None, None


def select_kept(x: Tensor, kept: Kept) -> Tuple[Tensor, Tensor]:
    """Split the input of a block into that of its shortcut and that of its branch.

    Args:
        x: Shape (N, ...), contiguous or channels_last, which the second output then is, too.
        kept: Which samples keep their branch.

    Returns:
        x itself, not to be written to, and its kept samples, shape (K, ...).
    """
    if is_transformed():
        return x, take_kept(x, kept.kept_K)
    shortcut, x_kept = _SelectKept.apply(x, *kept)
    return shortcut, x_kept


def select_inputs(
        batch_dimensions: Tuple[Optional[int], ...],
        shortcut: Tensor,
        inputs: Sequence[Any],
        kept_K: Tensor,
        select: Callable[[Tensor], Tuple[Tensor, Tensor]],
) -> Tuple[Tensor, List[Any]]:
    """The shortcut, and of the branch's inputs the kept samples.

    Args:
        batch_dimensions: Of each of the inputs, as in `Branch`.
        shortcut: Shape (N, ...).
        inputs: Those of the branch.
        kept_K: Indices of the K samples that keep their branch, shape (K,).
        select: Splits a tensor that shortcut and branch share.

    Raises:
        RuntimeError: An input has not one row for each sample of the shortcut.
    """
    selected = []
    original = shortcut
    for x, dimensions in zip(inputs, batch_dimensions):
        if not isinstance(x, Tensor) or dimensions is None or x.ndim < dimensions or x.shape[0] == 1:
            selected.append(x)
        elif x.shape[0] != original.shape[0]:
            raise RuntimeError(
                f'skip_dropped must be False where a branch has inputs of other rows than its shortcut: shape'
                f' {tuple(x.shape)}, and {tuple(original.shape)}.')
        elif x is original and shortcut is original:
            shortcut, x_kept = select(x)
            selected.append(x_kept)
        else:
            selected.append(take_kept(x, kept_K))
    return shortcut, selected


class _AddKeptBranch(torch.autograd.Function):

    @staticmethod
    def forward(
            ctx: Any,
            shortcut: Tensor,
            branch: Tensor,
            scale: float,
            memory_format: torch.memory_format,
            *kept: Optional[Tensor],
    ) -> Tensor:
        ctx.scale, ctx.dtype = scale, branch.dtype
        ctx.save_for_backward(kept[0])
        return _add_rows(shortcut, branch, Kept(*kept), scale, memory_format)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        kept_K, = ctx.saved_tensors
        grad, = grad_outputs
        grad_branch = take_kept(grad, kept_K)
        if ctx.scale != 1. or grad.dtype != ctx.dtype:
            grad_branch = multiply_as(grad_branch, ctx.scale, ctx.dtype)
        return grad, grad_branch, None, None, None, None, None


def add_kept_branch(
        shortcut: Tensor,
        branch: Tensor,
        kept: Kept,
        scale: float = 1.,
        branch_first: bool = False,
) -> Tensor:
    """`shortcut + keep_N * scale * branch`, of a branch that ran for the samples with keep_N = 1 alone.

    Args:
        shortcut: Shape (N, ...).
        branch: Shape (K, ...), its samples are those that are kept.
        kept: Which samples keep their branch.
        scale: Factor of the branch.
        branch_first: The sum has the memory format of `branch + shortcut`, and not of `shortcut + branch`.

    Returns:
        A tensor of its own memory, shape (N, ...).
    """
    dtype = torch.result_type(shortcut, branch)
    if is_transformed():
        return shortcut.to(dtype).index_add(0, kept.kept_K, branch.to(dtype), alpha=scale)
    memory_format = format_of_sum(shortcut, branch, branch_first)
    total: Tensor = _AddKeptBranch.apply(shortcut.to(dtype), branch, scale, memory_format, *kept)
    return total


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
