"""Measure in the ranks of a process group, in step."""
import tempfile
from pathlib import Path
from typing import Any, List, Tuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from .contestants import create_ddp_contestants
from .measure import Row, Step, measure

__all__ = ['measure_ddp']


def measure_ddp(
        model_name: str,
        rate: float,
        x_NCHW: torch.Tensor,
        amp: bool = False,
        max_rounds: int = 200,
        num_ranks: int = 2,
) -> List[Row]:
    """Rows of the contestants under DistributedDataParallel, over gloo, as rank 0 timed them.

    Args:
        model_name: A plain network of timm, whose branches can all be left out.
        rate: Drop rate of the networks, linear.
        x_NCHW: Batch of each rank, on the CPU.
        amp: Run under autocast to bfloat16.
        max_rounds: Rounds at the most.
        num_ranks: Number of processes, which share the threads of this one.
    """
    num_threads = max(torch.get_num_threads() // num_ranks, 1)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(
            _measure_rank, (num_ranks, num_threads, folder, (model_name, rate, x_NCHW, amp, max_rounds)), num_ranks)
        return torch.load(Path(folder) / 'rows.pt', weights_only=False)


def _measure_rank(rank: int, num_ranks: int, num_threads: int, folder: str, args: Tuple[Any, ...]) -> None:
    model_name, rate, x_NCHW, amp, max_rounds = args
    torch.set_num_threads(num_threads)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=num_ranks)
    memory_format = torch.contiguous_format if x_NCHW.is_contiguous() else torch.channels_last
    contestants = create_ddp_contestants(model_name, rate, x_NCHW.shape[-1], memory_format)
    rows = measure(contestants, Step(x_NCHW, amp), max_rounds=max_rounds, agree=_as_rank_0, show_progress=rank == 0)
    if rank == 0:
        torch.save(rows, Path(folder) / 'rows.pt')
    dist.destroy_process_group()


def _as_rank_0(done: bool) -> bool:
    decision = torch.tensor(done)
    dist.broadcast(decision, src=0)
    return bool(decision)
