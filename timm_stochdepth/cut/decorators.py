"""The forward within its decorators, and another one in its place."""
import functools
from types import CellType, FunctionType
from typing import Any, Callable, Optional

__all__ = ['rewrapped', 'unwrapped']


def unwrapped(function: Any) -> Callable[..., Any]:
    """A forward within its decorators; as it is where these do not hold it as a variable."""
    inner = _held_by(function)
    return function if inner is None else unwrapped(inner)


def _held_by(function: Any) -> Optional[Callable[..., Any]]:
    """The forward that a decorator's function calls, with `functools.wraps` or without."""
    cells = [cell.cell_contents for cell in getattr(function, '__closure__', None) or () if _is_filled(cell)]
    found = [f for f in cells if isinstance(f, FunctionType) and f is not function and f.__name__ == 'forward']
    wrapped = getattr(function, '__wrapped__', None)
    return found[0] if len(found) == 1 and wrapped in (None, found[0]) else None


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def rewrapped(function: Any, inner: Callable[..., Any]) -> Callable[..., Any]:
    """A forward's decorators around another forward.

    Args:
        function: The decorated forward.
        inner: What is to stand in the place of the forward itself.
    """
    held = _held_by(function)
    if held is None:
        return inner
    made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(
        CellType(cell.cell_contents) if _is_filled(cell) else CellType() for cell in function.__closure__))
    made.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(made, inner)
    for cell in made.__closure__ or ():
        if _is_filled(cell) and cell.cell_contents in (held, function):
            cell.cell_contents = rewrapped(held, inner) if cell.cell_contents is held else made
    return made
