"""The networks that are timed against each other, all with the same weights."""
import random
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Dict, List

import timm
import torch
import torchvision.ops
from torch import nn

from ..fold import as_weights_of
from ..operations import block_drop_limit, place_shares
from ..surgery import apply_stochastic_depth, drop_paths

__all__ = ['Contestant', 'create_contestants', 'create_ddp_contestants']


@dataclass
class Contestant:
    """A network to time.

    Attributes:
        run: What a step calls: the network, or what it was compiled or wrapped to.
        prepare: Called before each step, outside of the time: draws what is to be dropped in it.
        limits: Share of the operations that was left in each step, for what was dropped in it.
    """
    name: str
    model: nn.Module
    run: Callable[..., Any]
    prepare: Callable[[], None] = lambda: None
    limits: List[float] = field(default_factory=list)


def create_contestants(
        model_name: str,
        rate: float,
        batch_size: int,
        img_size: int,
        compile: bool = False,
        drop_distribution: str = 'linear',
        seed: int = 0,
) -> List[Contestant]:
    """The plain network first, then its peers, then ours.

    A second plain network shows what the machine can tell apart, a conditional skip what is left to gain in block
    mode: it drops the same blocks.

    Args:
        model_name: A plain network of timm, whose branches can all be left out.
        rate: Drop rate of the networks.
        batch_size: Number of images in a batch.
        img_size: Size of an image, for the count of operations.
        compile: Run each under torch.compile.
        drop_distribution: `'linear'` or `'uniform'`.
        seed: Seed of what is dropped where it is skipped.
    """
    plain = timm.create_model(model_name)
    networks = {
        'plain': plain,
        'plain, again': timm.create_model(model_name),
        'timm DropPath': _peer(model_name, rate, drop_distribution, timm.layers.DropPath),
        'torchvision StochasticDepth': _peer(
            model_name, rate, drop_distribution, partial(torchvision.ops.StochasticDepth, mode='row')),
        'conditional skip': _conditional_skip(model_name, rate, drop_distribution),
        'sample': _stochastic(model_name, 'sample', rate, drop_distribution),
        'sample, skip_dropped': _stochastic(model_name, 'sample', rate, drop_distribution, skip_dropped=True),
        'block': _stochastic(model_name, 'block', rate, drop_distribution),
    }
    for network in networks.values():
        network.load_state_dict(as_weights_of(network, plain.state_dict()))
    # the shapes of one network are no reason to compile another for dynamic ones
    contestants = {
        n: Contestant(n, m, torch.compile(m, dynamic=False) if compile else m) for n, m in networks.items()}
    for name, num_draws in (('conditional skip', 1), ('sample, skip_dropped', batch_size), ('block', 1)):
        _fix_decisions(contestants[name], num_draws, img_size, seed)
    return list(contestants.values())


def create_ddp_contestants(
        model_name: str,
        rate: float,
        img_size: int,
        memory_format: torch.memory_format = torch.contiguous_format,
        seed: int = 0,
) -> List[Contestant]:
    """A plain network, a plain conditional skip, and block mode, under DistributedDataParallel.

    The conditional skip leaves its parameters out of the graph, and needs `find_unused_parameters`.

    Args:
        model_name: A plain network of timm, whose branches can all be left out.
        rate: Drop rate of the networks, linear.
        img_size: Size of an image, for the count of operations.
        memory_format: That of the weights, which has to be set before they are wrapped.
        seed: Seed of what is dropped, the same in all ranks.
    """
    conditional = _conditional_skip(model_name, rate)
    networks = {
        'plain': timm.create_model(model_name),
        'conditional skip, find_unused_parameters': conditional,
        'block': _stochastic(model_name, 'block', rate),
    }
    contestants = []
    for name, network in networks.items():
        network.load_state_dict(as_weights_of(network, networks['plain'].state_dict()))
        network.to(memory_format=memory_format)
        wrapped = nn.parallel.DistributedDataParallel(network, find_unused_parameters=network is conditional)
        contestants.append(Contestant(name, network, wrapped))
    for contestant in contestants[1:]:
        _fix_decisions(contestant, 1, img_size, seed)
    return contestants


def _stochastic(
        model_name: str,
        stochastic_method: str,
        rate: float,
        drop_distribution: str = 'linear',
        **settings: Any,
) -> nn.Module:
    model = timm.create_model(model_name)
    apply_stochastic_depth(model, stochastic_method, 'DropPath', rate, drop_distribution, **settings)
    return model


def _peer(model_name: str, rate: float, drop_distribution: str, make: Callable[[float], nn.Module]) -> nn.Module:
    """A plain network with somebody else's drop paths, at the same places and rates."""
    model = timm.create_model(model_name)
    for name, place in drop_paths(_stochastic(model_name, 'sample', rate, drop_distribution)):
        if place.drop_prob > 0.:
            block_name, _, attribute = name.rpartition('.')
            setattr(model.get_submodule(block_name), attribute, make(place.drop_prob))
    return model


def _conditional_skip(model_name: str, rate: float, drop_distribution: str = 'linear') -> nn.Module:
    """Block mode in its simplest form, whose dropped parameters get no gradient."""
    model = _stochastic(model_name, 'block', rate, drop_distribution)
    for _, place in drop_paths(model):
        place._skip = torch.compiler.disable(lambda shortcut, *_: shortcut.clone())  # type: ignore[method-assign]
    return model


def _fix_decisions(contestant: Contestant, num_draws: int, img_size: int, seed: int) -> None:
    """Draw what a step skips before it is timed, and note what that leaves of the operations.

    Args:
        contestant: A network with stochastic blocks.
        num_draws: Draws for a block and step: the batch size, or 1 for a draw that holds for the batch.
        img_size: Size of an image.
        seed: Seed of the draws.
    """
    shares = place_shares(contestant.model, (3, img_size, img_size))
    generator = random.Random(seed)
    places = dict(drop_paths(contestant.model))
    keep: Dict[str, List[float]] = {}

    def prepare() -> None:
        for name, place in places.items():
            keep[name] = [float(generator.random() >= place.drop_prob) for _ in range(num_draws)]
        dropped = {name: keep_N.count(0.) / num_draws for name, keep_N in keep.items()}
        contestant.limits.append(block_drop_limit(dropped, shares))

    for name, place in places.items():
        place.draw_block = torch.compiler.disable(lambda name=name: bool(keep[name][0]))  # type: ignore[method-assign]
        place.draw_samples = lambda x, name=name: torch.tensor(keep[name])  # type: ignore[method-assign, misc]
    contestant.prepare = prepare
