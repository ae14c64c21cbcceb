"""Drop rates: how one rate is spread over the depth of a network, and how it rises over its training."""
from numbers import Real
from typing import Any, List, Sequence

__all__ = ['DISTRIBUTIONS', 'check_choice', 'check_flag', 'check_fraction', 'depth_scales', 'warmup_scale']

DISTRIBUTIONS = ('linear', 'uniform')


def check_fraction(name: str, value: Any) -> float:
    """Return value as a float if it is a real number in [0, 1].

    Raises:
        TypeError: It is no real number; the message names the argument, the value and what is allowed.
        ValueError: It lies outside [0, 1] or is NaN.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f'{name} must be a real number in [0, 1], but got {value!r} ({type(value).__name__}).')
    if not 0. <= float(value) <= 1.:  # NaN is in no range
        raise ValueError(f'{name} must be in [0, 1], but got {value!r}.')
    return float(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return value if it is one of choices.

    Raises:
        ValueError: It is none of them; the message names the argument, the value and the choices.
    """
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, choices))}, but got {value!r}.')
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return value if it is True or False.

    Raises:
        TypeError: It is something else, a string from a command line for instance.
    """
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, but got {value!r} ({type(value).__name__}).')
    return value


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


def warmup_scale(progress: float, drop_warmup: float) -> float:
    """The share of its full rate that a block has at some point of training.

    Args:
        progress: How far training is, in [0, 1].
        drop_warmup: Fraction of training over which the rate rises linearly from 0 to its full value, in [0, 1].
    """
    return min(progress / drop_warmup, 1.) if drop_warmup > 0. else 1.
