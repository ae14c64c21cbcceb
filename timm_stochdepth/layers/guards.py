"""Reject norms and collectives that do not go with skipping branches."""
from typing import Sequence, Tuple

import torch
from timm.layers import SplitBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..draws.process_group import has_ranks
from ..fx.branch import Branch
from .sharding import units

__all__ = ['looks_at_batch', 'refuse_split_norms', 'refuse_waiting']


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


def refuse_waiting(block: nn.Module, branches: Sequence[Tuple[str, Branch]], name: str, value: bool) -> None:
    """Refuse norms that are collective operations, and units of FSDP, where the ranks decide each for itself.

    Args:
        block: A block that may hold some.
        branches: Its branches, by their drop paths.
        name: The argument that has the ranks decide so.
        value: Its value.

    Raises:
        ValueError: The block holds a SyncBatchNorm, or a branch a unit of FSDP, and there are several ranks.
    """
    if torch.compiler.is_compiling() or not has_ranks():  # a compiled branch always runs, for a few samples at least
        return
    if any(isinstance(m, nn.SyncBatchNorm) for m in block.modules()):
        raise ValueError(
            f'{name} must be {not value} with SyncBatchNorm, but got {value}: a rank that keeps a block would wait for'
            ' ever for the statistics of one that skips it.')
    of_fsdp = units()
    found = [m for _, branch in branches for m in branch.modules(block) if isinstance(m, of_fsdp)] if of_fsdp else []
    if found:
        raise ValueError(
            f'{name} must be {not value} where a part of a block is sharded by itself ({type(found[0]).__name__}), but'
            f' got {value}: a rank that keeps a branch would wait for ever for the parameters of one that skips it.'
            ' Shard whole blocks: fully_shard(block).')
