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

    Some ranks may have had more batches, so that they agree on it anew with the first draw of an epoch, which begins
    with `train()`: who draws first says in the process group's store where it begins.

    A rank that evaluated alone has begun an epoch that the others have not. Its first step, which needs the others'
    gradients, is noted in the store: who finds a step in an epoch that begins below its own number has been in it all
    along, and goes on to the next.

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
        self._is_known = False
        self._epoch = self._first = 0
        self._begin_at(num_steps or 0, is_told=num_steps is not None)
        _counts.add(self)

    def _begin_at(self, num_steps: int, is_told: bool = False) -> None:
        self._start = num_steps
        self._counted_before = _num_optimizer_steps
        self._is_told = is_told
        self._is_entered = self._has_trained = self._has_noted_step = self._is_doubtful = False

    def _key(self, num_later: int = 0) -> str:
        # a network that was given its like's name, once that was gone, begins elsewhere
        return f'{self.name}.{self._first}.{self._epoch + num_later}' if self._epoch else self._start_key

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
        if is_new:
            self.num_idle_epochs = 0 if self.value > self._start else self.num_idle_epochs + 1
            self._epoch += 1
            self._begin_at(self.value)
        if has_ranks():
            current_run().propose_seed()
            self._say_start()
        return is_new

    def go_on_from(self, num_steps: int) -> bool:
        """Go on from another number, in an epoch of its own if this one has made steps; whether it is another."""
        if num_steps == self.known_value:
            return False
        self._epoch += self.value > self._start
        self._begin_at(num_steps, is_told=True)
        self._is_known = True
        self.num_idle_epochs = 0
        self._say_start()
        return True

    def _say_start(self) -> None:
        # rank 0 may be the only one that was given the weights of a run
        if self._is_told and not self._is_entered and has_ranks() and dist.get_rank() == 0:
            current_run().store.set(self._key(), str(self._start))

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
        if self._epoch == 0:
            if not self._is_told and store.check([self._key()]):
                self._start = int(store.get(self._key()))
            self._first = self._start
        elif self._is_told:
            store.set(self._key(), str(self._start))
        else:
            own = self._start  # what an optimizer has done since then comes on top
            start, *step = store.compare_set(self._key(), '', str(own)).split()
            while step and int(start) < own:
                self._epoch += 1
                start, *step = store.compare_set(self._key(), '', str(own)).split()
            self._start = int(start)
            # the one that was there alone may not have noted its step yet: the others' draws will tell
            self._is_doubtful = self._start < own

    def note_step(self) -> None:
        """Note that a step is made in this epoch, the gradients of which have come from all ranks."""
        if self._epoch == 0 or not self._is_entered or self._has_noted_step or not has_ranks():
            return
        self._has_noted_step = True
        store = current_run().store
        if self._is_doubtful and store.check([self._key(1)]):
            self._epoch += 1
            self._start = int(store.get(self._key()).split()[0])
        store.compare_set(self._key(), str(self._start), f'{self._start} step')
