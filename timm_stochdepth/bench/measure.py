"""Time the steps of several networks in turn, and compare them pair by pair."""
import itertools
import random
import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from tqdm import tqdm

from .contestants import Contestant
from .counters import Counts, OpCounts
from .settings import BenchSettings
from .step import Step, count, loop_ratios, peak_memory

__all__ = ['PRECISION', 'Row', 'Times', 'measure', 'median_interval', 'take_times']

PRECISION = 0.01  # half width of a ratio's confidence interval that is good enough
MIN_ROUNDS = 20
WARMUP_ROUNDS = 3
GPU_WARMUP_SECONDS = 30  # at the most, or as long as is measured, where that is less


@dataclass
class Row:
    """What was measured of one network.

    Attributes:
        ratio: Median of its steps' times, each divided by that of the plain network in the same round.
        low: Lower end of the 95% confidence interval of that median.
        high: Upper end of it.
        limit: Mean share of the operations that was left in its steps; 1 where nothing is skipped.
        over_limit: Median of ratio - limit, step by step.
        memory: Bytes that autograd keeps for the backward pass, in eager mode; on a GPU the most that a step of this
            network alone has in use.
        milliseconds: Median time of a step.
        rounds: Number of steps.
        counts: What a step does in eager mode, see `count`.
        count_ratios: The same as a ratio to plain; None where plain does nothing of the kind.
        by_op: The counts by the operation's name.
        new_sizes: Number of sizes that a branch of these steps was the first to run with.
        loop_ratio: Time of a step in a loop in which nobody waits for the device, divided by plain's; None on a CPU,
            where nobody ever does.
    """
    name: str
    ratio: float
    low: float
    high: float
    limit: float
    over_limit: float
    memory: float
    milliseconds: float
    rounds: int
    counts: Counts
    count_ratios: Dict[str, Optional[float]]
    by_op: Dict[str, OpCounts]
    new_sizes: int = 0
    loop_ratio: Optional[float] = None


def median_interval(values: Sequence[float]) -> Tuple[float, float, float]:
    """Median, and its 95% confidence interval from the order of the values, which assumes no distribution."""
    ordered = sorted(values)
    reach = 1.96 * len(ordered) ** 0.5 / 2
    low = max(int(len(ordered) / 2 - reach), 0)
    high = min(int(len(ordered) / 2 + reach) + 1, len(ordered)) - 1
    return statistics.median(ordered), ordered[low], ordered[high]


@dataclass
class Times:
    """Seconds of a network's steps, and the share of the operations that was left in them, round by round."""
    seconds: List[float] = field(default_factory=list)
    limits: List[float] = field(default_factory=list)
    new_sizes: int = 0

    def excess(self, plain: 'Times') -> List[float]:
        return [s / p - limit for s, p, limit in zip(self.seconds, plain.seconds, self.limits)]

    def half_width(self, plain: 'Times') -> float:
        # of what is left after the limit: what is dropped differs from step to step, and is no noise
        _, low, high = median_interval(self.excess(plain))
        return (high - low) / 2


def measure(
        contestants: Sequence[Contestant],
        step: Step,
        settings: BenchSettings,
        agree: Callable[[bool], bool] = lambda done: done,
        show_progress: bool = True,
) -> List[Row]:
    """Measure steps of all networks.

    Args:
        contestants: The networks, on the CPU, the plain one first.
        step: What to measure.
        settings: How long.
        agree: Called with whether this process would stop, returns whether all do.
        show_progress: Show a progress bar, where stderr is a terminal.
    """
    device = step.x_NCHW.device
    counted: List[Tuple[Counts, Dict[str, OpCounts]]] = []
    memories: List[float] = []
    for contestant in contestants:
        contestant.model.to(device)
        counted.append(count(contestant, step))
        if device.type == 'cuda':
            memories.append(peak_memory(contestant, step))
            contestant.model.to('cpu')
        else:
            memories.append(counted[-1][0].kept)
    for contestant in contestants:
        contestant.model.to(device)
    times = take_times(contestants, step, settings, agree, show_progress)
    loops = loop_ratios(contestants, step) if device.type == 'cuda' else [None] * len(contestants)
    return [
        _row(contestant.name, of_row, times[0], loop, memory, counts, counted[0][0], by_op)
        for contestant, of_row, loop, memory, (counts, by_op) in zip(contestants, times, loops, memories, counted)]


