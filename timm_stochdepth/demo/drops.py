"""Count what is really dropped while a network trains."""
from collections import Counter, defaultdict
from types import TracebackType
from typing import Any, Dict, Optional, Type, Union

import torch
from torch import Tensor, nn

from ..draws.bernoulli import Draws
from ..inspection import drop_paths, drop_rates

__all__ = ['DropCounter']


class DropCounter:
    """Context in which the draws of a model's stochastic blocks are counted.

    Args:
        model: Any model; one without stochastic blocks gives empty counts.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.drawn: Counter = Counter()
        self.dropped: Dict[str, Union[int, Tensor]] = defaultdict(int)

    def __enter__(self) -> 'DropCounter':
        self._before = [(drop_path, drop_path.draws) for _, drop_path in drop_paths(self.model)]
        for name, drop_path in drop_paths(self.model):
            drop_path.draws = _CountedDraws(drop_path.draws, self, name.rpartition('.')[0])
        return self

    def __exit__(
            self,
            exc_type: Optional[Type[BaseException]],
            exc: Optional[BaseException],
            traceback: Optional[TracebackType],
    ) -> None:
        for drop_path, draws in self._before:
            drop_path.draws = draws

    def count(self, block_name: str, keep_N: Tensor) -> None:
        """Count the draws of one branch, each 0 where it is dropped."""
        self.drawn[block_name] += keep_N.numel()
        # stays where it is: no wait for a device
        self.dropped[block_name] = self.dropped[block_name] + (keep_N == 0).sum()

    def rates(self) -> Dict[str, float]:
        """Drop rate of each block."""
        return drop_rates(self.model)

    def frequencies(self) -> Dict[str, float]:
        """How often each block's branch was dropped, as a fraction of its draws; a block without a draw never was."""
        return {name: int(self.dropped[name]) / max(self.drawn[name], 1) for name in self.rates()}


class _CountedDraws(Draws):
    """Those of others, counted."""

    def __init__(self, draws: Draws, counter: DropCounter, block_name: str) -> None:
        self.draws = draws
        self.counter = counter
        self.block_name = block_name

    def samples(self, *args: Any) -> Tensor:
        keep_N = self.draws.samples(*args)
        self.counter.count(self.block_name, keep_N)
        return keep_N

    def batch(self, drop_prob: float) -> bool:
        keeps = self.draws.batch(drop_prob)
        self.counter.count(self.block_name, torch.tensor([keeps]))
        return keeps
