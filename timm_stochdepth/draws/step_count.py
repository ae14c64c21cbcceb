"""Count the optimizer's steps of a network's training: alike on all ranks, and in a run that is resumed."""
from hashlib import sha256
from typing import Any, Optional
from weakref import WeakSet

import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .process_group import current_run, has_ranks

__all__ = ['StepCount', 'optimizer_steps', 'short_hash']

_num_optimizer_steps = 0
_counts: 'WeakSet[StepCount]' = WeakSet()


def optimizer_steps() -> int:
    """Number of steps that optimizers have made in this process."""
    return _num_optimizer_steps


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
    """The running number of optimizer steps in the training of one network.

    Some ranks may have had more batches, so that they agree on it anew with the first draw after a `train()`: who draws
    first says in the process group's store where the epoch begins that follows on the one they leave.

    A rank that evaluated alone has begun an epoch that the others have not. Its first step, which needs the others'
    gradients, is noted in the store: who finds a step in an epoch that begins below its own number has been in it all
    along, and looks for the one after it.

    Args:
        structure: What tells the network from others of this process, but for its equals.
        num_steps: Where it begins; at 0 if None, or where rank 0 has been told to.

    Attributes:
        num_idle_epochs: Number of epochs, up to this one, that began without a step in the epoch before.
    """

    def __init__(self, structure: str, num_steps: Optional[int] = None) -> None:
        self.name = ''
        self.num_idle_epochs = 0
        self._start_key = f'{short_hash(structure)}.start'
        self._is_told = num_steps is not None
        self._is_known = False
        self._left: Optional[int] = None  # where the epoch began whose successor is still to be agreed on
        self._begin_at(num_steps or 0)
        _counts.add(self)

    def _begin_at(self, num_steps: int) -> None:
        self._start = num_steps
        self._counted_before = _num_optimizer_steps
        self._is_entered = self._has_trained = self._is_doubtful = False
        self._key = ''  # of the agreement, until the first step is noted there

    @property
    def value(self) -> int:
        """Number of steps, as this rank has them."""
        return self._start + _num_optimizer_steps - self._counted_before

    @property
    def known_value(self) -> Optional[int]:
        """The same for a network that has trained on several ranks, or goes on with the weights of one that has."""
        return self.value if self._is_known else None

    def start_epoch(self) -> bool:
        """Start an epoch if this one has trained anything; whether it has."""
        is_new = self._has_trained
        if is_new and self.value > self._start:
            self.num_idle_epochs = 0
            self._left = self._start
            self._begin_at(self.value)
        elif is_new:
            self.num_idle_epochs += 1
            self._has_trained = False
        if has_ranks():
            current_run().propose_seed()
            self._say_start()
        return is_new

    def go_on_from(self, num_steps: int) -> bool:
        """Go on from another number; whether it is another."""
        if num_steps == self.known_value:
            return False
        self._is_told = self._is_known = True
        self._left = None
        self.num_idle_epochs = 0
        self._begin_at(num_steps)
        self._say_start()
        return True

    def _say_start(self) -> None:
        # rank 0 may be the only one that was given the weights of a run
        if has_ranks() and dist.get_rank() == 0 and self._is_told and self._left is None and not self._is_entered:
            current_run().store.set(self._start_key, str(self._start))

    def enter(self, name: str, is_training: bool) -> int:
        """The number for a draw, in training or a look at the network, whose name is the same on all ranks."""
        if not self._is_entered:
            self.name = name
            self._agree()
            self._is_entered = self._is_known = True
        if self.value > self._start:
            self.num_idle_epochs = 0
        self._has_trained |= is_training or self.value > self._start
        return self.value

    def _agree(self) -> None:
        """Begin where the other ranks do."""
        store = current_run().store
        if self._left is None:
            if not self._is_told and store.check([self._start_key]):
                self._begin_at(int(store.get(self._start_key)))
            return
        own, left = self.value, self._left
        while True:
            key = f'{self.name}.{left}'
            start, *step = store.compare_set(key, '', str(own)).decode().split(' ', 1)
            left = int(start)
            if not step or left >= own:
                break
        self._begin_at(left)
        # the one that was there alone may not have noted its step yet: the others' draws will tell
        self._key, self._is_doubtful = key, left < own
        self._left = None

    def note_step(self) -> None:
        """Note that a step is made in this epoch, the gradients of which have come from all ranks."""
        if not self._key or not has_ranks():
            return
        store = current_run().store
        later = f'{self.name}.{self._start}'
        if self._is_doubtful and store.check([later]):
            self._key = later
            self._start = int(store.get(later).split()[0])
        store.compare_set(self._key, str(self._start), f'{self._start} and a step')
        self._key = ''
