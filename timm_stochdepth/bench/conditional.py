"""Block mode in its simplest form, to compare with: `if`, and nothing for the parameters that were left out."""
from typing import Any

import torch
from torch import Tensor, nn

from ..cut.branch import Branch
from ..layers.drop_path import StochasticDropPath

__all__ = ['ConditionalDropPath']


class ConditionalDropPath(StochasticDropPath):
    """A drop path that leaves the parameters of a branch that the batch drops without a gradient."""

    @torch.compiler.disable(recursive=False)
    def add_decided(self, keeps: bool, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        return branch.add_scaled(block, shortcut, *inputs) if keeps else shortcut.clone()
