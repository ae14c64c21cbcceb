"""Real process groups: run a function of a test module in several processes, and get what each returns."""

import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _run(rank, world_size, folder, fn, args):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=world_size)
    try:
        torch.save(fn(rank, *args), f'{folder}/{rank}.pt')
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()


def run_ranks(fn, *args, world_size=2):
    """What fn(rank, *args) returned on each rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (world_size, folder, fn, args), nprocs=world_size)
        return [torch.load(Path(folder) / f'{rank}.pt', weights_only=False) for rank in range(world_size)]
