"""Agree with other ranks without waiting for them: in the process group's store, where the first one writes."""
import os
from typing import Any, Optional
from weakref import ref

import torch
import torch.distributed as dist

__all__ = ['Run', 'current_run', 'has_ranks', 'is_first_rank']


def has_ranks() -> bool:
    """Whether this process is one of several of a distributed run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first_rank() -> bool:
    """Whether this process is the one of a distributed run that speaks for all; before it begins, as torchrun says."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get('RANK', '0') == '0'


class Run:
    """The ranks of one process group, the store whose keys and values they all see, and their seed."""

    def __init__(self, group: Any) -> None:
        self.group = ref(group)  # who holds a group when Python ends has its threads abort
        store = dist.distributed_c10d._get_default_store()
        if store is None:
            raise RuntimeError(
                'use_same_gpu_seed must be False with a process group that has no store (MPI), but got True.')
        self.store = dist.PrefixStore('timm_stochdepth', store)
        self.proposed: Optional[int] = None
        self.agreed: Optional[int] = None

    def propose_seed(self) -> None:
        """Say, on rank 0, what the seed is to be, before anyone asks for it."""
        if self.agreed is None and dist.get_rank() == 0 and self.proposed != torch.initial_seed():
            self.proposed = torch.initial_seed()
            self.store.set('proposed_seed', str(self.proposed))

    def seed(self) -> int:
        """Rank 0's seed; that of the first rank that asks, if rank 0 has not said it by then."""
        if self.agreed is None:
            self.propose_seed()
            is_proposed = self.store.check(['proposed_seed'])
            proposal = self.store.get('proposed_seed').decode() if is_proposed else str(torch.initial_seed())
            self.agreed = int(self.store.compare_set('seed', '', proposal))
        return self.agreed


_run: Optional[Run] = None


def current_run() -> Run:
    """That of the default process group."""
    global _run
    if _run is None or _run.group() is not dist.group.WORLD:
        _run = Run(dist.group.WORLD)
    return _run
