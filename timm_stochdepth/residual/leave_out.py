"""Residual additions of a branch that did not run at all."""
from typing import Any, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..capture import is_transformed
from .inputs import tensors_in

__all__ = ['skip_branch']

# of the operations that a shortcut consists of, with the parameters and inputs that they have
_MAX_NODES = 16


class _SkipBranch(torch.autograd.Function):
    """Identity on the shortcut, with a gradient of zero for what the branch that did not run would have used."""

    @staticmethod
    def forward(ctx: Any, shortcut: Tensor, num_parameters: int, *used: Tensor) -> Tensor:
        ctx.parameters = used[:num_parameters]
        # zeros without memory, which keep no activation: the parameters' are of their strides, as they stay
        ctx.zeros = [x.new_zeros(()).expand(x.shape) for x in used[num_parameters:]]
        # never the shortcut's own memory: it may be the block's input, and an activation in place may follow
        return shortcut.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        needed = ctx.needs_input_grad[2:]
        of_parameters = (torch.zeros_like(p) if n else None for p, n in zip(ctx.parameters, needed))
        return (*grad_outputs, None, *of_parameters, *ctx.zeros)


def skip_branch(shortcut: Tensor, parameters: Sequence[Tensor], inputs: Sequence[Any] = ()) -> Tensor:
    """`shortcut + 0 * branch`, without the branch: what it would have used gets the gradient of the formula, zero.

    DistributedDataParallel waits for a gradient of every parameter (https://github.com/pytorch/pytorch/issues/90171),
    of those, too, that an input of the branch was computed from, and momentum and weight decay go on for a dropped
    block as they do in the paper.

    Args:
        shortcut: Shape (N, ...).
        parameters: Those of the branch alone.
        inputs: Those of the branch.

    Returns:
        A tensor of its own memory, shape (N, ...).
    """
    if is_transformed():  # which knows unused parameters, and gives them zeros by itself
        return shortcut.clone()
    lost = [x for x in tensors_in(inputs) if x.requires_grad and not _comes_from(shortcut, x)]
    return _SkipBranch.apply(shortcut, len(parameters), *parameters, *lost)


def _comes_from(shortcut: Tensor, x: Tensor) -> bool:
    """Whether a shortcut is seen to be computed from x, which then has its gradient: x itself, or a downsampled one."""
    if x is shortcut:
        return True
    node, nodes = x.grad_fn, [shortcut.grad_fn]
    for _ in range(_MAX_NODES):
        found = nodes.pop(0) if nodes else None
        if found is None:
            return False
        if found is node or getattr(found, 'variable', None) is x:
            return True
        nodes += [n for n, _ in found.next_functions if n is not None]
    return False
