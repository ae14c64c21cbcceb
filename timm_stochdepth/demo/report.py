"""What a demo prints: each run, means over seeds, and how near skipping comes to timm's DropPath."""
from statistics import fmean, median
from typing import List, Optional, Sequence, Tuple

from ..bench.measure import median_interval
from ..bench.report import MIN_ROUNDS_OF_INTERVAL
from .intervals import mean_interval
from .train import Result

__all__ = ['format_agreement', 'format_means', 'format_results']

FIRST_STEPS = 10


def _format_table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join(
        '  '.join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows)


def _reference(result: Result, results: Sequence[Result]) -> Optional[Result]:
    """The first network without this package's stochastic depth that was trained in turn with this one."""
    return next((
        r for r in results
        if not r.drop_rates and r.seed == result.seed and r.beside == result.beside
        and (r.method is None or r.model_name == result.model_name)
    ), None)


def _time_ratio(result: Result, reference: Result) -> Tuple[str, str]:
    """Median of the ratio of the times on each batch, which no slow step moves, and its 95% interval."""
    ratio, low, high = median_interval([s / r for s, r in zip(result.step_seconds, reference.step_seconds)])
    has_interval = result is not reference and len(result.step_seconds) >= MIN_ROUNDS_OF_INTERVAL
    return f'{ratio:.3f}', f'{low:.3f} to {high:.3f}' if has_interval else ''


def format_results(results: Sequence[Result]) -> str:
    """One line a run; the ratio of the times is to a network without stochastic depth, or with timm's."""
    has_seeds = len({r.seed for r in results}) > 1
    references = [_reference(r, results) for r in results]
    to = next((r.method or 'plain' for r in references if r), 'plain')
    rows: List[Sequence[str]] = [('model', 'top-1', 'reloaded top-1', 's / step', f'ratio to {to}', '95% interval')]
    for r, reference in zip(results, references):
        label = f'{r.label}, seed {r.seed}' if has_seeds else r.label
        rows.append((
            label, f'{r.top1:.2f}%', f'{r.reloaded_top1:.2f}%', f'{median(r.step_seconds):.3f}',
            *(_time_ratio(r, reference) if reference else ('-', ''))))
    lines = [_format_table(rows)]
    if any(row[-1] for row in rows[1:]):
        lines.append(
            'Times are medians over the steps. A ratio is that of the times on the same batch: where its interval holds'
            f' 1,\nthis machine could not tell the network from {to}.')
    return '\n'.join(lines)


def format_means(results: Sequence[Result]) -> str:
    """One line a network: mean top-1 over its seeds, and the mean of the difference to the first, seed by seed.

    Args:
        results: Those of two seeds or more, of each network for the same seeds.
    """
    labels = list(dict.fromkeys(r.label for r in results))
    top1s = {label: {r.seed: r.top1 for r in results if r.label == label} for label in labels}
    rows: List[Sequence[str]] = [('mean over seeds', 'top-1', '95% interval', f'minus {labels[0]}', '95% interval')]
    for label in labels:
        mean, half_width = mean_interval(list(top1s[label].values()))
        row = [label, f'{mean:.2f}%', f'+- {half_width:.2f}', '', '']
        if label != labels[0]:
            differences = [top1 - top1s[labels[0]][seed] for seed, top1 in top1s[label].items()]
            mean, half_width = mean_interval(differences)
            row[3:] = [f'{mean:+.2f}', f'+- {half_width:.2f}']
        rows.append(row)
    num_seeds = len(top1s[labels[0]])
    return f"{_format_table(rows)}\n{num_seeds} seeds; the intervals are Student's, for a mean of independent seeds."


def format_agreement(results: Sequence[Result]) -> str:
    """A line for each network and seed trained both with timm's DropPath and by skipping what it would mask."""
    lines = []
    for ours in (r for r in results if r.method == 'skip'):
        theirs = next((
            r for r in results if (r.method, r.model_name, r.seed) == ('timm', ours.model_name, ours.seed)), None)
        if theirs is None:
            continue
        differences = [abs(a - b) for a, b in zip(ours.step_losses, theirs.step_losses)]
        first = differences[:FIRST_STEPS]
        line = (
            f'{ours.model_name}, seed {ours.seed}: the losses of skip and timm differ by {max(first):.1e} at the most'
            f' in the first {len(first)} steps, by {max(differences):.1e} in all {len(differences)}'
            f' (mean {fmean(differences):.1e}); top-1 {ours.top1:.2f}% and {theirs.top1:.2f}%')
        if ours.beside == theirs.beside:
            line += f'; training took {sum(ours.step_seconds):.1f} s and {sum(theirs.step_seconds):.1f} s'
        lines.append(f'{line}.')
    return '\n'.join(lines)
