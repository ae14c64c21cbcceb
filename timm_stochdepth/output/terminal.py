"""Messages and progress on stderr, beside a command's results on stdout."""
import difflib
import sys
from typing import Any, Collection, Optional

__all__ = ['closest', 'complain', 'one_line', 'progress_bar', 'say', 'start_command']

_command: Optional[str] = None


def start_command(name: Optional[str]) -> None:
    """Begin to speak in a command's name; without one, under Python's own, nothing is said."""
    global _command
    _command = name


def one_line(text: object) -> str:
    """A text, or what an error says, in one line."""
    return ' '.join(str(text).split())


def closest(value: str, names: Collection[str]) -> str:
    """The names that a wrong one may have meant, as the end of a sentence."""
    found = difflib.get_close_matches(value, names, n=3)
    return f': did you mean {" or ".join(found)}?' if found else '.'


def complain(text: str) -> None:
    """Say in a line what went wrong."""
    if _command:
        print(f'timm-stochdepth {_command}: {text}', file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Say in a line what takes a while, to who sits at a terminal: elsewhere stderr is for what went wrong."""
    if sys.stderr.isatty():
        complain(text)


def progress_bar(total: int, desc: str, unit: str) -> Any:
    """tqdm's bar where stderr is a terminal, and nothing where it is not."""
    from tqdm import tqdm

    return tqdm(total=total, desc=desc, unit=unit, disable=None, leave=False)
