"""Settings of stochastic depth: one checked object, and rates spread over depth and training."""
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .messages import shown

__all__ = [
    'DISTRIBUTIONS',
    'DRAWS',
    'METHODS',
    'Settings',
    'check_choice',
    'check_flag',
    'check_fraction',
    'check_schedule',
    'depth_shares',
]

DISTRIBUTIONS = ('linear', 'uniform')
METHODS = ('block', 'sample')
DRAWS = ('independent', 'fixed')


def check_fraction(name: str, value: Any) -> float:
    """Return value as a float; a TypeError or ValueError unless it is a real number in [0, 1]."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f'{name} must be a real number in [0, 1], but got {shown(value, with_type=True)}.')
    if not 0. <= float(value) <= 1.:  # NaN is in no range
        raise ValueError(f'{name} must be in [0, 1], but got {value!r}.')
    return float(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return value; a ValueError unless it is one of choices."""
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, choices))}, but got {shown(value)}.')
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return value; a TypeError unless it is True or False, and no string from a command line for instance."""
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, but got {shown(value, with_type=True)}.')
    return value


def check_schedule(name: str, value: Any) -> Tuple[Tuple[float, float], ...]:
    """Return value as pairs of floats; a TypeError or ValueError unless it is points whose progress rises."""
    points = value if isinstance(value, (list, tuple)) else [value]
    if any(not isinstance(point, (list, tuple)) or len(point) != 2 for point in points):
        raise TypeError(
            f'{name} must be a sequence of points (progress, share of the rate), as in [(0, 0), (0.1, 1)], but got'
            f' {shown(value)}.')
    pairs = tuple((check_fraction(name, progress), check_fraction(name, share)) for progress, share in points)
    if not pairs or any(start >= end for (start, _), (end, _) in zip(pairs, pairs[1:])):
        raise ValueError(f'{name} must have at least one point, and its progress must rise, but got {shown(value)}.')
    return pairs


def depth_shares(num_blocks: int, drop_distribution: str = 'linear') -> List[float]:
    """The share of the drop rate that each block gets, in forward order.

    Linear shares are timm's, and those of the paper's eq. 4 but for the first block, which never drops here.
    """
    if drop_distribution == 'uniform':
        return [1.] * num_blocks
    return [block_idx / max(num_blocks - 1, 1) for block_idx in range(num_blocks)]


@dataclass(frozen=True)
class Settings:
    """How a network drops its branches; `dataclasses.replace` changes it.

    Attributes:
        stochastic_method: `'sample'`, an independent draw for each sample and branch, or `'block'`, one draw for a
            branch and the whole batch, a dropped branch is then not computed.
        drop_rate: Drop rate of the network, in [0, 1]; None keeps the rate of each drop path that is there.
        drop_distribution: `'linear'`, block l of 0 to L - 1 gets drop_rate * l / (L - 1), or `'uniform'`, each gets
            drop_rate. The branches of one block share its rate, and draw each for itself.
        use_same_gpu_seed: Block method: whether the ranks of a distributed run drop the same blocks.
        drop_warmup: Fraction of training over which the rate rises from 0, in [0, 1].
        drop_schedule: Instead of drop_warmup, points (progress of training, share of the rate), linear in between:
            early stochastic depth is `[(0, 1), (0.2, 0)]`, late `[(0.2, 0), (0.2001, 1)]`
            (https://arxiv.org/abs/2303.01500).
        scale_by_keep: Divide by the keep probability in training, as timm's DropPath does, instead of scaling the
            branch by it at inference, as the paper does. None for the latter, or with a drop_rate of None for what the
            drop paths that are there do: timm's divide.
        skip_dropped: Sample method: run a branch for the samples that keep it alone, which saves the time of the
            others. With norms that do not look at the batch this is masking, to rounding. A BatchNorm trains on the
            statistics of the kept samples, and uses its running statistics where it is given one value per channel.
        round_up: With skip_dropped, the number of samples that run a branch is rounded up, to a multiple of 8 in a
            batch of 128 or more and of 4 in others, so that a GPU meets few different sizes. What runs beyond counts
            nothing, neither forward nor backward. Not where a norm looks at the batch.
        draw: `'independent'`, or `'fixed'`, by which as many samples of each batch run a branch as are kept in the
            mean, rounded up, drawn on their device: sizes never change, as CUDA graphs need it. Each sample's rate is
            exact, but the draws of one batch depend on each other. Sample method, without a schedule.

    Raises:
        TypeError: A rate is not a number, a flag not a bool.
        ValueError: A value is not one of those allowed; the message names the argument, the value and them.

    Example:
        >>> import timm
        >>> from timm_stochdepth import Settings, apply_stochastic_depth
        >>> settings = Settings('sample', drop_rate=0.1, scale_by_keep=True, skip_dropped=True)
        >>> apply_stochastic_depth(timm.create_model('test_vit'), settings=settings, target_layer_name='DropPath')
    """
    stochastic_method: str
    drop_rate: Optional[float] = 0.2
    drop_distribution: str = 'linear'
    use_same_gpu_seed: bool = True
    drop_warmup: float = 0.
    drop_schedule: Optional[Sequence[Tuple[float, float]]] = None
    scale_by_keep: Optional[bool] = None
    skip_dropped: bool = False
    round_up: bool = False
    draw: str = 'independent'

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
        check_flag('round_up', self.round_up)
        check_choice('draw', self.draw, DRAWS)
        if self.draw == 'fixed':
            self._check_fixed()

    def _check_fixed(self) -> None:
        if self.stochastic_method != 'sample':
            raise ValueError(f"draw must be 'independent' with stochastic_method={self.stochastic_method!r}, but got"
                             " 'fixed'.")
        if self.schedule:
            raise ValueError(
                "draw must be 'independent' with a drop_warmup or drop_schedule, under which the number of samples that"
                " run would change, but got 'fixed'.")
        if self.round_up:
            raise ValueError("round_up must be False with draw='fixed', whose number never changes, but got True.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def schedule(self) -> Sequence[Tuple[float, float]]:
        """The points of the schedule; none where the rate is the full one all along."""
        if self.drop_schedule is not None:
            return self.drop_schedule
        return ((0., 0.), (self.drop_warmup, 1.)) if self.drop_warmup > 0. else ()

    def share(self, progress: float) -> float:
        """The share of the full rate at some point of training; linear between the schedule's points, else constant."""
        points = self.schedule or ((0., 1.),)
        for (start, share), (end, next_share) in zip(points, points[1:]):
            if start <= progress < end:
                return share + (next_share - share) * (progress - start) / (end - start)
        return points[0][1] if progress < points[0][0] else points[-1][1]

    def inference_factor(self, drop_rate: float, progress: float) -> float:
        """What a branch of some full rate is multiplied with at inference, at some point of training."""
        return 1. if self.scale_by_keep else 1. - drop_rate * self.share(progress)

    def model_args(self) -> Dict[str, Any]:
        """The keyword arguments that give a registered model these settings."""
        args = {f.name: getattr(self, f.name) for f in fields(self) if f.name != 'stochastic_method'}
        args = {'drop_path_rate': args.pop('drop_rate'), **args}
        # what older versions do not know is written where it is used
        args = {name: value for name, value in args.items() if name not in _LATER or value != _LATER[name]}
        schedule = args.pop('drop_schedule')
        return args if schedule is None else {**args, 'drop_schedule': [list(point) for point in schedule]}


_LATER = dict(round_up=False, draw='independent')
