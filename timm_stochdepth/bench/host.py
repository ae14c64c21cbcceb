"""What the host spends on a drop path, whatever the device computes meanwhile: in a network of next to no work."""
import sys
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Sequence

from .contestants import Contestant
from .measure import median_interval, take_times
from .settings import BenchSettings
from .step import NUM_COUNTED, Step

__all__ = ['HOST_NETWORK', 'NUM_DROP_PATHS', 'HostRow', 'count_calls', 'format_host_rows', 'measure_host']

NUM_DROP_PATHS = 48
# a ViT of 24 blocks
HOST_NETWORK: Dict[str, Any] = dict(
    model='vit_tiny_patch16_224',
    img_size=32,
    model_args=dict(img_size=32, depth=NUM_DROP_PATHS // 2, embed_dim=16, num_heads=1, mlp_ratio=1., num_classes=2))


@dataclass
class HostRow:
    """What a drop path costs the host in a step, forward and backward, above the plain network.

    Attributes:
        name: Its row's name.
        microseconds: Median of its time.
        low: Lower end of the 95% confidence interval of that median.
        high: Upper end of it.
        calls: Mean number of Python functions that are called, in eager mode.
        rounds: Number of steps.
    """
    name: str
    microseconds: float
    low: float
    high: float
    calls: float
    rounds: int


def count_calls(function: Callable[[], Any]) -> int:
    """Calls of Python functions while a function runs."""
    num_calls = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal num_calls
        num_calls += event == 'call'

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return num_calls


def measure_host(
        contestants: Sequence[Contestant],
        step: Step,
        settings: BenchSettings,
        show_progress: bool = True,
) -> List[HostRow]:
    """Measure steps of all networks, the plain one first."""
    for contestant in contestants:
        contestant.model.to(step.x_NCHW.device)
    calls = [_calls(contestant, step) for contestant in contestants]
    times = take_times(contestants, step, settings, lambda done: done, show_progress)
    rows = []
    for contestant, of_row, num_calls in zip(contestants, times, calls):
        above = [1e6 * (s - p) / NUM_DROP_PATHS for s, p in zip(of_row.seconds, times[0].seconds)]
        of_drop_path = (num_calls - calls[0]) / NUM_DROP_PATHS
        rows.append(HostRow(contestant.name, *median_interval(above), of_drop_path, len(above)))
    return rows


def _calls(contestant: Contestant, step: Step) -> float:
    def run() -> None:
        for seed in range(NUM_COUNTED):
            contestant.draws.seed(seed)
            step(contestant.model)
            contestant.model.zero_grad()

    run()  # what is learned and chosen once
    return count_calls(run) / NUM_COUNTED


def format_host_rows(rows: Sequence[HostRow]) -> str:
    """One line a network."""
    width = max(len(row.name) for row in rows) + 1
    lines = [f'{"network":<{width}}{"us a drop path":>15}{"95% interval":>18}{"calls":>8}']
    for row in rows:
        interval = f'{row.low:.1f} to {row.high:.1f}'
        lines.append(f'{row.name:<{width}}{row.microseconds:>15.1f}{interval:>18}{row.calls:>8.1f}')
    return '\n'.join([*lines, f'{rows[0].rounds} rounds; above plain, forward and backward.'])
