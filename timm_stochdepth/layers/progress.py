"""Training progress and drop rate, shared by a model and its copies."""
from typing import Any, Dict, Optional, Protocol, Tuple
from weakref import WeakSet

from ..draws.step_count import optimizer_steps

__all__ = ['TrainingProgress']


class Follower(Protocol):
    drop_path_idx: int

    def update_drop_prob(self) -> None: ...

    def set_drop_rate(self, drop_rate: float, own_rate: Optional[float] = None) -> None: ...


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
        self._steps_before = optimizer_steps()
        self._followers: WeakSet[Follower] = WeakSet()

    @property
    def has_stepped(self) -> bool:
        """Whether an optimizer of this process has made a step since the network was made: it trains."""
        return optimizer_steps() > self._steps_before

    def tell(self, fraction: float) -> None:
        self.fraction = fraction
        self.is_told = True
        for follower in self._followers:
            follower.update_drop_prob()

    def tell_rate(self, drop_path_idx: int, drop_rate: float, own_rate: Optional[float] = None) -> None:
        for follower in self._followers:
            if follower.drop_path_idx == drop_path_idx:
                follower.set_drop_rate(drop_rate, own_rate)

    def num_drop_paths(self) -> int:
        return len({follower.drop_path_idx for follower in self._followers})

    def add(self, follower: Follower) -> None:
        self._followers.add(follower)

    def remove(self, follower: Follower) -> None:
        self._followers.discard(follower)

    def __deepcopy__(self, memo: Dict[int, Any]) -> 'TrainingProgress':
        return self

    def __reduce__(self) -> Tuple[Any, ...]:
        return TrainingProgress, (self.fraction,), dict(is_told=self.is_told)
