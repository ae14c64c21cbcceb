"""Draws that all ranks of a distributed run take alike, without waiting for one another."""
import gc
from collections import Counter, defaultdict, deque
from functools import cached_property
from itertools import count
from random import Random
from typing import Any, Deque, Dict, List, Optional, Tuple
from weakref import WeakSet

import torch

from ..capture import refuse_recording
from .bernoulli import Draws
from .process_group import has_ranks
from .step_count import StepCount, has_optimizer, short_hash

__all__ = ['RankDraws', 'SharedDraws']

# forward passes whose backward pass may still be to come, and with it a recomputation
MAX_PENDING = 1024
# draws that may be repeated before the optimizer's next step
MAX_IN_STEP = 2 ** 16

# a drop path, and whether gradients are on: a look at the network without them leaves the draws of training alone
Kind = Tuple[int, bool]


_networks: 'WeakSet[SharedDraws]' = WeakSet()
_serial_numbers = count()


class SharedDraws:
    """The draws that one network shares with its like on the other ranks.

    A draw is a function of the run's seed, the network, the optimizer's steps in its training, the drop path, and the
    number of draws there since the last step. So ranks that parted agree again after the next step, if one ran alone,
    and in the next epoch, if one had more batches (`StepCount`). A run that goes on with the weights of another, whose
    state_dict says the number of steps, takes the draws that come next.

    A pass that is repeated from the same generators repeats its draws. It is known by a token from the CPU's default
    generator: within one step of the optimizer (GradCache, SAM), and as a recomputation under gradient checkpointing by
    the backward pass that it runs in, too. A loop that seeds the generator again for each step draws anew. Without an
    optimizer nothing tells it from a repetition: there a pass with gradients repeats one without them alone.

    Args:
        structure: What tells this network from others; among equal ones the order in which they were made does.
        num_copies: How many times it was copied on the way from the first one. Copies come after others: often rank 0
            alone has them, for an EMA.
        num_steps: Number of steps that it goes on from, if any.
        seed: The seed that it goes on with, if any.
    """

    def __init__(
            self,
            structure: str,
            num_copies: int = 0,
            num_steps: Optional[int] = None,
            seed: Optional[int] = None,
    ) -> None:
        self.structure = structure
        self.made = num_copies, next(_serial_numbers)
        self.number: Optional[int] = None
        _networks.add(self)
        self._count = StepCount(structure, num_steps, seed)
        self._num_draws: Counter[Kind] = Counter()
        self._drawn_at: Tuple[int, int] = -1, 0
        self._drawn_in_step: Dict[Tuple[int, int], Tuple[float, bool]] = {}
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
        return short_hash(f'{self.structure}.{self.number}')

    def _equals(self) -> List['SharedDraws']:
        return [other for other in _networks if other is not self and other.structure == self.structure]

    @property
    def num_steps(self) -> Optional[int]:
        """Number of the optimizer's steps in the training of this network, None if it has not trained on several ranks.

        To be kept where a state_dict's metadata is not, and given to `go_on_from` before a run goes on. Given to one
        rank alone amid an epoch, it is taken over by the others when the next one starts.
        """
        return self._count.known_value

    @property
    def seed(self) -> Optional[int]:
        """The seed of these draws, to be kept beside num_steps; None as long as it may become another."""
        return self._count.known_seed

    def go_on_from(self, num_steps: int, seed: Optional[int] = None) -> None:
        """Go on as a run that had made a number of steps, with the draws of its seed if that is known."""
        if self._count.go_on_from(num_steps, seed):
            self._forget_step()

    def start_epoch(self) -> None:
        """Draw anew, if this epoch has trained anything."""
        if self._count.start_epoch():
            self._forget_step()

    def draw_keep_block(self, drop_path_idx: int, drop_prob: float) -> bool:
        """Draw whether the whole batch keeps a branch, alike on all ranks.

        Args:
            drop_path_idx: Number of the drop path in its network.
            drop_prob: Probability that the branch is dropped, in [0, 1].

        Raises:
            RuntimeError: A recomputation does not restore the generator, or comes over 1,024 forward passes late.
        """
        token = int(torch.randint(2 ** 62, (1,), device='cpu'))
        backward_pass = torch._C._current_graph_task_id()  # as torch.utils.checkpoint asks, too
        if backward_pass != -1:
            return self._repeat(drop_path_idx, token, backward_pass) >= drop_prob
        uniform = self._draw(drop_path_idx, token)
        self._drawn[drop_path_idx].append((token, uniform))
        return uniform >= drop_prob

    def _draw(self, drop_path_idx: int, token: int) -> float:
        is_grad_enabled = torch.is_grad_enabled()
        drawn_at = self._count.enter(self.name, is_grad_enabled), self._count.num_idle_epochs
        if drawn_at != self._drawn_at:
            self._drawn_at = drawn_at
            self._forget_step()
        uniform, had_grad = self._drawn_in_step.get((drop_path_idx, token), (None, False))
        if uniform is None or had_grad and not has_optimizer():
            kind = drop_path_idx, is_grad_enabled
            name = f'{self._count.seed.value}.{self.name}.{drawn_at}.{kind}.{self._num_draws[kind]}'
            self._num_draws[kind] += 1
            uniform = Random(name).random()
            if len(self._drawn_in_step) >= MAX_IN_STEP:
                self._drawn_in_step.clear()
        self._drawn_in_step[drop_path_idx, token] = uniform, is_grad_enabled
        return uniform

    def _forget_step(self) -> None:
        self._num_draws.clear()
        self._drawn_in_step.clear()

    def _repeat(self, drop_path_idx: int, token: int, backward_pass: int) -> float:
        draws = [uniform for drawn, uniform in self._drawn[drop_path_idx] if drawn == token]
        if not draws:
            raise RuntimeError(
                'A block recomputes its forward pass and has no record of the first one: checkpointing must have'
                f' preserve_rng_state=True, and at most {MAX_PENDING} forward passes before their backward pass.')
        if backward_pass != self._backward_pass:
            self._backward_pass = backward_pass
            self._repeated.clear()
        # a generator that was seeded again gives its tokens again: what ran last is recomputed first
        self._repeated[drop_path_idx, token] += 1
        return draws[-min(self._repeated[drop_path_idx, token], len(draws))]

    def __deepcopy__(self, memo: Dict[int, Any]) -> 'SharedDraws':
        # a network of its own, with no backward pass to come
        return SharedDraws(self.structure, self.made[0] + 1, self.num_steps, self.seed)

    def __reduce__(self) -> Tuple[Any, ...]:
        return SharedDraws, (self.structure, 0, self.num_steps, self.seed)


class RankDraws(Draws):
    """Draws for a batch that one drop path takes alike on all ranks of a distributed run.

    Args:
        shared: The draws of its network.
        drop_path_idx: Number of the drop path in the network.
    """

    def __init__(self, shared: SharedDraws, drop_path_idx: int) -> None:
        self.shared = shared
        self.drop_path_idx = drop_path_idx

    def batch(self, drop_prob: float) -> bool:
        if not has_ranks():
            return super().batch(drop_prob)
        refuse_recording('stochastic_method', 'block')
        return self.shared.draw_keep_block(self.drop_path_idx, drop_prob)
