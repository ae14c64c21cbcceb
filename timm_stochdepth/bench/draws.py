"""What a network will drop in a step, and what that leaves of its operations, known before the step is taken.

Draws that decide what is computed come from the CPU's generator, place by place in forward order. So they are taken
once before the step, and the generator is put back.
"""
from typing import Dict, List, Set, Tuple

import torch
from torch import nn

from ..analysis.flops import block_drop_limit, drop_path_shares
from ..draws.fixed import STEPS
from ..draws.selection import rows_to_run
from ..inspection import drop_paths
from ..layers.drop_path import StochasticDropPath

__all__ = ['Draws', 'ExpectedDraws', 'FixedNumbers', 'NoDraws']

NUM_CANDIDATES = 256  # seeds among which the most typical ones are looked for


class NoDraws:
    """Those of a network that computes all, whatever it drops.

    Attributes:
        num_new_sizes: Number of sizes that the step which was seeded last is the first to run a branch with.
    """
    num_new_sizes = 0

    def seed(self, seed: int) -> float:
        """Seed the generators for a step, and return the share of the operations that is left in it."""
        torch.manual_seed(seed)
        return 1.

    def typical_seeds(self, number: int) -> List[int]:
        """Seeds of steps that leave as much of the operations as is left in the mean."""
        return list(range(number))


class Draws(NoDraws):
    """Those of a network that does not compute what it drops.

    Args:
        model: A network with stochastic depth, in training mode.
        batch_size: Number of samples in a batch.
        input_size: Shape of one input, without the batch.
    """

    def __init__(self, model: nn.Module, batch_size: int, input_size: Tuple[int, ...]) -> None:
        self.drop_paths = {name: drop_path for name, drop_path in drop_paths(model) if drop_path.drop_prob > 0.}
        self.shares = drop_path_shares(model, input_size)
        self.batch_size = batch_size
        # branches of one class of blocks have one shape, see `layers.block_class`
        self._shapes = {name: (type(model.get_submodule(name.rpartition('.')[0])), name.rpartition('.')[2])
                        for name in self.drop_paths}
        self._sizes: Set[Tuple[Tuple[type, str], float]] = set()

    def seed(self, seed: int) -> float:
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        drawn = self._draw()
        torch.set_rng_state(state)
        sizes = {(self._shapes[name], share) for name, share in drawn.items()} - self._sizes
        self.num_new_sizes = len(sizes)
        self._sizes |= sizes
        return block_drop_limit(drawn, self.shares)

    def typical_seeds(self, number: int) -> List[int]:
        limits = [Draws.seed(self, seed) for seed in range(NUM_CANDIDATES)]  # of eager steps, which are counted
        mean = sum(limits) / len(limits)
        return sorted(range(NUM_CANDIDATES), key=lambda seed: abs(limits[seed] - mean))[:number]

    def _draw(self) -> Dict[str, float]:
        """Share of the batch for which each drop path's branch does not run."""
        return {name: 1. - self._share_that_runs(drop_path) for name, drop_path in self.drop_paths.items()}

    def _share_that_runs(self, drop_path: StochasticDropPath) -> float:
        if drop_path.drops_batch:
            return float(drop_path.draws.batch(drop_path.drop_prob))
        num_kept = int(drop_path.draw_samples(torch.empty(self.batch_size)).count_nonzero())
        return (rows_to_run(num_kept, self.batch_size) if drop_path.round_up else num_kept) / self.batch_size


class ExpectedDraws(Draws):
    """Those of a network whose samples are skipped in a compiled graph, where the compiler may reorder the draws."""

    def seed(self, seed: int) -> float:
        torch.manual_seed(seed)
        return block_drop_limit({name: drop_path.drop_prob for name, drop_path in self.drop_paths.items()}, self.shares)


class FixedNumbers(Draws):
    """Those of a network in which as many samples run in each step."""

    def _share_that_runs(self, drop_path: StochasticDropPath) -> float:
        return -(-self.batch_size * drop_path.keep_steps // STEPS) / self.batch_size
