"""The networks that are measured against each other, as a step calls them."""
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Callable, List

import torch
from torch import nn

from .draws import Draws, ExpectedDraws, FixedNumbers, NoDraws
from .networks import create_networks
from .settings import ALL_ROWS, ROWS, SKIPPING_ROWS, BenchSettings

__all__ = ['Contestant', 'create_contestants']


@dataclass
class Contestant:
    """A network to measure.

    Attributes:
        name: Its row's name.
        model: The network.
        draws: What it drops in a step.
        wrap: Compiles it, or wraps it for several ranks.
    """
    name: str
    model: nn.Module
    draws: NoDraws
    wrap: Callable[[nn.Module], Callable[..., Any]]

    @cached_property
    def run(self) -> Callable[..., Any]:
        """What a step that is timed calls; from then on DistributedDataParallel hears of each gradient."""
        return self.wrap(self.model)


def create_contestants(settings: BenchSettings) -> List[Contestant]:
    """The networks of the rows, on the CPU, the plain one first.

    A second plain network shows what the machine can tell apart, a conditional skip what is left to gain in block
    mode: it drops the same blocks.
    """
    if settings.compile:
        torch._dynamo.reset()
        # a user has one network: here the code of one class is compiled for each of them
        torch._dynamo.config.cache_size_limit = 8 * len(ROWS)
    contestants = []
    for name, network in create_networks(settings).items():
        network.to(memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format)
        network.train(not settings.inference)
        draws = _draws(name, network, settings)
        contestants.append(Contestant(ALL_ROWS[name], network, draws, _wrapper(name, settings)))
    return contestants


def _wrapper(name: str, settings: BenchSettings) -> Callable[[nn.Module], Callable[..., Any]]:
    if settings.ddp:  # a conditional skip leaves its parameters out of the graph
        return partial(nn.parallel.DistributedDataParallel, find_unused_parameters=name == 'conditional')
    # the shapes of one network are no reason to compile another for dynamic ones
    return partial(torch.compile, dynamic=False) if settings.compile else lambda network: network


def _draws(name: str, network: nn.Module, settings: BenchSettings) -> NoDraws:
    if settings.inference or name not in SKIPPING_ROWS:
        return NoDraws()
    is_reordered = settings.compile and name in ('skip', 'ahead', 'round')
    kind = FixedNumbers if name == 'fixed' else ExpectedDraws if is_reordered else Draws
    return kind(network, settings.batch_size, settings.input_size)
