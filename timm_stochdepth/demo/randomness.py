"""Streams of random numbers that do not disturb one another in one process."""
import random
from types import TracebackType
from typing import Any, Optional, Tuple, Type

import numpy as np
import torch
from timm.utils import random_seed

__all__ = ['RandomStream']


class RandomStream:
    """A context in which torch, numpy and Python draw from a stream of its own, which goes on where it was left.

    Args:
        seed: Where the stream starts.
        device: A GPU that is drawn on, too, or the CPU.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        outside = self._read()
        random_seed(seed)
        self._inside = self._read()
        self._write(outside)

    def __enter__(self) -> None:
        self._outside = self._read()
        self._write(self._inside)

    def __exit__(
            self,
            exc_type: Optional[Type[BaseException]],
            exc: Optional[BaseException],
            traceback: Optional[TracebackType],
    ) -> None:
        self._inside = self._read()
        self._write(self._outside)

    def _read(self) -> Tuple[Any, ...]:
        gpu = torch.cuda.get_rng_state(self.device) if self.device.type == 'cuda' else None
        return torch.get_rng_state(), np.random.get_state(), random.getstate(), gpu

    def _write(self, states: Tuple[Any, ...]) -> None:
        cpu, of_numpy, of_python, gpu = states
        torch.set_rng_state(cpu)
        np.random.set_state(of_numpy)
        random.setstate(of_python)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, self.device)
