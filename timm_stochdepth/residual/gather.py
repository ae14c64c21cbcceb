"""Gather the samples that run a branch."""
from torch import Tensor

from .mask import is_channels_last

__all__ = ['gather']


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of a tensor, contiguous or channels_last as it is.

    Args:
        x: Shape (N, ...).
        index: Shape (K,).
    """
    if x.ndim == 4 and is_channels_last(x):
        # index_select alone would give a contiguous tensor, and be slow at it
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return x.index_select(0, index)
