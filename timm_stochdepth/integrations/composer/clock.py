"""Measure how far a run of Composer's trainer is, by the batch, and read durations as its users write them."""
from typing import Any, Optional, Protocol, Union

from torch import nn

from ...settings import check_fraction

__all__ = ['Duration', 'State', 'check_duration', 'share_done']


class Duration(Protocol):
    """Composer's `Time`: so many epochs (`'ep'`), batches (`'ba'`), samples (`'sp'`), tokens (`'tok'`) and so on."""
    value: float
    unit: Any

    def to_timestring(self) -> str: ...


class State(Protocol):
    """What is asked of the state of Composer's trainer."""
    model: nn.Module
    timestamp: Any
    max_duration: Optional[Duration]
    dataloader_len: Any


def check_duration(name: str, value: Any) -> Union[float, Duration]:
    """Return value as a fraction of training, or as one of Composer's durations.

    It is a fraction, a time string (`'0.1dur'`, `'2ep'`, `'10ba'`) or a `Time`, else a TypeError or ValueError.
    """
    allowed = "a fraction in [0, 1], or a time of Composer's as in '0.1dur', '2ep' or '10ba'"
    if isinstance(value, str):
        try:
            from composer.core import Time  # who writes its strings has it
            value = Time.from_timestring(value)
        except (ImportError, TypeError, ValueError) as e:
            raise ValueError(f'{name} must be {allowed}, but got {value!r}: {e}') from e
    if not (hasattr(value, 'unit') and hasattr(value, 'to_timestring')):
        return check_fraction(name, value)
    if value.unit.value == 'dur':
        return check_fraction(name, value.value)
    if value.value < 0:
        raise ValueError(f'{name} must be {allowed}, but got {value.to_timestring()!r}.')
    return value if value.value > 0 else 0.


def share_done(state: State, duration: Duration) -> float:
    """The share of a duration that has passed, in [0, 1]; a ValueError if the length of an epoch is not known."""
    return min(_elapsed(state, duration.unit.value) / duration.value, 1.)


def _elapsed(state: State, unit: str) -> float:
    """How many units of time have passed; within an epoch, its batches are counted."""
    now = state.timestamp
    if unit == 'sec':
        return now.total_wct.total_seconds() if now.total_wct is not None else 0.
    if unit == 'ep':
        return int(now.epoch) + _share_of_epoch(state)
    length = getattr(state, '_iteration_length', None)
    if unit == 'iter' and length is not None:
        is_in_tokens = length.unit.value == 'tok'
        within = int(now.token_in_iteration) if is_in_tokens else int(now.epoch_in_iteration) + _share_of_epoch(state)
        return int(now.iteration) + within / length.value
    return now.get(unit).value


def _share_of_epoch(state: State) -> float:
    if state.dataloader_len is None:
        raise ValueError(
            "drop_warmup must be in batches or samples ('100ba', '6400sp') and not in epochs where the train dataloader"
            ' has no length, or train_subset_num_batches has to give it one.')
    return min(int(state.timestamp.batch_in_epoch) / max(int(state.dataloader_len), 1), 1.)
