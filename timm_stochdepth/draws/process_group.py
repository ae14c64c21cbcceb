"""Agree with other ranks without waiting for them: in the process group's store, where the first one writes."""
import os
from typing import Any, Optional, Set
from weakref import ref

import torch
import torch.distributed as dist

__all__ = ['Run', 'current_run', 'has_ranks', 'is_first_rank']


def has_ranks() -> bool:
    """Whether this process is one of several of a distributed run; those of a fake group are not there."""
    return (
        dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and dist.get_backend() != 'fake')


def is_first_rank() -> bool:
    """Whether this process is the one of a distributed run that speaks for all; before it begins, as torchrun says."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get('RANK', '0') == '0'


class Run:
    """The ranks of one process group, the store whose keys and values they all see, and rank 0's seeds.

    Rank 0 says its seed twice, each time at a point of its own program, so that no other rank's pace decides which:
    where it makes its first network, and where it first draws in training. Nobody waits for either. The first is there
    once the ranks have compared their networks, as DistributedDataParallel does, the second once they have their first
    gradients.
    """

    def __init__(self, group: Any) -> None:
        self.group = ref(group)  # who holds a group when Python ends has its threads abort
        store = dist.distributed_c10d._get_default_store()
        if store is None:
            raise RuntimeError(
                'use_same_gpu_seed must be False with a process group that has no store (MPI), but got True.')
        self.store = dist.PrefixStore('timm_stochdepth', store)
        self._said: Set[str] = set()
        self._first_seed: Optional[int] = None

    def say_seed(self, when: str) -> None:
        """Say, on rank 0, what its seed is at some point, the first time that it is there."""
        if when not in self._said:
            self._said.add(when)
            if dist.get_rank() == 0:
                self.store.set(f'seed_{when}', str(torch.initial_seed()))

    def said_seed(self, when: str) -> Optional[int]:
        """Rank 0's seed at some point, None if it has not been there."""
        key = f'seed_{when}'
        return int(self.store.get(key)) if self.store.check([key]) else None

    def first_seed(self) -> int:
        """Rank 0's seed when it made its first network; that of the first rank that asks, if it has not by then."""
        if self._first_seed is None:
            said = self.said_seed('of_networks')
            own = torch.initial_seed() if said is None else said
            self._first_seed = int(self.store.compare_set('first_seed', '', str(own)))
        return self._first_seed


_run: Optional[Run] = None


def current_run() -> Run:
    """That of the default process group."""
    global _run
    if _run is None or _run.group() is not dist.group.WORLD:
        _run = Run(dist.group.WORLD)
    return _run
