"""A picture of the drop rates of a network."""
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict

from .files import write_file

__all__ = ['PICTURES', 'can_plot', 'plot_rates', 'save_figure']

PICTURES = ('.png', '.pdf', '.svg')


def can_plot() -> bool:
    """Whether matplotlib is installed, which the `demo` extra brings."""
    return find_spec('matplotlib') is not None


def plot_rates(title: str, rates: Dict[str, float], path: Path, force: bool = False, name: str = 'path') -> None:
    """Draw the drop rate of each block.

    Args:
        title: Title of the picture.
        rates: Rate of each block, by name, in forward order.
        path: File to write, in the format of its suffix, one of `PICTURES`.
        force: Replace a picture that is there.
        name: What the path is called where the user gave it.

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
    save_figure(figure, path, force, name)


def save_figure(figure: Any, path: Path, force: bool = False, name: str = 'path') -> None:
    """Write a figure of matplotlib, whole or not at all, in the format of the path's suffix.

    Raises:
        ValueError: The suffix is none of `PICTURES`.
        OSError: Something is at path that must not be replaced.
    """
    with write_file(path, PICTURES, force=force, name=name) as file:
        figure.savefig(file, dpi=120)
