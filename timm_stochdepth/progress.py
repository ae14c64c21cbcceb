"""How far training is, and at what rate, told once and heard by a model and all its copies."""
from typing import Any, Dict, Protocol, Tuple
from weakref import WeakSet

__all__ = ['TrainingProgress']


class Follower(Protocol):
    place_idx: int

    def update_drop_prob(self) -> None: ...

    def set_drop_rate(self, drop_rate: float) -> None: ...


class TrainingProgress:
    """The progress of one training run, shared by the blocks of a model.

    A deepcopy of a model shares it too, so that an EMA copy evaluates at the rate of the model that it follows.

    Attributes:
        fraction: 0 at the start of training, 1 at its end. A model that nobody tells stands at 1.
        is_told: Whether somebody has told it how far training is.
    """

    def __init__(self, fraction: float = 1.) -> None:
        self.fraction = fraction
        self.is_told = False
        self._followers: WeakSet[Follower] = WeakSet()

    def tell(self, fraction: float) -> None:
        self.fraction = fraction
        self.is_told = True
        for follower in self._followers:
            follower.update_drop_prob()

    def tell_rate(self, place_idx: int, drop_rate: float) -> None:
        for follower in self._followers:
            if follower.place_idx == place_idx:
                follower.set_drop_rate(drop_rate)

    def add(self, follower: Follower) -> None:
        self._followers.add(follower)

    def remove(self, follower: Follower) -> None:
        self._followers.discard(follower)

    def __deepcopy__(self, memo: Dict[int, Any]) -> 'TrainingProgress':
        return self

    def __reduce__(self) -> Tuple[Any, ...]:
        return TrainingProgress, (self.fraction,)
