"""Stochastic depth as DINOv2 has it (https://github.com/facebookresearch/dinov2, layers/block.py), to compare with.

Of a batch of b samples a fixed number k = max(int(b * (1 - p)), 1) runs the branch, whose result is added times b / k.
"""
from typing import Any

import torch
from torch import Tensor, nn

from ..fx.branch import Branch
from ..layers.drop_path import StochasticDropPath

__all__ = ['FixedNumberDropPath']


class FixedNumberDropPath(StochasticDropPath):
    """A drop path that runs the branch for a fixed number of samples, in PyTorch's own operations.

    Its settings have `scale_by_keep`: at inference its block is the plain one.
    """

    def num_run(self, num_samples: int) -> int:
        """How many samples of a batch run the branch."""
        return max(int(num_samples * (1. - self.drop_prob)), 1)

    def draw_samples(self, x: Tensor) -> Tensor:
        num_samples = x.shape[0]
        keep_N = x.new_zeros(num_samples)
        keep_N[self._draw_indices(x)] = num_samples / self.num_run(num_samples)
        return keep_N

    def _draw_indices(self, x: Tensor) -> Tensor:
        return torch.randperm(x.shape[0], device=x.device)[:self.num_run(x.shape[0])]

    def add(self, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        num_samples = shortcut.shape[0]
        num_run = self.num_run(num_samples)
        indices = self._draw_indices(shortcut)

        def gather(x: Any, first_dimensions: Any) -> Any:
            is_batch = isinstance(x, Tensor) and first_dimensions is not None and x.ndim >= first_dimensions
            return x[indices] if is_batch and x.shape[0] == num_samples else x

        with branch.lone_values_by_running_statistics(block, num_run):
            y = branch.run(block, *map(gather, inputs, branch.batch_dimensions))
        return torch.index_add(shortcut, 0, indices, y.to(shortcut.dtype), alpha=num_samples / num_run)
