"""What a network will drop in a step, and what that leaves of its operations, known before the step is taken.

Draws that decide what is computed come from the CPU's generator, place by place in forward order. So they are taken
once before the step, and the generator is put back.
"""
from typing import Dict, List, Tuple

import torch
from torch import nn

from ..analysis.flops import block_drop_limit, drop_path_shares
from ..inspection import drop_paths

__all__ = ['Draws', 'ExpectedDraws', 'NoDraws']

NUM_CANDIDATES = 256  # seeds among which the most typical ones are looked for


class NoDraws:
    """Those of a network that computes all, whatever it drops."""

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

    def seed(self, seed: int) -> float:
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        limit = block_drop_limit(self._draw(), self.shares)
        torch.set_rng_state(state)
        return limit

    def typical_seeds(self, number: int) -> List[int]:
        limits = [Draws.seed(self, seed) for seed in range(NUM_CANDIDATES)]  # of eager steps, which are counted
        mean = sum(limits) / len(limits)
        return sorted(range(NUM_CANDIDATES), key=lambda seed: abs(limits[seed] - mean))[:number]

    def _draw(self) -> Dict[str, float]:
        """Share of the batch that each place drops."""
        like = torch.empty(self.batch_size)
        return {
            name: float(not drop_path.draws.batch(drop_path.drop_prob)) if drop_path.drops_batch
            else (drop_path.draw_samples(like) == 0.).float().mean().item()
            for name, drop_path in self.drop_paths.items()
        }


class ExpectedDraws(Draws):
    """Those of a network whose samples are skipped in a compiled graph, where the compiler may reorder the draws."""

    def seed(self, seed: int) -> float:
        torch.manual_seed(seed)
        return block_drop_limit({name: drop_path.drop_prob for name, drop_path in self.drop_paths.items()}, self.shares)
