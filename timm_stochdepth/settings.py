"""The settings of stochastic depth: one object, checked where it is made."""
from dataclasses import dataclass
from typing import Any, Dict, Optional, Sequence, Tuple

from .rates import DISTRIBUTIONS, check_choice, check_flag, check_fraction, check_schedule, schedule_share

__all__ = ['METHODS', 'Settings']

METHODS = ('block', 'sample')


@dataclass(frozen=True)
class Settings:
    """How a network drops its branches.

    Attributes:
        stochastic_method: `'sample'`, an independent draw for each sample and branch, or `'block'`, one for the batch.
        drop_rate: Drop rate of the network, in [0, 1]; None for the rates of the drop paths that it has.
        drop_distribution: `'linear'`, block l of L gets drop_rate * l / (L - 1), or `'uniform'`, each gets drop_rate.
        use_same_gpu_seed: Block method: whether the ranks of a distributed run drop the same blocks.
        drop_warmup: Fraction of training over which the rate rises from 0, in [0, 1].
        drop_schedule: Points (progress of training, share of the rate), with progress rising, linear in between.
        scale_by_keep: Divide by the keep probability in training, instead of scaling by it at inference; None for the
            latter, or with a drop_rate of None for what the drop paths of the network do.
        skip_dropped: Sample method: run a branch for the samples that keep it alone.

    Raises:
        TypeError: A rate is not a number, a flag not a bool.
        ValueError: A value is not one of those allowed; the message names the argument, the value and them.
    """
    stochastic_method: str
    drop_rate: Optional[float] = 0.2
    drop_distribution: str = 'linear'
    use_same_gpu_seed: bool = True
    drop_warmup: float = 0.
    drop_schedule: Optional[Sequence[Tuple[float, float]]] = None
    scale_by_keep: Optional[bool] = None
    skip_dropped: bool = False

    def __post_init__(self) -> None:
        check_choice('stochastic_method', self.stochastic_method, METHODS)
        if self.drop_rate is not None:
            self._set('drop_rate', check_fraction('drop_rate', self.drop_rate))
        check_choice('drop_distribution', self.drop_distribution, DISTRIBUTIONS)
        check_flag('use_same_gpu_seed', self.use_same_gpu_seed)
        self._set('drop_warmup', check_fraction('drop_warmup', self.drop_warmup))
        if self.drop_schedule is not None:
            self._set('drop_schedule', check_schedule('drop_schedule', self.drop_schedule))
            if self.drop_warmup > 0.:
                raise ValueError(
                    f'drop_warmup must be 0 where a drop_schedule is given, but got {self.drop_warmup}.')
        if self.scale_by_keep is not None:
            check_flag('scale_by_keep', self.scale_by_keep)
        check_flag('skip_dropped', self.skip_dropped)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def schedule(self) -> Sequence[Tuple[float, float]]:
        """The points of the schedule; none where the rate is the full one all along."""
        if self.drop_schedule is not None:
            return self.drop_schedule
        return ((0., 0.), (self.drop_warmup, 1.)) if self.drop_warmup > 0. else ()

    def share(self, progress: float) -> float:
        """The share of the full rate at some point of training, from 0 at its start to 1 at its end."""
        return schedule_share(progress, self.schedule)

    def model_args(self) -> Dict[str, Any]:
        """The keyword arguments that give a registered model these settings."""
        args: Dict[str, Any] = dict(
            drop_path_rate=self.drop_rate,
            drop_distribution=self.drop_distribution,
            drop_warmup=self.drop_warmup,
            use_same_gpu_seed=self.use_same_gpu_seed,
            scale_by_keep=self.scale_by_keep,
            skip_dropped=self.skip_dropped,
        )
        if self.drop_schedule is not None:
            args['drop_schedule'] = [list(point) for point in self.drop_schedule]
        return args
