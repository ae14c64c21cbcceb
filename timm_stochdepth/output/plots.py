"""Pictures: what all have in common, and the drop rates of a network."""
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Sequence

from .files import write_file

__all__ = ['PICTURES', 'can_plot', 'draw_rates', 'legend_below', 'name_blocks', 'plot_rates', 'save_figure']

PICTURES = ('.png', '.pdf', '.svg')
# at the usual size of letters
BLOCK_NAMES_PER_INCH = 6
LEGEND_LETTERS_PER_INCH = 11


def can_plot() -> bool:
    """Whether matplotlib is installed, which the `demo` extra brings."""
    return find_spec('matplotlib') is not None


def draw_rates(title: str, rates: Dict[str, float]) -> Any:
    """A figure of matplotlib, the drop rate of each block.

    Args:
        title: Title of the picture.
        rates: Rate of each block, by name, in forward order.

    Raises:
        ImportError: matplotlib is not installed, the `demo` extra brings it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout='constrained')
    axes = figure.add_subplot()
    axes.bar(range(len(rates)), list(rates.values()))
    axes.set_title(title, wrap=True)
    axes.set(xlabel='block', ylabel='drop rate')
    name_blocks(axes, list(rates), width=7.)
    return figure


def name_blocks(axes: Any, names: Sequence[str], width: float) -> None:
    """Name the blocks on the x axis, every other one or fewer where there is no place for all.

    Args:
        axes: Axes of matplotlib, block i at x = i.
        names: Of the blocks, in forward order.
        width: Of the axes, in inches.
    """
    every = -(-len(names) // int(width * BLOCK_NAMES_PER_INCH)) or 1
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=90)


def legend_below(figure: Any, handles: Sequence[Any]) -> None:
    """A legend below all axes, where it covers nothing that is drawn.

    Args:
        figure: A figure in constrained layout.
        handles: What is explained, each with a label.
    """
    longest = max(len(handle.get_label()) for handle in handles)
    num_columns = int(figure.get_figwidth() * LEGEND_LETTERS_PER_INCH / (longest + 8)) or 1
    figure.legend(handles=handles, loc='outside lower center', ncols=min(num_columns, len(handles)), frameon=False)


def plot_rates(title: str, rates: Dict[str, float], path: Path, force: bool = False, name: str = 'path') -> None:
    """Draw the drop rate of each block into a file.

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
    save_figure(draw_rates(title, rates), path, force, name)


def save_figure(figure: Any, path: Path, force: bool = False, name: str = 'path') -> None:
    """Write a figure of matplotlib, whole or not at all, in the format of the path's suffix.

    Raises:
        ValueError: The suffix is none of `PICTURES`.
        OSError: Something is at path that must not be replaced.
    """
    with write_file(path, PICTURES, force=force, name=name) as file:
        figure.savefig(file, dpi=120)
