"""Time the steps of several networks in turn, and compare them pair by pair."""
import random
import statistics
import time
from dataclasses import dataclass
from typing import Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .contestants import Contestant

__all__ = ['PRECISION', 'Row', 'Step', 'measure', 'median_interval', 'saved_storages']

PRECISION = 0.01  # half width of a ratio's confidence interval that is good enough


@dataclass
class Row:
    """What was measured of one network.

    Attributes:
        ratio: Median of its steps' times, each divided by that of the plain network in the same round.
        low: Lower end of the 95% confidence interval of that median.
        high: Upper end of it.
        limit: Mean share of the operations that was left in its steps; 1 where nothing is skipped.
        over_limit: Median of ratio - limit, step by step.
        memory: Bytes that autograd keeps for the backward pass, in eager mode; on a GPU the peak of what a step
            allocates.
        milliseconds: Median time of a step.
        rounds: Number of steps.
    """
    name: str
    ratio: float
    low: float
    high: float
    limit: float
    over_limit: float
    memory: int
    milliseconds: float
    rounds: int


def median_interval(values: Sequence[float]) -> Tuple[float, float, float]:
    """Median, and its 95% confidence interval from the order of the values, which assumes no distribution."""
    ordered = sorted(values)
    reach = 1.96 * len(ordered) ** 0.5 / 2
    low = max(int(len(ordered) / 2 - reach), 0)
    high = min(int(len(ordered) / 2 + reach) + 1, len(ordered)) - 1
    return statistics.median(ordered), ordered[low], ordered[high]


def saved_storages(model: nn.Module, x: Tensor) -> List[int]:
    """Sizes in bytes of what autograd keeps for the backward pass, parameters left out, each memory counted once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: Dict[int, int] = {}
    kept: List[Tensor] = []  # alive, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return list(sizes.values())


@dataclass
class Step:
    """What is timed: a batch forward and backward, or forward alone at inference.

    Attributes:
        x_NCHW: Batch of images, on the device to measure on.
        amp: Run under autocast to bfloat16.
        inference: Run forward only, without gradients.
    """
    x_NCHW: Tensor
    amp: bool = False
    inference: bool = False

    def seconds(self, contestant: Contestant) -> float:
        contestant.prepare()
        contestant.model.zero_grad()
        synchronize = torch.cuda.synchronize if self.x_NCHW.is_cuda else lambda: None
        synchronize()
        started = time.perf_counter()
        with (
            torch.autocast(self.x_NCHW.device.type, torch.bfloat16, enabled=self.amp),
            torch.set_grad_enabled(not self.inference),
        ):
            y = contestant.run(self.x_NCHW)
            loss = y.float().square().mean()
        if not self.inference:
            loss.backward()
        synchronize()
        return time.perf_counter() - started

    def memory(self, contestant: Contestant) -> int:
        if not self.x_NCHW.is_cuda:
            contestant.prepare()
            return 0 if self.inference else sum(saved_storages(contestant.model, self.x_NCHW))
        contestant.model.zero_grad()
        before = torch.cuda.memory_allocated()  # of all networks
        torch.cuda.reset_peak_memory_stats()
        self.seconds(contestant)
        return torch.cuda.max_memory_allocated() - before


def measure(
        contestants: Sequence[Contestant],
        step: Step,
        warmup_rounds: int = 3,
        min_rounds: int = 20,
        max_rounds: int = 200,
        precision: float = PRECISION,
        agree: Callable[[bool], bool] = lambda done: done,
        show_progress: bool = True,
) -> List[Row]:
    """Run steps of all networks in turn, until each ratio is known well enough.

    Args:
        contestants: The networks, the plain one first.
        step: What to time.
        warmup_rounds: Rounds that are not counted, first.
        min_rounds: Rounds at the least.
        max_rounds: Rounds at the most.
        precision: Half width of a ratio's confidence interval that is good enough.
        agree: Called with whether this process would stop, returns whether all do.
        show_progress: Show a progress bar.
    """
    plain = contestants[0].name
    seconds: Dict[str, List[float]] = {c.name: [] for c in contestants}
    order = list(contestants)
    shuffler = random.Random(0)
    num_rounds = warmup_rounds + max_rounds
    with tqdm(total=num_rounds, desc='bench', unit='round', disable=not show_progress) as progress:
        for round_idx in range(num_rounds):
            shuffler.shuffle(order)  # no network always runs after the same other one
            for contestant in order:
                elapsed = step.seconds(contestant)
                if round_idx >= warmup_rounds:
                    seconds[contestant.name].append(elapsed)
                else:
                    contestant.limits.clear()
            progress.update()
            counted = round_idx + 1 - warmup_rounds
            if counted >= min_rounds and counted % 5 == 0:
                width = max(_half_width(seconds, plain, c) for c in contestants[1:])
                progress.set_postfix(interval=f'{width:.4f}')
                if agree(width <= precision):
                    break
    return [_row(c, seconds, plain, step) for c in contestants]


def _excess(contestant: Contestant, ratios: Sequence[float]) -> List[float]:
    limits: Sequence[float] = contestant.limits or [1.] * len(ratios)
    return [ratio - limit for ratio, limit in zip(ratios, limits)]


def _half_width(seconds: Dict[str, List[float]], plain: str, contestant: Contestant) -> float:
    # of what is left after the limit: what is dropped differs from step to step, and is no noise
    _, low, high = median_interval(_excess(contestant, _ratios(seconds, plain, contestant.name)))
    return (high - low) / 2


def _ratios(seconds: Dict[str, List[float]], plain: str, name: str) -> List[float]:
    return [s / p for s, p in zip(seconds[name], seconds[plain])]


def _row(contestant: Contestant, seconds: Dict[str, List[float]], plain: str, step: Step) -> Row:
    ratios = _ratios(seconds, plain, contestant.name)
    if step.inference:
        contestant.limits.clear()  # nothing is dropped
    over_limit, low, high = median_interval(_excess(contestant, ratios))
    limit = statistics.fmean(contestant.limits) if contestant.limits else 1.
    return Row(
        name=contestant.name,
        ratio=over_limit + limit,
        low=low + limit,
        high=high + limit,
        limit=limit,
        over_limit=over_limit,
        memory=step.memory(contestant),
        milliseconds=1000 * statistics.median(seconds[contestant.name]),
        rounds=len(ratios),
    )
