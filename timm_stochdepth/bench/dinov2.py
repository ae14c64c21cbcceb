"""Stochastic depth as DINOv2 has it (https://github.com/facebookresearch/dinov2, layers/block.py), to compare with.

Of a batch of b samples a fixed number k = max(int(b * (1 - p)), 1) runs the branch, whose result is added times b / k.
"""
from typing import Any, Union

import torch
from torch import Tensor, nn

from ..cut.branch import Branch
from ..draws.bernoulli import Draws
from ..layers.drop_path import StochasticDropPath

__all__ = ['FixedNumberDraws', 'FixedNumberDropPath']


class FixedNumberDraws(Draws):
    """A fixed number of samples of each batch keep their branch."""

    def samples(self, x: Tensor, drop_prob: Union[float, Tensor], scale_by_keep: bool = False) -> Tensor:
        num_samples = x.shape[0]
        indices = self.indices(x, float(drop_prob))
        return x.new_zeros(num_samples).index_fill(0, indices, num_samples / len(indices))

    def indices(self, x: Tensor, drop_prob: float) -> Tensor:
        """Indices of the samples that do, shape (K,)."""
        return torch.randperm(x.shape[0], device=x.device)[:max(int(x.shape[0] * (1. - drop_prob)), 1)]


class FixedNumberDropPath(StochasticDropPath):
    """A drop path that runs the branch for a fixed number of samples, in PyTorch's own operations.

    Its settings have `scale_by_keep`: at inference its block is the plain one.
    """
    draws: FixedNumberDraws

    def add(self, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        num_samples = shortcut.shape[0]
        indices = self.draws.indices(shortcut, self.drop_prob)

        def gather(x: Any, first_dimensions: Any) -> Any:
            is_batch = isinstance(x, Tensor) and first_dimensions is not None and x.ndim >= first_dimensions
            return x[indices] if is_batch and x.shape[0] == num_samples else x

        run = branch.run if len(indices) > 1 else branch.run_for_single_sample
        y = run(block, *map(gather, inputs, branch.batch_dimensions))
        return torch.index_add(shortcut, 0, indices, y.to(shortcut.dtype), alpha=num_samples / len(indices))
