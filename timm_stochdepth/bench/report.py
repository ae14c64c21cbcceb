"""Show what was measured: a table, a plain statement, a picture, JSON."""
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Sequence

import timm
import torch
import torchvision

from ..files import write_file
from ..plots import save_figure
from .measure import PRECISION, Row

__all__ = ['device_name', 'format_rows', 'plot_rows', 'write_rows']


def device_name(device: torch.device) -> str:
    """The GPU, or the processor and how many threads of it torch uses."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return f'{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads'


def format_rows(rows: Sequence[Row], memory_title: str) -> str:
    """One line a network, and whether the intervals are within 1%."""
    width = max(len(row.name) for row in rows) + 2
    lines = [
        f'{"network":<{width}}{"ratio":>8}{"95% interval":>18}{"limit":>8}{"over it":>9}{memory_title:>12}{"ms":>9}']
    for row in rows:
        interval = f'{row.low:.4f}-{row.high:.4f}'
        lines.append(
            f'{row.name:<{width}}{row.ratio:>8.4f}{interval:>18}{row.limit:>8.3f}{row.over_limit:>9.4f}'
            f'{row.memory / 1e6:>12.1f}{row.milliseconds:>9.1f}')
    widest = max((row.high - row.low) / 2 for row in rows)
    verdict = 'are all' if widest <= PRECISION else 'are NOT all'
    return '\n'.join([
        *lines,
        f'{rows[0].rounds} rounds. The 95% intervals {verdict} within {PRECISION:.0%} of the ratio:'
        f' {widest:.2%} at the widest.',
    ])


def write_rows(rows: Sequence[Row], settings: Dict[str, Any], device: str, path: Path) -> None:
    """Write figures, settings, device and versions as JSON, to a new file."""
    figures = dict(
        settings=settings,
        device=device,
        versions=dict(torch=torch.__version__, timm=timm.__version__, torchvision=torchvision.__version__),
        rows=[asdict(row) for row in rows],
    )
    with write_file(path, ['.json'], name='path') as file:
        file.write_text(json.dumps(figures, indent=2) + '\n', encoding='utf-8')


def plot_rows(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw each network's ratio with its interval, and the limit of its operations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 * len(rows) + 1.4), layout='constrained')
    axes = figure.add_subplot()
    names = [row.name for row in rows]
    ratios = [row.ratio for row in rows]
    intervals = [[row.ratio - row.low for row in rows], [row.high - row.ratio for row in rows]]
    axes.barh(names, ratios, xerr=intervals, height=0.6, color='C0', ecolor='black', capsize=3)
    axes.scatter([row.limit for row in rows], names, marker='|', s=400, color='C1', label='operations left', zorder=3)
    axes.axvline(1., color='grey', linewidth=0.8)
    axes.set(title=title, xlabel='time of a step, ratio to plain', xlim=(0.9 * min(ratios), 1.05 * max(ratios)))
    axes.invert_yaxis()
    axes.legend(loc='lower left')
    save_figure(figure, path)
