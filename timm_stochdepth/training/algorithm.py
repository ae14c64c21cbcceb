"""Stochastic depth as an algorithm of a trainer that has the shape of Composer's."""
from typing import Any, Dict, Optional, Protocol, SupportsFloat

from torch import nn

from ..rates import warmup_scale
from ..surgery import apply_stochastic_depth, check_arguments, drop_rates, set_training_progress

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

    Events are an enum's members, or their values, as Composer's are: INIT (`'init'`) and BATCH_START
    (`'batch_start'`).

    Args:
        stochastic_method: `'sample'` or `'block'`.
        target_layer_name: A key of `STOCHASTIC_LAYER_MAPPING`.
        drop_rate: Drop rate of the network, in [0, 1].
        drop_distribution: `'linear'` or `'uniform'`.
        drop_warmup: Fraction of training over which the rate rises from 0, in [0, 1].
        use_same_gpu_seed: Block method: whether the ranks of a distributed run drop the same blocks.

    Raises:
        TypeError: A rate is not a number, a flag not a bool.
        ValueError: A value is not one of those allowed.
    """

    def __init__(
            self,
            stochastic_method: str,
            target_layer_name: str,
            drop_rate: float = 0.2,
            drop_distribution: str = 'linear',
            drop_warmup: float = 0.,
            use_same_gpu_seed: bool = True,
    ) -> None:
        self.arguments: Dict[str, Any] = dict(
            stochastic_method=stochastic_method,
            target_layer_name=target_layer_name,
            drop_rate=drop_rate,
            drop_distribution=drop_distribution,
            drop_warmup=drop_warmup,
            use_same_gpu_seed=use_same_gpu_seed,
        )
        check_arguments(**self.arguments)
        self.drop_rate = drop_rate
        self.drop_warmup = drop_warmup

    def match(self, event: Any, state: State) -> bool:
        """Whether `apply` has something to do: on INIT, and on BATCH_START with a warm-up."""
        name = _event_name(event)
        return name == 'init' or (name == 'batch_start' and self.drop_warmup > 0.)

    def apply(self, event: Any, state: State, logger: Logger) -> Optional[int]:
        """Change `state.model` on INIT; on BATCH_START set its rate from the elapsed fraction of training.

        Raises:
            RuntimeError: The state does not know how far training is on BATCH_START.
        """
        if _event_name(event) == 'init':
            apply_stochastic_depth(state.model, **self.arguments)
            if self.drop_warmup > 0.:
                set_training_progress(state.model, 0.)
            logger.log_metrics({'stochastic_depth/num_stochastic_layers': len(drop_rates(state.model))})
        elif self.match(event, state):
            elapsed = state.get_elapsed_duration()
            if elapsed is None:
                raise RuntimeError(f'state.get_elapsed_duration() must be a fraction on {event}, but it is None.')
            fraction = min(float(elapsed), 1.)
            set_training_progress(state.model, fraction)
            current_drop_rate = self.drop_rate * warmup_scale(fraction, self.drop_warmup)
            logger.log_metrics({'stochastic_depth/drop_rate': current_drop_rate})
        return None

    def __repr__(self) -> str:
        return f'{type(self).__name__}({", ".join(f"{k}={v!r}" for k, v in self.arguments.items())})'


def _event_name(event: Any) -> str:
    return str(getattr(event, 'value', event)).lower()
