"""Draws that every rank of a distributed run takes alike, whatever the ranks' own seeds."""
from collections import OrderedDict
from random import Random
from typing import Any, Dict, Optional, Tuple

import torch
import torch.distributed as dist

__all__ = ['SharedDraws', 'has_ranks']

# forward passes whose backward pass may still be to come, and with it a recomputation
MAX_PENDING = 1024

_seed_of_run: Optional[Tuple[Any, int]] = None


def has_ranks() -> bool:
    """Whether this process is one of several of a distributed run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def shared_seed() -> int:
    """Rank 0's seed, told to the others once; all ranks have to ask for it at the same point."""
    global _seed_of_run
    run = dist.group.WORLD
    if _seed_of_run is None or _seed_of_run[0] is not run:
        seed = [torch.initial_seed()]
        dist.broadcast_object_list(seed, src=0)
        _seed_of_run = run, seed[0]
    return _seed_of_run[1]


class SharedDraws:
    """The draws of one block: a function of rank 0's seed, the block and the number of the draw.

    A recomputation under gradient checkpointing repeats the draw of the first pass. It is known by a token from the
    CPU's default generator, which checkpointing restores, as it does for every random operation.

    Args:
        block_idx: Place of the block in its network.
    """

    def __init__(self, block_idx: int) -> None:
        self.block_idx = block_idx
        self.num_draws = 0
        self._pending: OrderedDict[int, float] = OrderedDict()

    def draw_keep_block(self, drop_prob: float) -> bool:
        """Draw whether the block keeps its branch, alike on all ranks.

        Args:
            drop_prob: Probability that the block is dropped, in [0, 1].

        Raises:
            RuntimeError: A recomputation does not restore the generator, or comes over 1,024 forward passes late.
        """
        token = int(torch.randint(2 ** 62, (1,), device='cpu'))
        uniform = self._pending.get(token)
        if uniform is None:
            if torch._C._current_graph_task_id() != -1:  # in a backward pass, as torch.utils.checkpoint asks too
                raise RuntimeError(
                    'A block recomputes its forward pass and has no record of the first one: checkpointing must have'
                    f' preserve_rng_state=True, and at most {MAX_PENDING} forward passes before their backward pass.')
            uniform = Random(f'{shared_seed()}.{self.block_idx}.{self.num_draws}').random()
            self.num_draws += 1
            self._pending[token] = uniform
            if len(self._pending) > MAX_PENDING:
                self._pending.popitem(last=False)
        return uniform >= drop_prob

    def __getstate__(self) -> Dict[str, Any]:
        return {**vars(self), '_pending': OrderedDict()}  # a copy or a file has no backward pass to come
