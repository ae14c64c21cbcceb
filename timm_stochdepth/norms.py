"""Norms that some ways to leave a branch out do not go with."""
from timm.layers import SplitBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['looks_at_batch', 'refuse_split_norms']


def looks_at_batch(module: nn.Module) -> bool:
    """Whether a norm takes the statistics of the batch: skipping samples is then not masking them."""
    return any(isinstance(m, _BatchNorm) for m in module.modules())


def refuse_split_norms(block: nn.Module) -> None:
    """Refuse norms that split a batch where samples are left out of it.

    Raises:
        ValueError: The block holds a SplitBatchNorm2d.
    """
    if any(isinstance(m, SplitBatchNorm2d) for m in block.modules()):
        raise ValueError(
            'skip_dropped must be False with SplitBatchNorm2d, but got True: it splits a batch into equal parts, of'
            ' which nothing is left where samples are left out.')
