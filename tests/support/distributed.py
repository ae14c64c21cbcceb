"""Real process groups: run a function of a test module in several processes, and get what each returns."""

import tempfile
import traceback
from pathlib import Path

import forks  # noqa: F401  what the processes are forks of
import pytest
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


@pytest.fixture(scope='session')
def run_ranks():
    """A function that says what fn(rank, *args) returned on each rank."""

    def run(fn, *args, world_size=2):
        with tempfile.TemporaryDirectory() as folder:
            mp.start_processes(_run, (world_size, folder, fn, args), nprocs=world_size, start_method='forkserver')
            return [torch.load(Path(folder) / f'{rank}.pt', weights_only=False) for rank in range(world_size)]

    return run
