"""How many steps of the optimizer a network has trained for: alike on all ranks, and in a run that is resumed."""
from hashlib import sha256
from typing import Any, Optional
from weakref import WeakSet

import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .process_group import Run, current_run, has_ranks

__all__ = ['StepCount', 'short_hash']

_num_optimizer_steps = 0
_is_counting = False
_counts: 'WeakSet[StepCount]' = WeakSet()


def _count_optimizer_steps() -> None:
    global _is_counting
    if not _is_counting:
        _is_counting = True
        register_optimizer_step_pre_hook(_before_optimizer_step)
        register_optimizer_step_post_hook(_after_optimizer_step)


def _before_optimizer_step(*args: Any) -> None:
    for count in list(_counts):
        count.note_step()


def _after_optimizer_step(*args: Any) -> None:
    global _num_optimizer_steps
    _num_optimizer_steps += 1


def short_hash(text: str) -> str:
    """A text that stands for a longer one."""
    return sha256(text.encode()).hexdigest()[:16]


class StepCount:
    """The running number of optimizer steps in the training of one network.

    It is the same wherever `train()` was called in between. An epoch, which begins with `train()`, is where ranks agree
    on it anew, since some may have had more batches: the first that asks settles it, or rank 0 in its own `train()`.
    A rank that evaluated alone has started an epoch that the others have not. Once its optimizer has made a step, which
    needs the others' gradients, it notes so; who then finds an epoch in which a step was made, and which begins at a
    lower number than its own, has been in it all along, and goes on to the next.

    Args:
        structure: What tells the network from others of this process, but for its equals.
        num_steps: Where it begins; at 0 if None, or where rank 0 has been told to.

    Attributes:
        num_idle_epochs: Number of epochs, up to this one, that began without a step in the epoch before.
    """

    def __init__(self, structure: str, num_steps: Optional[int] = None) -> None:
        self.structure = structure
        self.name = ''
        self.num_idle_epochs = 0
        self._epoch = 0
        self._start = 0
        self._base = num_steps or 0
        self._counted_before = _num_optimizer_steps
        self._loaded: Optional[int] = None
        self._is_known = False
        self._is_agreed = num_steps is not None
        self._is_entered = False
        self._has_trained = False
        self._has_noted_step = False
        self._is_doubtful = False
        _counts.add(self)

    @property
    def value(self) -> int:
        """Number of steps, as this rank has them."""
        return self._base + _num_optimizer_steps - self._counted_before

    @property
    def known_value(self) -> Optional[int]:
        """The same for a network that has trained on several ranks, or goes on with the weights of one that has."""
        if self._loaded is not None:
            return self._loaded
        return self.value if self._is_known else None

    def start_epoch(self) -> bool:
        """Start an epoch if this one has trained anything; whether it is a new one."""
        is_new = self._has_trained or self._loaded is not None
        if is_new:
            self.num_idle_epochs = 0 if self.value > self._base else self.num_idle_epochs + 1
            self._epoch += 1
            self._begin_at(self.value if self._loaded is None else self._loaded, is_agreed=self._loaded is not None)
        if has_ranks():
            run = current_run()
            run.propose_seed()
            _count_optimizer_steps()
            if dist.get_rank() == 0:
                self._propose(run)
        return is_new

    def go_on_from(self, num_steps: int) -> bool:
        """Go on from a number: at once if this epoch has made no step, else with the next; whether at once.

        One rank alone may be told, and is not to part from the others amid an epoch.
        """
        if num_steps == self.known_value:
            return False
        if self.value > self._base:
            self._loaded = num_steps
            return False
        self._begin_at(num_steps, is_agreed=True)
        self._is_known = True
        self.num_idle_epochs = 0
        if has_ranks() and dist.get_rank() == 0:
            self._propose(current_run())
        return True

    def enter(self, name: str, is_training: bool) -> int:
        """The number for a draw that is taken now.

        Args:
            name: The network's, the same on all ranks.
            is_training: Whether the draw is for training, and not for a look at the network.
        """
        if not self._is_entered:
            _count_optimizer_steps()
            self.name = name
            self._agree(current_run())
            self._is_entered = True
            self._is_known = True
        value = self.value
        if value > self._base:
            self.num_idle_epochs = 0
        self._has_trained |= is_training or value > self._base
        return value

    def note_step(self) -> None:
        """Say that a step is made in this epoch, the gradients of which have come from all ranks."""
        if self._epoch > 0 and self._is_entered and not self._has_noted_step and has_ranks():
            self._has_noted_step = True
            store = current_run().store
            if self._is_doubtful and store.check([self._key(1)]):
                self._epoch += 1
                self._base = int(store.get(self._key()).split()[0])
            store.compare_set(self._key(), str(self._base), f'{self._base} and a step')

    def _begin_at(self, base: int, is_agreed: bool) -> None:
        self._base = base
        self._counted_before = _num_optimizer_steps
        self._loaded = None
        self._is_agreed = is_agreed
        self._is_entered = False
        self._has_trained = False
        self._has_noted_step = False
        self._is_doubtful = False

    def _key(self, num_later: int = 0) -> str:
        # a network that was given its like's name, once that was gone, begins elsewhere
        return f'{self.name}.{self._start}.{self._epoch + num_later}'

    def _propose(self, run: Run) -> None:
        """Say, on rank 0, where an epoch begins, before anyone asks for it."""
        if self._epoch == 0 and self._is_agreed and not self._is_entered:
            run.store.set(f'{short_hash(self.structure)}.start', str(self._base))
        elif self._epoch > 0 and self.name:
            self._agree(run)

    def _agree(self, run: Run) -> None:
        """Begin the epoch where the other ranks do."""
        if self._epoch == 0:
            key = f'{short_hash(self.structure)}.start'  # rank 0 may be the only one that was given weights
            if not self._is_agreed and run.store.check([key]):
                self._base = int(run.store.get(key))
            self._start = self._base
        elif self._is_agreed:
            run.store.set(self._key(), str(self._base))
        while not self._is_agreed and self._epoch > 0:
            base, *step = run.store.compare_set(self._key(), '', str(self._base)).decode().split(' ', 1)
            if step and int(base) < self._base:
                self._epoch += 1
            else:
                # the one that was there alone may not have said so yet: the others' draws will
                self._is_doubtful = int(base) < self._base
                self._base = int(base)
                self._is_agreed = True
        self._is_agreed = True
