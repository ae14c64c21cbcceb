"""Show what was measured: a table, a plain statement, a picture, JSON."""
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import timm
import torch
import torchvision

from ..output.files import write_beside
from ..output.plots import legend_below
from .counters import OpCounts
from .measure import PRECISION, Row
from .settings import BenchSettings

__all__ = ['MIN_ROUNDS_OF_INTERVAL', 'device_name', 'draw_rows', 'format_profile', 'format_rows', 'write_rows']

MIN_ROUNDS_OF_INTERVAL = 6  # the median is within the lowest and the highest of fewer values less often than 95%


def device_name(device: torch.device) -> str:
    """The GPU, or the processor and how many threads of it torch uses."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return f'{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads'


def format_rows(rows: Sequence[Row], device: torch.device) -> str:
    """One line a network, times and counts, and whether the intervals are within 1%."""
    width = max(len(row.name) for row in rows) + 1
    is_gpu = device.type == 'cuda'
    loop_title = ' in a loop' if is_gpu else ''
    memory_title = 'MB at peak' if is_gpu else 'MB kept'
    lines = [
        f'{"network":<{width}}{"ratio":>7}{"95% interval":>14}{"limit":>7}{"over it":>8}'
        f'{loop_title}{"ms":>8}{memory_title:>11}'
        f' |{"operations":>11}{"bytes":>7}{"kernels":>8}{"kept":>7}']
    for row in rows:
        interval = f'{row.low:.3f}-{row.high:.3f}'
        ratios = row.count_ratios
        loop = f'{_share(row.loop_ratio):>10}' if is_gpu else ''
        lines.append(
            f'{row.name:<{width}}{row.ratio:>7.3f}{interval:>14}{row.limit:>7.3f}{row.over_limit:>8.3f}'
            f'{loop}{row.milliseconds:>8.1f}{row.memory / 1e6:>11.1f} |{_share(ratios["operations"]):>11}'
            f'{_share(ratios["bytes"]):>7}{_share(ratios["kernels"]):>8}{_share(ratios["kept"]):>7}')
    plain = rows[0].counts
    return '\n'.join([
        *lines,
        'Right of |: counts of an eager step, as a ratio to plain, which has'
        f' {plain.operations / 1e9:.1f}e9 operations, moves',
        f'{plain.bytes / 1e6:.1f} MB in {plain.kernels:.0f} kernels, and keeps {plain.kept / 1e6:.1f} MB for the'
        ' backward pass.',
        *_new_sizes(rows),
        _verdict(rows),
    ])


def _new_sizes(rows: Sequence[Row]) -> List[str]:
    found = ', '.join(f'{row.name} {row.new_sizes}' for row in rows if row.new_sizes)
    return [f'These steps were the first to run a branch with some number of samples: {found} times.'] if found else []


def _verdict(rows: Sequence[Row]) -> str:
    num_rounds = rows[0].rounds
    if num_rounds < MIN_ROUNDS_OF_INTERVAL:
        return f'{num_rounds} rounds are too few for a 95% interval of the ratio.'
    widest = max((row.high - row.low) / 2 for row in rows)
    verdict = 'are all' if widest <= PRECISION else 'are NOT all'
    return (
        f'{num_rounds} rounds. The 95% intervals {verdict} within {PRECISION:.0%} of the ratio: {widest:.2%} at the'
        ' widest.')


def _share(ratio: Optional[float]) -> str:
    return '-' if ratio is None else f'{ratio:.3f}'


def format_profile(rows: Sequence[Row], num_ops: int = 12) -> str:
    """The operations in which each network differs most from the plain one in the bytes that it moves."""
    lines = ['MB moved in an eager step, by operation, and kernels; in brackets more or less than plain']
    plain = rows[0].by_op
    for row in rows:
        def more(name: str, by_op: Dict[str, OpCounts] = row.by_op) -> OpCounts:
            difference = OpCounts()
            difference.add(by_op.get(name, OpCounts()))
            difference.add(plain.get(name, OpCounts()), -1.)
            return difference

        size = more if row.by_op is not plain else row.by_op.__getitem__
        names = sorted({**plain, **row.by_op}, key=lambda name: -abs(size(name).bytes))
        lines.append(f'{row.name}: {row.counts.bytes / 1e6:.1f} MB, {row.counts.kernels:.0f} kernels')
        for name in [name for name in names if size(name).kernels][:num_ops]:
            counts, difference = row.by_op.get(name, OpCounts()), more(name)
            lines.append(
                f'  {name:<50}{counts.bytes / 1e6:>10.1f} ({difference.bytes / 1e6:+.1f})'
                f'{counts.kernels:>8.0f} ({difference.kernels:+.0f})')
    return '\n'.join(lines)


def write_rows(rows: Sequence[Row], settings: BenchSettings, device: str, path: Path, force: bool = False) -> None:
    """Write figures, settings, device and versions as JSON, to a new file, or with `force` in place of one."""
    figures = dict(
        settings=asdict(settings),
        device=device,
        versions=dict(torch=torch.__version__, timm=timm.__version__, torchvision=torchvision.__version__),
        rows=[{k: v for k, v in asdict(row).items() if k != 'by_op'} for row in rows],
    )
    with write_beside(path, force) as file:
        file.write_text(json.dumps(figures, indent=2) + '\n', encoding='utf-8')


def draw_rows(rows: Sequence[Row], title: str) -> Any:
    """A figure of matplotlib, each network's ratio with its interval, and the limit of its operations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 * len(rows) + 1.8), layout='constrained')
    axes = figure.add_subplot()
    names = [row.name for row in rows]
    ratios = [row.ratio for row in rows]
    intervals = [[row.ratio - row.low for row in rows], [row.high - row.ratio for row in rows]]
    bars = axes.barh(
        names, ratios, xerr=intervals, height=0.6, color='C0', ecolor='black', capsize=3,
        label='measured, with the 95% interval')
    limits = axes.scatter(
        [row.limit for row in rows], names, marker='|', s=400, color='C1', label='operations left', zorder=3)
    axes.axvline(1., color='grey', linewidth=0.8)
    axes.set_title(title, wrap=True)
    axes.set(xlabel='time of a step, ratio to plain', xlim=(0., 1.05 * max(*(row.high for row in rows), 1.)))
    axes.invert_yaxis()
    legend_below(figure, [bars, limits])
    return figure
