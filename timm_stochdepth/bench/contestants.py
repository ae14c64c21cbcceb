"""The networks that are measured against each other, as a step calls them."""
from dataclasses import dataclass, field
from typing import Any, Callable, List

import torch
from torch import nn

from .draws import Draws, NoDraws
from .networks import create_networks
from .settings import ROWS, SKIPPING_ROWS, BenchSettings

__all__ = ['Contestant', 'create_contestants']


@dataclass
class Contestant:
    """A network to measure.

    Attributes:
        name: Its row's name.
        model: The network.
        run: What a step calls: the network, or what it was compiled or wrapped to.
        draws: What it drops in a step.
    """
    name: str
    model: nn.Module
    run: Callable[..., Any]
    draws: NoDraws = field(default_factory=NoDraws)


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
        contestants.append(Contestant(ROWS[name], network, _wrap(name, network, settings), draws))
    return contestants


def _wrap(name: str, network: nn.Module, settings: BenchSettings) -> Callable[..., Any]:
    if settings.ddp:  # a conditional skip leaves its parameters out of the graph
        return nn.parallel.DistributedDataParallel(network, find_unused_parameters=name == 'conditional')
    # the shapes of one network are no reason to compile another for dynamic ones
    return torch.compile(network, dynamic=False) if settings.compile else network


def _draws(name: str, network: nn.Module, settings: BenchSettings) -> NoDraws:
    if settings.inference or name not in SKIPPING_ROWS:
        return NoDraws()
    return Draws(network, settings.batch_size, settings.input_size)
