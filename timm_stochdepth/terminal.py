"""What a command says on stderr while it works, beside its results on stdout."""
import sys
from typing import Any, Optional

__all__ = ['progress_bar', 'say', 'start_command']

_command: Optional[str] = None


def start_command(name: Optional[str]) -> None:
    """Begin to speak in a command's name; without one, under Python's own, `say` is silent."""
    global _command
    _command = name


def say(text: str, only_on_terminal: bool = False) -> None:
    """Say what takes a while, in a line of its own."""
    if _command and (not only_on_terminal or sys.stderr.isatty()):
        print(f'timm-stochdepth {_command}: {text}', file=sys.stderr, flush=True)


def progress_bar(total: int, desc: str, unit: str) -> Any:
    """tqdm's bar where stderr is a terminal, and nothing where it is not.

    Args:
        total: Number of steps.
        desc: What is done.
        unit: What a step is, `'B'` for bytes.
    """
    from tqdm import tqdm

    return tqdm(total=total, desc=desc, unit=unit, unit_scale=unit == 'B', disable=None, leave=False)
