"""The networks that are timed against each other, all with the same weights."""
import random
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional

import timm
import torch
import torchvision.ops
from torch import nn

from ..fold import as_weights_of
from ..operations import block_drop_limit, branch_shares
from ..surgery import apply_stochastic_depth, stochastic_blocks

__all__ = ['Contestant', 'create_contestants']


@dataclass
class Contestant:
    """A network to time.

    Attributes:
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
        compile: bool = False,
        img_size: int = 224,
        seed: int = 0,
) -> List[Contestant]:
    """The plain network first, then its peers, then ours.

    Args:
        model_name: A plain ResNet of timm.
        rate: Drop rate of the networks, linear.
        compile: Run each under torch.compile.
        img_size: Size of an image, for the count of operations.
        seed: Seed of what block mode drops.
    """
    plain = timm.create_model(model_name)
    drop_path = timm.create_model(model_name, drop_path_rate=rate)
    torchvision_depth = timm.create_model(model_name, drop_path_rate=rate)
    for name, module in list(torchvision_depth.named_modules()):
        if isinstance(module, timm.layers.DropPath):
            torchvision_depth.set_submodule(name, torchvision.ops.StochasticDepth(module.drop_prob, 'row'))
    networks: Dict[str, nn.Module] = {
        'plain': plain,
        'timm DropPath': drop_path,
        'torchvision StochasticDepth': torchvision_depth,
    }
    is_bottleneck = any(isinstance(m, timm.models.resnet.Bottleneck) for m in plain.modules())
    layer = 'ResNetBottleneck' if is_bottleneck else 'ResNetBasicBlock'
    for method in ('sample', 'block'):
        networks[method] = timm.create_model(model_name)
        apply_stochastic_depth(networks[method], method, layer, rate)

    contestants = []
    for name, network in networks.items():
        network.load_state_dict(as_weights_of(network, plain.state_dict()))
        contestants.append(Contestant(name, network, torch.compile(network) if compile else network))
    _fix_decisions(contestants[-1], img_size, seed)
    return contestants


def _fix_decisions(contestant: Contestant, img_size: int, seed: int) -> None:
    """Draw what a step of block mode drops before it is timed, and note what may be left of the operations."""
    shares = branch_shares(contestant.model, (3, img_size, img_size))
    generator = random.Random(seed)
    blocks = dict(stochastic_blocks(contestant.model))
    kept: Dict[str, Optional[bool]] = {}

    def prepare() -> None:
        for name, block in blocks.items():
            kept[name] = generator.random() >= block.drop_prob
        contestant.limits.append(block_drop_limit({n: float(not keep) for n, keep in kept.items()}, shares))

    for name, block in blocks.items():
        block.draw_block = torch.compiler.disable(lambda name=name: kept[name])  # type: ignore[method-assign]
    contestant.prepare = prepare
