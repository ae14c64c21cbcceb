"""Means over seeds, and how well they are known."""
from statistics import fmean, stdev
from typing import Sequence, Tuple

__all__ = ['mean_interval']


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Tuple[float, float]:
    """Mean, and half the width of its confidence interval by Student's t.

    Args:
        values: Two or more independent values.
        confidence: Probability that the interval holds the true mean, of values that are normally distributed.
    """
    from scipy.stats import t

    standard_error = stdev(values) / len(values) ** 0.5
    return fmean(values), float(t.ppf((1. + confidence) / 2., len(values) - 1)) * standard_error
