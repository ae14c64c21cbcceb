"""What waits for all ranks, and is within a branch that some of them may leave out."""
from typing import Sequence, Tuple

import torch
from torch import nn

from .branch import Branch
from .ranks import has_ranks
from .sharding import units

__all__ = ['refuse_waiting']


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
