"""A picture of the drop rates of a network."""
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Optional

from .files import write_file, written_by

__all__ = ['PICTURES', 'can_plot', 'plot_rates', 'save_figure']

PICTURES = ('.png', '.pdf', '.svg')
# where each format has room for a note
_NOTES = {'.png': 'Description', '.pdf': 'Subject', '.svg': 'Description'}


def can_plot() -> bool:
    """Whether matplotlib is installed, which the `demo` extra brings."""
    return find_spec('matplotlib') is not None


def plot_rates(
        title: str,
        rates: Dict[str, float],
        path: Path,
        force: bool = False,
        command: Optional[str] = None,
) -> None:
    """Draw the drop rate of each block.

    Args:
        title: Title of the picture.
        rates: Rate of each block, by name, in forward order.
        path: File to write, in the format of its suffix, one of `PICTURES`.
        force: Replace a picture that is there.
        command: Name of the command that draws, which replaces its own pictures.

    Raises:
        ImportError: matplotlib is not installed, the `demo` extra brings it.
        ValueError: The suffix is none of these.
        OSError: Something is at path that must not be replaced.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout='constrained')
    axes = figure.add_subplot()
    axes.bar(list(rates), list(rates.values()))
    axes.set(title=title, xlabel='block', ylabel='drop rate')
    axes.tick_params(axis='x', labelrotation=90)
    save_figure(figure, path, force, command)


def save_figure(figure: Any, path: Path, force: bool = False, command: Optional[str] = None) -> None:
    """Write a figure of matplotlib, whole or not at all, in the format of the path's suffix.

    Raises:
        ValueError: The suffix is none of `PICTURES`.
        OSError: Something is at path that must not be replaced.
    """
    with write_file(path, PICTURES, force=force, name='path', command=command) as file:
        metadata = {_NOTES[path.suffix.lower()]: written_by(command)} if command else None
        figure.savefig(file, dpi=120, metadata=metadata)
