"""Show what the demo found: a table and a picture."""
from pathlib import Path
from statistics import mean, median, stdev
from typing import List, Sequence

from ..plots import save_figure
from .train import Result

__all__ = ['format_means', 'format_results', 'plot_results']


def format_results(results: Sequence[Result]) -> str:
    """One line a network; the ratio is to the network without stochastic depth, if it was trained too."""
    plain = next((median(r.epoch_seconds) for r in results if not r.drop_rates), None)
    rows: List[Sequence[str]] = [('model', 'top-1', 'reloaded top-1', 's / epoch', 'ratio to plain')]
    for r in results:
        seconds = median(r.epoch_seconds)
        ratio = f'{seconds / plain:.3f}' if plain else '-'
        rows.append((r.label, f'{r.top1s[-1]:.2f}%', f'{r.reloaded_top1:.2f}%', f'{seconds:.2f}', ratio))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join(
        '  '.join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows)


def format_means(results: Sequence[Result]) -> str:
    """One line a model: the mean of its runs' accuracies, with its standard error."""
    lines = []
    for model_name in dict.fromkeys(r.model_name for r in results):
        top1s = [r.top1s[-1] for r in results if r.model_name == model_name]
        error = stdev(top1s) / len(top1s) ** 0.5
        lines.append(f'{model_name}: top-1 {mean(top1s):.2f}% +- {error:.2f} (mean of {len(top1s)}, standard error)')
    return '\n'.join(lines)


def plot_results(results: Sequence[Result], path: Path) -> None:
    """Draw loss and accuracy by epoch, and each block's drop rate beside how often it was dropped."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout='constrained')
    loss_axes, top1_axes, drop_axes = figure.subplots(1, 3)
    stochastic = [r for r in results if r.drop_rates]
    for idx, r in enumerate(results):
        epochs = range(1, len(r.losses) + 1)
        loss_axes.plot(epochs, r.losses, marker='o', markersize=3, color=f'C{idx}', label=r.label)
        top1_axes.plot(epochs, r.top1s, marker='o', markersize=3, color=f'C{idx}', label=r.label)
        if r.drop_rates:
            names = list(r.drop_rates)
            drop_axes.plot(names, list(r.drop_rates.values()), color=f'C{idx}', label=f'{r.label}: rate')
            drop_axes.plot(
                names, list(r.drop_frequencies.values()), 'o', color=f'C{idx}', label=f'{r.label}: dropped')
    loss_axes.set(title='Training loss', xlabel='epoch', ylabel='cross-entropy, smoothing 0.1')
    top1_axes.set(title='Held-out digits', xlabel='epoch', ylabel='top-1 in %')
    drop_axes.set(title='Drop rate, and how often dropped', ylabel='fraction')
    drop_axes.set_ylim(top=1.4 * drop_axes.get_ylim()[1])  # room for the legend
    drop_axes.tick_params(axis='x', labelrotation=90)
    for axes in (loss_axes, top1_axes, drop_axes) if stochastic else (loss_axes, top1_axes):
        axes.legend()
        axes.grid(alpha=0.3)
    save_figure(figure, path)
