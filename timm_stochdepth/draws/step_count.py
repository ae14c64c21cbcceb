"""Count the optimizer's steps of a network's training: alike on all ranks, and in a run that is resumed."""
from hashlib import sha256
from typing import Any, Optional
from weakref import WeakSet

import torch.distributed as dist
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .epochs import Epoch, agree_on_epoch, note_step, tell_epoch
from .network_seed import NetworkSeed
from .process_group import current_run, has_ranks

__all__ = ['StepCount', 'has_optimizer', 'optimizer_steps', 'short_hash']

_num_optimizer_steps = 0
_counts: 'WeakSet[StepCount]' = WeakSet()


def optimizer_steps() -> int:
    """Number of steps that optimizers have made in this process."""
    return _num_optimizer_steps


def has_optimizer() -> bool:
    """Whether this process has made an optimizer: without one nothing tells its steps apart."""
    return _num_optimizer_steps > 0 or _is_made(Optimizer)


def _is_made(kind: Any) -> bool:
    # PyTorch hooks the step of each class of which there is one
    return getattr(kind.step, 'hooked', False) or any(map(_is_made, kind.__subclasses__()))


def _before_optimizer_step(*args: Any) -> None:
    for count in list(_counts):
        count.note_step()


def _after_optimizer_step(*args: Any) -> None:
    global _num_optimizer_steps
    _num_optimizer_steps += 1


register_optimizer_step_pre_hook(_before_optimizer_step)
register_optimizer_step_post_hook(_after_optimizer_step)


def short_hash(text: str) -> str:
    """A text that stands for a longer one."""
    return sha256(text.encode()).hexdigest()[:16]


class StepCount:
    """The running number of optimizer steps in the training of one network, and the seed of its draws.

    Some ranks may have had more batches, so that they agree on it anew with the first draw of an epoch, which begins
    with `train()`: who draws first says in the process group's store where it begins.

    A rank that evaluated alone has begun an epoch that the others have not. Its first step, which needs the others'
    gradients, is noted in the store: who finds a step in an epoch that begins below its own number has been in it all
    along, and goes on to the next.

    Args:
        structure: What tells the network from others of this process, but for its equals.
        num_steps: Where it begins; at 0 if None, or where rank 0 has been told to.
        seed: The seed that it goes on with, if any.

    Attributes:
        num_idle_epochs: Number of epochs, up to this one, that began without a step in the epoch before.
        seed: The seed of the draws.
    """

    def __init__(self, structure: str, num_steps: Optional[int] = None, seed: Optional[int] = None) -> None:
        self.name = ''
        self.num_idle_epochs = 0
        self._start_key = f'{short_hash(structure)}.start'
        self._is_known = False
        self._epoch = self._first = 0
        self.seed = NetworkSeed(seed)
        self._begin_at(num_steps or 0, is_told=num_steps is not None)
        _counts.add(self)

    def _begin_at(self, num_steps: int, is_told: bool = False) -> None:
        self._start = num_steps
        self._counted_before = _num_optimizer_steps
        self._is_told = is_told
        self._is_entered = self._has_trained = self._has_noted_step = self._is_doubtful = False
        self.seed.may_ask_again()

    @property
    def _epoch_key(self) -> str:
        # a network that was given its like's name, once that was gone, begins elsewhere
        return f'{self.name}.{self._first}'

    @property
    def value(self) -> int:
        """Number of steps, as this rank has them."""
        return self._start + _num_optimizer_steps - self._counted_before

    @property
    def known_value(self) -> Optional[int]:
        """The same for a network that has trained on several ranks, or goes on with the weights of one that has."""
        return self.value if self._is_known else None

    @property
    def known_seed(self) -> Optional[int]:
        """The seed of such a network, once it stays what it is."""
        if self._is_known and has_ranks():
            self._ask_for_seed()
        return self.seed.value if self._is_known and self.seed.is_final else None

    def start_epoch(self) -> bool:
        """Start an epoch if this one has trained anything; whether it has."""
        is_new = self._has_trained
        if is_new:
            self.num_idle_epochs = 0 if self.value > self._start else self.num_idle_epochs + 1
            self._epoch += 1
            self._begin_at(self.value)
        self._say_start()
        return is_new

    def go_on_from(self, num_steps: int, seed: Optional[int] = None) -> bool:
        """Go on from another number, in an epoch of its own if this one has made steps; whether it is another."""
        if num_steps == self.known_value and seed in (None, self.seed.value):
            return False
        self._epoch += bool(self.name) and self.value > self._start
        self._begin_at(num_steps, is_told=True)
        self._is_known = True
        self.num_idle_epochs = 0
        if seed is not None:
            self.seed.take(seed, is_final=True)
        self._say_start()
        return True

    def _say_start(self) -> None:
        # rank 0 may be the only one that was given the weights of a run
        if self._is_told and not self._is_entered and has_ranks() and dist.get_rank() == 0:
            if self._epoch == 0:
                seed = f' {self.seed.value}' if self.seed.is_final else ''
                current_run().store.set(self._start_key, f'{self._start}{seed}')
            else:
                self._tell_epoch()

    def _tell_epoch(self) -> None:
        self._epoch = tell_epoch(current_run().store, self._epoch_key, self._own_epoch()).number

    def _own_epoch(self) -> Epoch:
        return Epoch(self._epoch, self._start, self.seed.value)

    def enter(self, name: str, is_training: bool) -> int:
        """The number for a draw, in training or a look at the network, whose name is the same on all ranks."""
        self._ask_for_seed()
        if not self._is_entered:
            self.name = name
            self._agree()
            self._is_entered = self._is_known = True
        if is_training:
            self.seed.note_training(_num_optimizer_steps)
        if self.value > self._start:
            self.num_idle_epochs = 0
        self._has_trained |= is_training or self.value > self._start
        return self.value

    def _ask_for_seed(self) -> None:
        self.seed.ask(_num_optimizer_steps, is_first_epoch=self._epoch == 0)

    def _agree(self) -> None:
        """Begin where the other ranks do."""
        store = current_run().store
        if self._epoch == 0:
            if not self._is_told and store.check([self._start_key]):
                self._start, *seeds = map(int, store.get(self._start_key).split())
                for seed in seeds:
                    self.seed.take(seed, is_final=True)
            self._first = self._start
            store.set(self._epoch_key, '')  # of a network that had its name before
        self.seed.take_first()
        if self._epoch > 0:
            if self._is_told:
                self._tell_epoch()
            else:
                own_start = self._start  # what an optimizer has done since then comes on top
                self._epoch, self._start, seed, _ = agree_on_epoch(store, self._epoch_key, self._own_epoch())
                self.seed.take(seed)
                # the one that was there alone may not have noted its step yet: the others' draws will tell
                self._is_doubtful = self._start < own_start

    def note_step(self) -> None:
        """Note that a step is made in this epoch, the gradients of which have come from all ranks."""
        if self._epoch == 0 or not self._is_entered or self._has_noted_step or not has_ranks():
            return
        self._has_noted_step = True
        self.seed.may_ask_again()  # a rank that had trained alone finds it now
        noted = note_step(current_run().store, self._epoch_key, self._own_epoch(), self._is_doubtful)
        self._epoch, self._start = noted.number, noted.start
