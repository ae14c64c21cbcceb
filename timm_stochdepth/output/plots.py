"""Figures of matplotlib: shared helpers, and the drop rates of a network."""
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Sequence

from .files import check_output_file, write_beside

__all__ = ['PICTURES', 'can_plot', 'draw_rates', 'is_own_picture', 'legend_below', 'name_blocks', 'save_figure']

PICTURES = ('.png', '.pdf', '.svg')
# at the usual size of letters
BLOCK_NAMES_PER_INCH = 6
LEGEND_LETTERS_PER_INCH = 11

_CREATOR = 'timm-stochdepth'


def can_plot() -> bool:
    """Whether matplotlib is installed, which the `demo` extra brings."""
    return find_spec('matplotlib') is not None


def draw_rates(title: str, rates: Dict[str, float]) -> Any:
    """Draw the drop rate of each block, given by name in forward order, as a figure of matplotlib.

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
    """Name the blocks on the x axis, every other one or fewer where there is not enough room for all.

    Args:
        axes: Axes of matplotlib, block i at x = i.
        names: Of the blocks, in forward order.
        width: Of the axes, in inches.
    """
    every = -(-len(names) // int(width * BLOCK_NAMES_PER_INCH)) or 1
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=90)


def legend_below(figure: Any, handles: Sequence[Any]) -> None:
    """Put a legend below all axes of a figure in constrained layout, where it covers nothing that is drawn."""
    longest = max(len(handle.get_label()) for handle in handles)
    num_columns = int(figure.get_figwidth() * LEGEND_LETTERS_PER_INCH / (longest + 8)) or 1
    figure.legend(handles=handles, loc='outside lower center', ncols=min(num_columns, len(handles)), frameon=False)


def save_figure(figure: Any, path: Path, force: bool = False, name: str = 'path') -> None:
    """Write a figure of matplotlib, in the format of the path's suffix, one of `PICTURES`.

    Raises:
        ValueError: The suffix is none of these.
        OSError: Something is there already, and is no file or `force` is False.
    """
    check_output_file(path, PICTURES, name)
    with write_beside(path, force, name) as file:
        figure.savefig(file, dpi=120, metadata={'Software' if path.suffix == '.png' else 'Creator': _CREATOR})


def is_own_picture(path: Path) -> bool:
    """Whether a PNG was written by `save_figure`."""
    if not path.is_file():
        return False
    with path.open('rb') as file:
        return f'Software\0{_CREATOR}'.encode() in file.read(200)
