"""Skipping as a GPU has it, where there is none."""
from typing import Any

from ..draws.selection import Selection
from ..layers.drawn_ahead import select_ahead
from ..layers.drop_path import StochasticDropPath

__all__ = ['AheadDropPath']


class AheadDropPath(StochasticDropPath):
    """A drop path that draws on the CPU as it does for a network on a GPU."""

    def select(self, shortcut: Any) -> Selection:
        return select_ahead(self, shortcut)
