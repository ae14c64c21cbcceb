"""Residual additions of a branch that ran for a part of the batch, in operations that torch.func transforms."""
from typing import Tuple

import torch
from torch import Tensor

from ..draws.selection import Selection
from .gather import gather
from .mask import per_sample

__all__ = ['add_plainly', 'select_plainly', 'split_plainly']


def split_plainly(x: Tensor, selection: Selection) -> Tuple[Tensor, Tensor]:
    """The input of a block for its shortcut, and its samples that run the branch."""
    return x, gather(x, selection.run_K)


def select_plainly(x: Tensor, selection: Selection) -> Tensor:
    """The samples that run of what is an input of the branch alone."""
    return gather(x, selection.run_K)


def add_plainly(
        shortcut: Tensor,
        branch: Tensor,
        selection: Selection,
        scale: float,
        branch_is_left: bool,
) -> Tensor:
    """`shortcut + scale * branch` where a sample is kept."""
    dtype = torch.result_type(shortcut, branch)
    branch = branch.to(dtype)
    if selection.keep_N is not None:
        branch = branch * per_sample(selection.keep_N[selection.run_K], branch)
    return shortcut.to(dtype).index_add(0, selection.run_K, branch, alpha=scale)
