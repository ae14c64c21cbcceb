"""Which samples of a batch run a branch: chosen, gathered for it, and told to a device."""
from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .mask import is_channels_last

__all__ = ['Selection', 'gather', 'select_all']


class Selection(NamedTuple):
    """Which samples of a batch run a branch.

    Attributes:
        run_K: Indices of the K samples that run it, each once, shape (K,).
        row_N: For each sample its row in the branch's result, shape (N,); without meaning where it runs none. None
            where sums are made by `index_add_`.
        keep_N: Factor of each sample's branch, shape (N,), 0 where it is dropped, in the type of the sums; None where
            they are made so.
    """
    run_K: Tensor
    row_N: Optional[Tensor] = None
    keep_N: Optional[Tensor] = None


def select_all(keep_PN: Tensor, device: torch.device, dtype: torch.dtype) -> List[Tuple[int, Selection]]:
    """Tell a device which samples keep their branch, in one copy for all drop paths.

    Args:
        keep_PN: Factor of each sample's branch, for each of P drop paths, shape (P, N), on the CPU; used is whether it
            is 0.
        device: That of the branches.
        dtype: Type of the sums.

    Returns:
        For each drop path the number of samples that are kept, and which they are.
    """
    kept_PN = keep_PN != 0.
    counts: List[int] = kept_PN.sum(1).tolist()
    row_PN = kept_PN.cumsum(1).sub_(1).clamp_(min=0)
    packed = torch.cat([row_PN.view(-1), kept_PN.view(-1), kept_PN.nonzero()[:, 1]])
    if device.type == 'cuda':  # from pageable memory a copy waits for the device
        packed = packed.pin_memory()
    size = row_PN.numel()
    row, kept, run = packed.to(device, non_blocking=True).split([size, size, sum(counts)])
    rows, masks = row.view(row_PN.shape).unbind(0), kept.to(dtype).view(row_PN.shape).unbind(0)
    return list(zip(counts, map(Selection, run.split(counts), rows, masks)))


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
