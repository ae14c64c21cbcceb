"""Draws that every rank of a distributed run takes alike, whatever the ranks' own seeds.

No rank waits for another: they agree by the process group's store, where the first who asks writes.
"""
import gc
from collections import Counter, defaultdict, deque
from functools import cached_property
from hashlib import sha256
from itertools import count
from random import Random
from typing import Any, Deque, Dict, List, Optional, Tuple
from weakref import WeakSet, ref

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = ['SharedDraws', 'has_ranks']

# forward passes whose backward pass may still be to come, and with it a recomputation
MAX_PENDING = 1024

# a place, and whether gradients are on: a look at the network without them leaves the draws of training alone
Kind = Tuple[int, bool]


def has_ranks() -> bool:
    """Whether this process is one of several of a distributed run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Run:
    """What the ranks of one process group agree on."""

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


_run: Optional[_Run] = None


def _current_run() -> _Run:
    global _run
    if _run is None or _run.group() is not dist.group.WORLD:
        _run = _Run(dist.group.WORLD)
        _count_optimizer_steps()
    return _run


_num_optimizer_steps = 0
_is_counting = False


def _count_optimizer_steps() -> None:
    global _is_counting
    if not _is_counting:
        _is_counting = True
        register_optimizer_step_post_hook(_after_optimizer_step)


def _after_optimizer_step(*args: Any) -> None:
    global _num_optimizer_steps
    _num_optimizer_steps += 1


_networks: 'WeakSet[SharedDraws]' = WeakSet()
_serial_numbers = count()


class SharedDraws:
    """The draws that one network shares with its like on the other ranks.

    A draw is a function of the run's seed, the network, the epoch, the optimizer's steps in it, the place, and the
    number of draws there since the last step. So ranks that parted agree again after the next step, if one ran alone,
    and in the next epoch, if one had more batches. An epoch starts with `model.train()`. A rank that is the only one to
    have started an epoch once its optimizer has made a step, which needs the others' gradients, has but come back from
    an evaluation of its own: it goes on with the epoch before.

    A recomputation under gradient checkpointing repeats the draw of the first pass. It is known by the backward pass
    that it runs in, and by a token from the CPU's default generator, which checkpointing restores.

    Args:
        structure: What tells this network from others; among equal ones the order in which they were made does.
        num_copies: How many times it was copied on the way from the first one. Copies come after others: often rank 0
            alone has them, for an EMA.
    """

    def __init__(self, structure: str, num_copies: int = 0) -> None:
        self.structure = structure
        self.made = num_copies, next(_serial_numbers)
        self.number: Optional[int] = None
        _networks.add(self)
        self.epoch = 0
        self.step = 0
        self.num_draws: Counter[Kind] = Counter()
        self._has_trained = False
        self._is_epoch_new = True
        # numbers of steps at which this epoch has started, and the one before, if this one may be none
        self._started_at = _num_optimizer_steps
        self._last_started_at: Optional[int] = None
        self._drawn: Dict[int, Deque[Tuple[int, float]]] = defaultdict(lambda: deque(maxlen=MAX_PENDING))
        self._repeated: Counter[Tuple[int, int]] = Counter()
        self._backward_pass = -1
        self.start_epoch()

    @cached_property
    def name(self) -> str:
        """The same for this network on all ranks, and another for each that draws in this process."""
        if any(self._equals()):
            gc.collect()  # not to count a network that is gone already on another rank
        taken = {network.number for network in self._equals()}
        earlier = sum(network.made < self.made for network in self._equals())
        self.number = next(n for n in count(earlier) if n not in taken)
        return sha256(f'{self.structure}.{self.number}'.encode()).hexdigest()[:16]

    def _equals(self) -> List['SharedDraws']:
        return [other for other in _networks if other is not self and other.structure == self.structure]

    def start_epoch(self) -> None:
        """Draw anew, if this epoch has trained anything."""
        if has_ranks():
            _current_run().propose_seed()
        if self._has_trained:
            # after an epoch that may have been none, the others start the one that this rank was in
            self._last_started_at = self._started_at if self._last_started_at is None else _num_optimizer_steps
            self._started_at = _num_optimizer_steps
            self._is_epoch_new = True
            self._has_trained = False
            self.epoch += 1
            self.step = 0
            self.num_draws.clear()

    def draw_keep_block(self, place_idx: int, drop_prob: float) -> bool:
        """Draw whether a place keeps its branch for the whole batch, alike on all ranks.

        Args:
            place_idx: Number of the place in its network.
            drop_prob: Probability that the branch is dropped, in [0, 1].

        Raises:
            RuntimeError: A recomputation does not restore the generator, or comes over 1,024 forward passes late.
        """
        token = int(torch.randint(2 ** 62, (1,), device='cpu'))
        backward_pass = torch._C._current_graph_task_id()  # as torch.utils.checkpoint asks, too
        if backward_pass != -1:
            return self._repeat(place_idx, token, backward_pass) >= drop_prob
        uniform = self._draw((place_idx, torch.is_grad_enabled()))
        self._drawn[place_idx].append((token, uniform))
        return uniform >= drop_prob

    def _draw(self, kind: Kind) -> float:
        run = _current_run()
        self._keep_step(run)
        name = f'{run.seed()}.{self.name}.{self.epoch}.{self.step}.{kind}.{self.num_draws[kind]}'
        self.num_draws[kind] += 1
        _, is_grad_enabled = kind
        self._has_trained |= is_grad_enabled or self.step > 0
        return Random(name).random()

    def _keep_step(self, run: _Run) -> None:
        """Be in the epoch, and at the step of it, that the other ranks are at."""
        key = f'{self.name}.{self.epoch}'
        if self._is_epoch_new:
            self._is_epoch_new = False
            run.store.add(key, 1)
        elif self._last_started_at is not None and _num_optimizer_steps > self._started_at:
            if run.store.add(key, 0) == 1:
                run.store.add(key, -1)
                self.epoch -= 1
                self._started_at = self._last_started_at
            self._last_started_at = None
        step = _num_optimizer_steps - self._started_at
        if step != self.step:
            self.step = step
            self.num_draws.clear()

    def _repeat(self, place_idx: int, token: int, backward_pass: int) -> float:
        draws = [uniform for drawn, uniform in self._drawn[place_idx] if drawn == token]
        if not draws:
            raise RuntimeError(
                'A block recomputes its forward pass and has no record of the first one: checkpointing must have'
                f' preserve_rng_state=True, and at most {MAX_PENDING} forward passes before their backward pass.')
        if backward_pass != self._backward_pass:
            self._backward_pass = backward_pass
            self._repeated.clear()
        # a generator that was seeded again gives its tokens again: what ran last is recomputed first
        self._repeated[place_idx, token] += 1
        return draws[-min(self._repeated[place_idx, token], len(draws))]

    def __deepcopy__(self, memo: Dict[int, Any]) -> 'SharedDraws':
        # a network of its own, with no backward pass to come
        return SharedDraws(self.structure, self.made[0] + 1)

    def __reduce__(self) -> Tuple[Any, ...]:
        return SharedDraws, (self.structure,)
