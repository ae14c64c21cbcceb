"""What a demo draws, figures of matplotlib."""
from statistics import fmean
from typing import Any, List, Sequence

from ..output.plots import legend_below, name_blocks
from .recipe import Recipe
from .train import Result

__all__ = ['draw_losses', 'draw_networks']

NUM_POINTS = 40
TITLES = {
    'plain': 'no stochastic depth',
    'timm': "timm's DropPath",
    'skip': 'the same, dropped branches skipped',
    'sample': 'stochastic depth by sample',
    'block': 'stochastic depth by block',
}


def draw_networks(results: Sequence[Result], recipe: Recipe) -> Any:
    """Loss and accuracy by epoch, and each block's drop rate beside how often it was dropped."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout='constrained')
    loss_axes, top1_axes, drop_axes = figure.subplots(1, 3)
    has_seeds = len({r.seed for r in results}) > 1
    blocks = list(dict.fromkeys(name for r in results for name in r.drop_rates))
    handles = []
    for idx, r in enumerate(results):
        label = f'{r.label}, seed {r.seed}' if has_seeds else r.label
        style = dict(marker='o', markersize=3, color=f'C{idx}', label=label)
        handles += loss_axes.plot(range(1, len(r.epoch_losses) + 1), r.epoch_losses, **style)
        top1_axes.plot(list(r.top1s), list(r.top1s.values()), **style)
        positions = [blocks.index(name) for name in r.drop_rates]
        drop_axes.plot(positions, list(r.drop_rates.values()), color=f'C{idx}')
        drop_axes.plot(positions, list(r.drop_frequencies.values()), 'o', color=f'C{idx}')
    loss_axes.set(title='Training loss', xlabel='epoch', ylabel=f'cross-entropy, smoothing {recipe.smoothing}')
    top1_axes.set(title=f'Held-out images of {recipe.data}', xlabel='epoch', ylabel='top-1 in %')
    drop_axes.set(title='Drop rate (lines), how often dropped (points)', ylabel='fraction')
    name_blocks(drop_axes, blocks, width=4.)
    for axes in (loss_axes, top1_axes, drop_axes):
        axes.grid(alpha=0.3)
    legend_below(figure, handles)
    return figure


def draw_losses(results: Sequence[Result], recipe: Recipe) -> Any:
    """The loss against the time of training, and against its steps; the mean over the seeds of each network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout='constrained')
    time_axes, step_axes = figure.subplots(1, 2, sharey=True)
    labels = list(dict.fromkeys(r.label for r in results))
    handles = []
    has_models = len({r.model_name for r in results}) > 1
    for idx, label in enumerate(labels):
        runs = [r for r in results if r.label == label]
        losses = _binned([fmean(step) for step in zip(*(r.step_losses for r in runs))])
        seconds = _binned(_running_sum([fmean(step) for step in zip(*(r.step_seconds for r in runs))]))
        steps = _binned(range(1, len(runs[0].step_losses) + 1))
        title = label if has_models else TITLES.get(runs[0].method or '', label)
        # the first one is broad and pale, so that one that lies on it leaves it to be seen
        style = dict(color=f'C{idx}', linewidth=1.6 if idx else 5., alpha=1. if idx else 0.45, label=title)
        handles += time_axes.plot(seconds, losses, **style)
        step_axes.plot(steps, losses, **style)
        time_axes.plot(seconds[-1:], losses[-1:], 'o', color=f'C{idx}')
    time_axes.set(xlabel='seconds of training', ylabel='training loss', title='by time')
    step_axes.set(xlabel='step', title='by step')
    for axes in (time_axes, step_axes):
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    num_seeds = len({r.seed for r in results})
    of_seeds = f', mean of {num_seeds} seeds' if num_seeds > 1 else ''
    names = ' and '.join(dict.fromkeys(r.model_name for r in results))
    figure.suptitle(f'{names} on {recipe.num_images:,} images of {recipe.data}{of_seeds}', fontsize='medium', wrap=True)
    legend_below(figure, handles)
    return figure


def _running_sum(values: Sequence[float]) -> List[float]:
    total = 0.
    return [total := total + value for value in values]


def _binned(values: Sequence[Any]) -> List[float]:
    """Means of parts of the values, few enough to be seen."""
    size = -(-len(values) // NUM_POINTS)
    return [fmean(values[i:i + size]) for i in range(0, len(values), size)]
