"""Block mode in its simplest form, to compare with: `if`, and nothing for the parameters that were left out."""
from typing import Any

from torch import Tensor, nn

from ..capture import leave_to_python
from ..cut.branch import Branch
from ..layers.drop_path import StochasticDropPath

__all__ = ['ConditionalDropPath']


class ConditionalDropPath(StochasticDropPath):
    """A drop path that leaves the parameters of a branch that the batch drops without a gradient."""

    @leave_to_python
    def add_decided(self, keeps: bool, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        return branch.add_scaled(block, branch, shortcut, *inputs) if keeps else shortcut.clone()
