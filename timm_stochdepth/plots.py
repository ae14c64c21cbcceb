"""A picture of the drop rates of a network."""
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict

from .files import write_beside

__all__ = ['can_plot', 'plot_rates', 'save_figure']


def can_plot() -> bool:
    """Whether matplotlib is installed, which the `demo` extra brings."""
    return find_spec('matplotlib') is not None


def plot_rates(title: str, rates: Dict[str, float], path: Path) -> None:
    """Draw the drop rate of each block.

    Args:
        title: Title of the picture.
        rates: Rate of each block, by name, in forward order.
        path: File to write, in the format of its suffix.

    Raises:
        ImportError: matplotlib is not installed, the `demo` extra brings it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout='constrained')
    axes = figure.add_subplot()
    axes.bar(list(rates), list(rates.values()))
    axes.set(title=title, xlabel='block', ylabel='drop rate')
    axes.tick_params(axis='x', labelrotation=90)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib, whole or not at all, in the format of the path's suffix."""
    with write_beside(path) as file:
        figure.savefig(file, dpi=120, format=path.suffix.lstrip('.') or 'png')
