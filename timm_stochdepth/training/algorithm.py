"""Stochastic depth as an algorithm of a trainer that has the shape of Composer's."""
from dataclasses import asdict
from typing import Any, Dict, Optional, Protocol, Sequence, SupportsFloat, Tuple

from torch import nn

from ..places import drop_rates
from ..rate_changes import set_training_progress
from ..settings import Settings
from ..surgery import apply_stochastic_depth, check_target_layer_name

__all__ = ['StochasticDepth']


class State(Protocol):
    """What is asked of a trainer's state."""
    model: nn.Module

    def get_elapsed_duration(self) -> Optional[SupportsFloat]: ...


class Logger(Protocol):
    """What is asked of a trainer's logger."""

    def log_metrics(self, metrics: Dict[str, Any]) -> None: ...


class StochasticDepth:
    """Gives a trainer's model stochastic depth when training starts, and warms its rate up.

    It is of the form of Composer's algorithms
    (https://github.com/mosaicml/composer/tree/main/composer/algorithms/stochastic_depth). Events are an enum's members,
    or their values, as Composer's are: INIT (`'init'`) and BATCH_START (`'batch_start'`).

    Args:
        stochastic_method: `'sample'` or `'block'`.
        target_layer_name: `'DropPath'`, a key of `STOCHASTIC_LAYER_MAPPING`, or a class's own name.
        drop_rate: Drop rate of the network, in [0, 1]; None keeps the rates of the drop paths that are there.
        drop_distribution: `'linear'` or `'uniform'`.
        drop_warmup: Fraction of training over which the rate rises from 0, in [0, 1].
        use_same_gpu_seed: Block method: whether the ranks of a distributed run drop the same blocks.
        drop_schedule: Points (progress of training, share of the rate), instead of drop_warmup.
        scale_by_keep: Divide by the keep probability in training, instead of scaling by it at inference.
        skip_dropped: Sample method: run a branch for the samples that keep it alone.

    Raises:
        TypeError: A rate is not a number, a flag not a bool.
        ValueError: A value is not one of those allowed.

    Example:
        >>> algorithm = StochasticDepth('block', 'ResNetBottleneck', drop_rate=0.2, drop_warmup=0.1)
        >>> algorithm.match('batch_start', state=None)
        True
    """

    def __init__(
            self,
            stochastic_method: str,
            target_layer_name: str,
            drop_rate: Optional[float] = 0.2,
            drop_distribution: str = 'linear',
            drop_warmup: float = 0.,
            use_same_gpu_seed: bool = True,
            *,
            drop_schedule: Optional[Sequence[Tuple[float, float]]] = None,
            scale_by_keep: bool = False,
            skip_dropped: bool = False,
    ) -> None:
        self.settings = Settings(
            stochastic_method, drop_rate, drop_distribution, use_same_gpu_seed, drop_warmup, drop_schedule,
            scale_by_keep, skip_dropped)
        check_target_layer_name(target_layer_name)
        self.target_layer_name = target_layer_name

    def match(self, event: Any, state: State) -> bool:
        """Whether `apply` has something to do: on INIT, and on BATCH_START with a warm-up."""
        name = _event_name(event)
        return name == 'init' or (name == 'batch_start' and bool(self.settings.schedule))

    def apply(self, event: Any, state: State, logger: Logger) -> Optional[int]:
        """Change `state.model` on INIT; on BATCH_START set its rate from the elapsed fraction of training.

        Raises:
            RuntimeError: The state does not know how far training is on BATCH_START.
        """
        if _event_name(event) == 'init':
            apply_stochastic_depth(state.model, target_layer_name=self.target_layer_name, **asdict(self.settings))
            if self.settings.schedule:
                set_training_progress(state.model, 0.)
            logger.log_metrics({'stochastic_depth/num_stochastic_layers': len(drop_rates(state.model))})
        elif self.match(event, state):
            elapsed = state.get_elapsed_duration()
            if elapsed is None:
                raise RuntimeError(f'state.get_elapsed_duration() must be a fraction on {event}, but it is None.')
            fraction = min(float(elapsed), 1.)
            set_training_progress(state.model, fraction)
            logger.log_metrics({'stochastic_depth/drop_rate': max(drop_rates(state.model).values(), default=0.)})
        return None

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.target_layer_name!r}, {self.settings})'


def _event_name(event: Any) -> str:
    return str(getattr(event, 'value', event)).lower()
