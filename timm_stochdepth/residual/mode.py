"""The modes of a forward pass."""
from enum import Enum

__all__ = ['Mode']


class Mode(Enum):
    """What a forward pass does with a branch."""
    PLAIN = 'adds it, as a plain block does'
    SCALE = 'scales it by the keep probability, at inference'
    MASK = 'computes it, and masks the samples that are dropped'
    SKIP = 'computes it for the samples that are kept'
    BATCH = 'computes it or not, for the whole batch'
