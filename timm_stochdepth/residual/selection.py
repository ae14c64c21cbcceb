"""Which samples of a batch run a branch: chosen, gathered for it, and told to a device."""
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch._library.fake_impl import allocate_size

from .mask import is_channels_last

__all__ = ['MIN_RUN', 'Selection', 'gather', 'select', 'select_in_graph']

# sizes of 0 and 1 are special to a compiler: where fewer samples are kept, others run, whose factor is 0
MIN_RUN = 2


class Selection(NamedTuple):
    """Which samples of a batch run a branch.

    Attributes:
        run_K: Indices of the K samples that run it, each once, shape (K,).
        row_N: For each sample its row in the branch's result, shape (N,); without meaning where it runs none. None
            where sums are made by `index_add_`.
        keep_N: Factor of each sample's branch, shape (N,), 0 where it is dropped; None where sums are made so.
    """
    run_K: Tensor
    row_N: Optional[Tensor] = None
    keep_N: Optional[Tensor] = None


def select(kept_K: Tensor, keep_N: Tensor, device: torch.device) -> Selection:
    """Tell a device which samples keep their branch, in one copy; of their factors whether they are 0 or not.

    Args:
        kept_K: Indices of the K samples that do, shape (K,), on the CPU.
        keep_N: Factor of each sample's branch, shape (N,), on the CPU.
        device: That of the branch.
    """
    if device.type == 'cpu':
        return Selection(kept_K)
    is_kept_N = keep_N != 0.
    row_N = is_kept_N.cumsum(0).sub_(1).clamp_(min=0)
    packed = torch.cat([kept_K, row_N, is_kept_N]).to(device, non_blocking=True)
    return Selection(*packed.split([len(kept_K), len(row_N), len(row_N)]))


# how many samples run a branch is a size in the graph, known when they are drawn
torch.library.define(
    'timm_stochdepth::select',
    '(Tensor keep_N, Device device) -> (Tensor, Tensor, Tensor)',
)


@torch.library.impl('timm_stochdepth::select', 'cpu')
def _(keep_N: Tensor, device: torch.device) -> Tuple[Tensor, Tensor, Tensor]:
    # on the CPU: a device would have to be asked for the size
    runs_N = keep_N > 0.
    dropped = (~runs_N).nonzero().flatten()
    num_kept = keep_N.shape[0] - dropped.numel()
    runs_N[dropped[:max(MIN_RUN - num_kept, 0)]] = True
    row_N = runs_N.cumsum(0).sub_(1).clamp_(min=0)
    run_K = runs_N.nonzero().flatten()
    return run_K.to(device, non_blocking=True), row_N.to(device, non_blocking=True), keep_N.to(device, copy=True)


@torch.library.register_fake('timm_stochdepth::select')
def _(keep_N: Tensor, device: torch.device) -> Tuple[Tensor, Tensor, Tensor]:
    num_samples = keep_N.shape[0]
    # `new_dynamic_size` in public is for users who have set capture_dynamic_output_shape_ops
    num_run = allocate_size(
        torch.library.get_ctx()._shape_env, MIN_RUN, num_samples if isinstance(num_samples, int) else None)
    return (
        torch.empty((num_run,), dtype=torch.int64, device=device),
        torch.empty((num_samples,), dtype=torch.int64, device=device),
        torch.empty_like(keep_N, device=device),
    )


def select_in_graph(keep_N: Tensor, device: torch.device) -> Selection:
    """Choose the samples that run a branch in a graph that torch.compile makes: MIN_RUN of them at least.

    Args:
        keep_N: Factor of each sample's branch, shape (N,), N >= MIN_RUN, on the CPU.
        device: That of the branch.
    """
    return Selection(*torch.ops.timm_stochdepth.select(keep_N, device))


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of a tensor, contiguous or channels_last as it is.

    Args:
        x: Shape (N, ...).
        index: Shape (K,).
    """
    if is_channels_last(x):
        # index_select alone would give a contiguous tensor, and be slow at it
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return x.index_select(0, index)
