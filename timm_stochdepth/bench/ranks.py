"""Measure in the ranks of a process group, in step."""
import tempfile
from pathlib import Path
from typing import List

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from .contestants import create_contestants
from .measure import Row, measure
from .settings import BenchSettings
from .step import Step

__all__ = ['measure_ddp']


def measure_ddp(settings: BenchSettings, x_NCHW: torch.Tensor, num_ranks: int = 2) -> List[Row]:
    """Rows of the contestants under DistributedDataParallel, over gloo, as rank 0 timed them.

    Args:
        settings: What to measure.
        x_NCHW: Batch of each rank, on the CPU.
        num_ranks: Number of processes, which share the threads of this one.
    """
    num_threads = max(torch.get_num_threads() // num_ranks, 1)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_measure_rank, (num_ranks, num_threads, folder, settings, x_NCHW), num_ranks)
        return torch.load(Path(folder) / 'rows.pt', weights_only=False)


def _measure_rank(
        rank: int,
        num_ranks: int,
        num_threads: int,
        folder: str,
        settings: BenchSettings,
        x_NCHW: torch.Tensor,
) -> None:
    torch.set_num_threads(num_threads)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=num_ranks)
    step = Step(x_NCHW, settings.amp)
    rows = measure(create_contestants(settings), step, settings, agree=_as_rank_0, show_progress=rank == 0)
    if rank == 0:
        torch.save(rows, Path(folder) / 'rows.pt')
    dist.destroy_process_group()


def _as_rank_0(done: bool) -> bool:
    decision = torch.tensor(done)
    dist.broadcast(decision, src=0)
    return bool(decision)
