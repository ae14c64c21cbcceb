"""Messages and progress on stderr, beside a command's results on stdout."""
import difflib
import sys
from typing import Any, Collection, Optional

__all__ = ['closest', 'complain', 'one_line', 'progress_bar', 'say', 'start_command']

_command: Optional[str] = None


def start_command(name: Optional[str]) -> None:
    """Set the command's name for messages; with None, as under Python, there are none."""
    global _command
    _command = name


def one_line(text: object) -> str:
    """Join the lines of a text or an error."""
    return ' '.join(str(text).split())


def closest(value: str, names: Collection[str]) -> str:
    """Suggest the closest names, as the end of a sentence."""
    found = difflib.get_close_matches(value, names, n=3)
    return f': did you mean {" or ".join(found)}?' if found else '.'


def complain(text: str) -> None:
    """Print a line on stderr."""
    if _command:
        print(f'timm-stochdepth {_command}: {text}', file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print a line on stderr if that is a terminal: elsewhere it is for errors."""
    if sys.stderr.isatty():
        complain(text)


def progress_bar(total: int, desc: str, unit: str) -> Any:
    """tqdm's progress bar, shown if stderr is a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, desc=desc, unit=unit, disable=None, leave=False)
