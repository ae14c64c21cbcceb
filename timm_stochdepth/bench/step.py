"""A step that is measured: its time, its memory on a GPU, and what it does, counted."""
import statistics
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from .contestants import Contestant
from .counters import Counts, OpCounts, StepCounter, kept_storages

__all__ = ['Step', 'count', 'loop_ratios', 'peak_memory']

NUM_COUNTED = 4  # steps, with draws that are typical
NUM_LOOPS, NUM_IN_LOOP = 5, 10


@dataclass
class Step:
    """A batch forward and backward, or forward alone at inference.

    Attributes:
        x_NCHW: Batch of images, on the device to measure on.
        amp: Run under autocast to bfloat16.
        inference: Run forward only, without gradients.
    """
    x_NCHW: Tensor
    amp: bool = False
    inference: bool = False

    def __call__(self, run: Callable[..., Any]) -> None:
        with (
            torch.autocast(self.x_NCHW.device.type, torch.bfloat16, enabled=self.amp),
            torch.set_grad_enabled(not self.inference),
        ):
            loss = run(self.x_NCHW).float().square().mean()
        if not self.inference:
            loss.backward()

    def seconds(self, run: Callable[..., Any]) -> float:
        """Time of one step; on a GPU by its own clock."""
        if not self.x_NCHW.is_cuda:
            started = time.perf_counter()
            self(run)
            return time.perf_counter() - started
        device = self.x_NCHW.device
        stream = torch.cuda.current_stream(device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record(stream)
        self(run)
        end.record(stream)
        end.synchronize()
        return begin.elapsed_time(end) / 1000


def peak_memory(contestant: Contestant, step: Step, num_warmup: int = 3) -> int:
    """The most bytes of a GPU that one of a few steps has in use, weights and gradients included.

    All other networks have to be elsewhere.
    """
    device = step.x_NCHW.device
    for round_idx in range(num_warmup + NUM_COUNTED):
        if round_idx == num_warmup:  # what is compiled, chosen and set up once is done
            torch.cuda.reset_peak_memory_stats(device)
        contestant.draws.seed(round_idx)
        contestant.model.zero_grad()
        step(contestant.run)
    contestant.model.zero_grad()
    return torch.cuda.max_memory_allocated(device)


def count(contestant: Contestant, step: Step) -> Tuple[Counts, Dict[str, OpCounts]]:
    """What a step does in eager mode, all together and by the operation's name.

    The mean of a few steps, whose draws leave as much of the operations as is left in the mean.
    """
    total = Counts()
    by_op: Dict[str, OpCounts] = {}
    seeds = contestant.draws.typical_seeds(NUM_COUNTED)
    for seed in seeds:
        contestant.draws.seed(seed)
        contestant.model.zero_grad()
        with kept_storages(contestant.model) as kept, StepCounter() as counter:
            step(contestant.model)
        total.kept += sum(kept.values()) / len(seeds)
        for name, counts in counter.by_op.items():
            total.add(counts, 1 / len(seeds))
            by_op.setdefault(name, OpCounts()).add(counts, 1 / len(seeds))
    contestant.model.zero_grad()
    return total, by_op


def loop_ratios(contestants: Sequence[Contestant], step: Step) -> List[float]:
    """Time of a step in a loop in which nobody waits for the device, as a training has it, as a ratio to the first's.

    Steps one by one have the host launch each of them while the device has nothing to do.
    """
    seconds: List[List[float]] = [[] for _ in contestants]
    for loop_idx in range(NUM_LOOPS):
        for contestant, of_row in zip(contestants, seconds):
            contestant.draws.seed(loop_idx)
            torch.cuda.synchronize(step.x_NCHW.device)
            started = time.perf_counter()
            for _ in range(NUM_IN_LOOP):
                step(contestant.run)
                contestant.model.zero_grad()
            torch.cuda.synchronize(step.x_NCHW.device)
            of_row.append(time.perf_counter() - started)
    return [statistics.median(s / p for s, p in zip(of_row, seconds[0])) for of_row in seconds]
