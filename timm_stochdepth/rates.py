"""Drop rates: how one rate is spread over the depth of a network, and how it changes over its training."""
from numbers import Real
from typing import Any, List, Sequence, Tuple

__all__ = [
    'DISTRIBUTIONS',
    'check_choice',
    'check_flag',
    'check_fraction',
    'check_schedule',
    'depth_scales',
    'schedule_share',
    'shown',
]

DISTRIBUTIONS = ('linear', 'uniform')

_LONG = 120  # characters; what a message shows of a value is to stay a part of its sentence


def shown(value: Any, with_type: bool = False) -> str:
    """A value as a message shows it: by its type alone where it would be a page long, as a network is."""
    text, type_name = repr(value), type(value).__name__
    if len(text) > _LONG or '\n' in text:
        return f'an object of type {type_name}'
    return f'{text} ({type_name})' if with_type else text


def check_fraction(name: str, value: Any) -> float:
    """Return value as a float if it is a real number in [0, 1].

    Raises:
        TypeError: It is no real number; the message names the argument, the value and what is allowed.
        ValueError: It lies outside [0, 1] or is NaN.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f'{name} must be a real number in [0, 1], but got {shown(value, with_type=True)}.')
    if not 0. <= float(value) <= 1.:  # NaN is in no range
        raise ValueError(f'{name} must be in [0, 1], but got {value!r}.')
    return float(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return value if it is one of choices.

    Raises:
        ValueError: It is none of them; the message names the argument, the value and the choices.
    """
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, choices))}, but got {shown(value)}.')
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return value if it is True or False.

    Raises:
        TypeError: It is something else, a string from a command line for instance.
    """
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, but got {shown(value, with_type=True)}.')
    return value


def check_schedule(name: str, value: Any) -> Tuple[Tuple[float, float], ...]:
    """Return value as pairs of floats if it is a schedule: points (progress, share of the rate), progress rising.

    Raises:
        TypeError: It is no sequence of pairs of numbers.
        ValueError: It is empty, a number lies outside [0, 1], or progress does not rise from point to point.
    """
    points = tuple(tuple(point) if isinstance(point, (list, tuple)) else () for point in value) if isinstance(
        value, (list, tuple)) else ((),)
    if any(len(point) != 2 for point in points):
        raise TypeError(
            f'{name} must be a sequence of points (progress, share of the rate), as in [(0, 0), (0.1, 1)], but got'
            f' {shown(value)}.')
    pairs = tuple((check_fraction(name, progress), check_fraction(name, share)) for progress, share in points)
    if not pairs or any(start >= end for (start, _), (end, _) in zip(pairs, pairs[1:])):
        raise ValueError(f'{name} must have at least one point, and its progress must rise, but got {shown(value)}.')
    return pairs


def depth_scales(num_blocks: int, drop_distribution: str = 'linear') -> List[float]:
    """The share of the drop rate that each block gets, in forward order.

    Args:
        num_blocks: Number L of stochastic blocks.
        drop_distribution: `'linear'`, l / (L - 1) for l from 0 to L - 1 (timm's rule, and the paper's eq. 4 but for
            the first block, that never drops here), or `'uniform'`, 1 for every block.
    """
    check_choice('drop_distribution', drop_distribution, DISTRIBUTIONS)
    if drop_distribution == 'uniform':
        return [1.] * num_blocks
    return [block_idx / max(num_blocks - 1, 1) for block_idx in range(num_blocks)]


def schedule_share(progress: float, schedule: Sequence[Tuple[float, float]]) -> float:
    """The share of its full rate that a block has at some point of training.

    Args:
        progress: How far training is, in [0, 1].
        schedule: Points (progress, share), as of `check_schedule`: linear in between, constant outside of them; none
            for the full rate all along.
    """
    if not schedule:
        return 1.
    for (start, share), (end, next_share) in zip(schedule, schedule[1:]):
        if start <= progress < end:
            return share + (next_share - share) * (progress - start) / (end - start)
    return schedule[0][1] if progress < schedule[0][0] else schedule[-1][1]
