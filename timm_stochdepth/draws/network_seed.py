"""The seed of the draws that one network shares on all ranks."""
from typing import Optional
from weakref import ref

from .process_group import current_run, has_ranks

__all__ = ['NetworkSeed']


class NetworkSeed:
    """Rank 0's seed, as one network has it on this rank.

    Up to the first step after a draw in training it is that of rank 0's first network, then that of its own first draw
    in training, which every rank finds by then. A network that was made before the process group has none until then. A
    run that goes on has the one that it is told.

    Args:
        seed: The seed that it goes on with, if any.

    Attributes:
        value: The seed.
        is_final: Whether it stays what it is.
    """

    def __init__(self, seed: Optional[int]) -> None:
        self.value = 0 if seed is None else seed
        self.is_final = self._is_known = seed is not None
        self._first_trained_at: Optional[int] = None
        self._may_ask = True
        self._made_in = ref(current_run()) if has_ranks() else None
        if has_ranks():
            current_run().say_seed('of_networks')

    def take(self, seed: int, is_final: bool = False) -> None:
        self.value = seed
        self._is_known = True
        self.is_final |= is_final

    def take_first(self) -> None:
        """Take that of rank 0's first network, if there is no other."""
        if not self._is_known:
            is_made_in_run = self._made_in is not None and self._made_in() is current_run()
            self.take(current_run().first_seed() if is_made_in_run else 0)

    def note_training(self, num_steps: int) -> None:
        """Note the first draw in training, after a number of the optimizer's steps in this process."""
        if self._first_trained_at is None:
            self._first_trained_at = num_steps
            current_run().say_seed('in_training')

    def ask(self, num_steps: int, is_first_epoch: bool) -> None:
        """Take rank 0's seed in training, at the first draw by which all ranks find it."""
        if self.is_final or not self._may_ask or self._first_trained_at is None:
            return
        if not is_first_epoch or num_steps > self._first_trained_at:
            self._may_ask = False  # a rank that trains alone may find none
            seed = current_run().said_seed('in_training')
            if seed is not None:
                self.take(seed, is_final=True)

    def may_ask_again(self) -> None:
        """Ask at the next draw: another epoch has begun, or the other ranks' gradients have come."""
        self._may_ask = True
