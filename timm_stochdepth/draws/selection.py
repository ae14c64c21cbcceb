"""Which samples of a batch run a branch: chosen by their draws, and told to a device."""
from typing import List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from ..capture import refuse_captured_decisions

__all__ = ['Selection', 'rows_to_run', 'select_kept', 'tell_device']


class Selection(NamedTuple):
    """Which samples of a batch run a branch, and which of these keep it.

    Attributes:
        run_K: Indices of the K samples that run it, each once, shape (K,).
        num_sure: Number of the first of them whose factor is known to be 1.
        row_N: For each sample its row in the branch's result, shape (N,); without meaning where it runs none. None
            where the factors of all that run are 1, and sums are made by `index_add_`.
        keep_N: Factor of each sample's branch, beside one for all, 0 where it is dropped, shape (N,), in the type of
            the sums; None likewise.
    """
    run_K: Tensor
    num_sure: int
    row_N: Optional[Tensor] = None
    keep_N: Optional[Tensor] = None


def rows_to_run(num_kept: int, num_samples: int) -> int:
    """The number of samples that run where it is rounded up, so that there are few such numbers.

    Args:
        num_kept: Number of those that keep their branch.
        num_samples: Number of samples in the batch.
    """
    multiple = 8 if num_samples >= 128 else 4
    return min(-(-num_kept // multiple) * multiple, num_samples)


def select_kept(
        keep_PN: Tensor,
        device: torch.device,
        dtype: torch.dtype,
        round_up: bool = False,
) -> List[Selection]:
    """Tell a device which samples keep their branch, in one copy for all drop paths.

    Args:
        keep_PN: Factor of each sample's branch, for each of P drop paths, shape (P, N), on the CPU; used is whether it
            is 0.
        device: That of the branches.
        dtype: Type of the sums.
        round_up: Whether more samples run, see `rows_to_run`.
    """
    kept_PN = keep_PN != 0.
    nums_kept: List[int] = kept_PN.sum(1).tolist()
    nums_run = [rows_to_run(n, kept_PN.shape[1]) for n in nums_kept] if round_up else nums_kept
    runs = _first_rows(kept_PN, nums_run) if round_up else [kept_PN.nonzero()[:, 1]]
    row_PN = kept_PN.cumsum(1).sub_(1).clamp_(min=0)
    packed = torch.cat([row_PN.view(-1), kept_PN.view(-1), *runs])
    size = row_PN.numel()
    row, kept, run = tell_device(packed, device).split([size, size, sum(nums_run)])
    rows, masks = row.view(row_PN.shape).unbind(0), kept.to(dtype).view(row_PN.shape).unbind(0)
    return list(map(Selection, run.split(nums_run), nums_kept, rows, masks))


def tell_device(packed: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting for it: a copy from pageable memory would."""
    if device.type == 'cuda':
        refuse_captured_decisions('skip_dropped', True)
        packed = packed.pin_memory()
    return packed.to(device, non_blocking=True)


def _first_rows(kept_PN: Tensor, nums_run: Sequence[int]) -> List[Tensor]:
    """For each drop path the indices of so many samples, those that are kept first, each kind in its order."""
    order_PN = kept_PN.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return [order_N[:num_run] for order_N, num_run in zip(order_PN, nums_run)]
