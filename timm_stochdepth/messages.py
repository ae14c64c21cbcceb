"""Messages: values as they are shown in them, and warnings that point at the user's own line."""
import sys
import warnings
from types import FrameType
from typing import Any, Optional

__all__ = ['shown', 'warn_user']

_LONG = 120  # characters; what a message shows of a value is to stay a part of its sentence


def shown(value: Any, with_type: bool = False) -> str:
    """A value as a message shows it: by its type alone where it would be a page long, as a network is."""
    text, type_name = repr(value), type(value).__name__
    if len(text) > _LONG or '\n' in text:
        return f'an object of type {type_name}'
    return f'{text} ({type_name})' if with_type else text


def warn_user(text: str) -> None:
    """Warn of a line outside of this package: the one that called into it."""
    frame: Optional[FrameType] = sys._getframe(1)
    level = 2
    while frame is not None and str(frame.f_globals.get('__name__')).partition('.')[0] == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)
