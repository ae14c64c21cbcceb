"""Count what is really dropped while a network trains."""
from collections import Counter, defaultdict
from types import TracebackType
from typing import Any, Callable, Dict, Optional, Type, Union

import torch
from torch import Tensor, nn

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
        for name, place in drop_paths(self.model):
            for draw in ('draw_samples', 'draw_block'):
                setattr(place, draw, self._counted(name.rpartition('.')[0], getattr(place, draw)))
        return self

    def __exit__(
            self,
            exc_type: Optional[Type[BaseException]],
            exc: Optional[BaseException],
            traceback: Optional[TracebackType],
    ) -> None:
        for _, place in drop_paths(self.model):
            del place.draw_samples, place.draw_block  # the instance's, those of its class stay

    def _counted(self, name: str, draw: Callable[..., Any]) -> Callable[..., Any]:
        def counted_draw(*args: Any) -> Any:
            keep = draw(*args)
            keep_N = torch.as_tensor(keep).view(-1)
            self.drawn[name] += keep_N.numel()
            self.dropped[name] = self.dropped[name] + (keep_N == 0).sum()  # stays where it is: no wait for a device
            return keep
        return counted_draw

    def rates(self) -> Dict[str, float]:
        """Drop rate of each block."""
        return drop_rates(self.model)

    def frequencies(self) -> Dict[str, float]:
        """How often each block's branch was dropped, as a fraction of its draws; a block without a draw never was."""
        return {name: int(self.dropped[name]) / max(self.drawn[name], 1) for name in self.rates()}