def take_times(
        contestants: Sequence[Contestant],
        step: Step,
        settings: BenchSettings,
        agree: Callable[[bool], bool],
        show_progress: bool,
) -> List[Times]:
    """Run steps in turn, until each ratio is known well enough, or time or rounds are up."""
    times = [Times() for _ in contestants]
    order = list(zip(contestants, times))
    shuffler = random.Random(0)

    def run_round(seed: int) -> List[Tuple[Times, float, float, int]]:
        shuffler.shuffle(order)  # no network always runs after the same other one
        taken = []
        for contestant, of_row in order:
            limit = contestant.draws.seed(seed)
            taken.append((of_row, step.seconds(contestant.run), limit, contestant.draws.num_new_sizes))
            contestant.model.zero_grad()
        return taken

    def meets_new_size(seed: int) -> bool:
        return any(num_new_sizes for *_, num_new_sizes in run_round(seed))

    num_warmup = _warm_up(meets_new_size, min(GPU_WARMUP_SECONDS, settings.max_seconds) if step.x_NCHW.is_cuda else 0)
    started = time.monotonic()
    bar = tqdm(range(settings.max_rounds), desc='bench', unit='round', disable=None if show_progress else True)
    with bar as progress:
        for round_idx in progress:
            for of_row, seconds, limit, num_new_sizes in run_round(num_warmup + round_idx):
                of_row.seconds.append(seconds)
                of_row.limits.append(limit)
                of_row.new_sizes += num_new_sizes
            is_done = time.monotonic() - started > settings.max_seconds
            if round_idx + 1 >= MIN_ROUNDS and (round_idx + 1) % 5 == 0:
                width = max(of_row.half_width(times[0]) for of_row in times)
                progress.set_postfix(interval=f'{width:.4f}')
                is_done |= width <= PRECISION
            if agree(is_done):
                break
    return times


def _warm_up(meets_new_size: Callable[[int], bool], max_seconds: float) -> int:
    """Run rounds that do not count, until one runs no branch with a size that is new; how many there were.

    On a GPU cuDNN prepares each convolution and attention anew for each number of samples that it has not seen, a
    hundred steps long where samples are skipped, which are nothing to a training and would be all of a short run.
    """
    started = time.monotonic()
    for num_done in itertools.count(1):
        is_new = meets_new_size(num_done - 1)
        if num_done >= WARMUP_ROUNDS and (not is_new or time.monotonic() - started >= max_seconds):
            break
    return num_done


def _row(
        name: str,
        times: Times,
        plain: Times,
        loop_ratio: Optional[float],
        memory: float,
        counts: Counts,
        plain_counts: Counts,
        by_op: Dict[str, OpCounts],
) -> Row:
    over_limit, low, high = median_interval(times.excess(plain))
    limit = statistics.fmean(times.limits)
    of_plain = asdict(plain_counts)
    return Row(
        name=name,
        ratio=over_limit + limit,
        low=low + limit,
        high=high + limit,
        limit=limit,
        over_limit=over_limit,
        memory=memory,
        milliseconds=1000 * statistics.median(times.seconds),
        rounds=len(times.seconds),
        new_sizes=times.new_sizes,
        loop_ratio=loop_ratio,
        counts=counts,
        count_ratios={k: v / of_plain[k] if of_plain[k] else None for k, v in asdict(counts).items()},
        by_op=by_op,
    )
