"""The blocks of a model that stochastic depth is asked for, and what can be done to them."""
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple, Type

import timm.layers
import timm.models.resnet as timm_resnet
import torchvision.models.resnet as tv_resnet
import torchvision.ops
from torch import nn

from .blocks import StochasticBlock, plain_class_of, stochastic_class
from .families import BRANCH_ENDS
from .sharding import unsharded_class
from .site import StochasticDropPath
from .trace import NoDropPath, NotCuttable

__all__ = ['STOCHASTIC_LAYER_MAPPING', 'Target', 'class_name', 'find_targets', 'names_that_fit']

_PEERS = (timm.layers.DropPath, torchvision.ops.StochasticDepth)


# target layer name -> {plain block class: its stochastic class}, to be extended with blocks of your own;
# StochasticBlock itself stands for the class that is made from the plain one
STOCHASTIC_LAYER_MAPPING: Dict[str, Dict[Type[nn.Module], Type[StochasticBlock]]] = {
    'ResNetBasicBlock': dict.fromkeys((timm_resnet.BasicBlock, tv_resnet.BasicBlock), StochasticBlock),
    'ResNetBottleneck': dict.fromkeys((timm_resnet.Bottleneck, tv_resnet.Bottleneck), StochasticBlock),
}


@dataclass(frozen=True)
class Target:
    """A block that is to drop its branches.

    Attributes:
        name: Its name in the model.
        block: The block, as it is.
        places: Names of its drop paths.
        stochastic_class: The class that gives it stochastic depth; None if its branches can only be masked.
        reason: Why they can only be masked.
    """
    name: str
    block: nn.Module
    places: Tuple[str, ...]
    stochastic_class: Optional[Type[nn.Module]]
    reason: str = ''

    def rates(self) -> List[float]:
        """The drop rate that each of its places has now."""
        return [_rate(getattr(self.block, name, None)) for name in self.places]

    def peers(self) -> List[str]:
        """Names and classes of others' drop paths in its places."""
        children = ((f'{self.name}.{name}', getattr(self.block, name, None)) for name in self.places)
        return [f'{name} ({type(child).__name__})' for name, child in children if isinstance(child, _PEERS)]


def _rate(module: Any) -> float:
    if isinstance(module, StochasticDropPath):
        return (module.settings.drop_rate or 0.) * module.depth_scale
    return float(getattr(module, 'drop_prob', None) or getattr(module, 'p', None) or 0.)


def class_name(block: nn.Module) -> str:
    """A block's class as it is named, `'vision_transformer.Block'`."""
    plain_class = plain_class_of(block)
    return f'{plain_class.__module__.rpartition(".")[2]}.{plain_class.__qualname__}'


def _places(block: nn.Module) -> Tuple[str, ...]:
    """Names of a block's drop paths: where one is, or where timm has one at another rate (`None`, or an `Identity`)."""
    plain_class = plain_class_of(block)
    if plain_class in BRANCH_ENDS:
        return ('drop_path',)
    children = {**{n: v for n, v in vars(block).items() if v is None}, **block._modules}
    return tuple(
        name for name, child in children.items()
        if isinstance(child, (*_PEERS, StochasticDropPath))
        or ('drop_path' in name and (child is None or type(child) is nn.Identity)))


def _is_named(block: nn.Module, target_layer_name: str) -> bool:
    if target_layer_name in STOCHASTIC_LAYER_MAPPING:
        classes = STOCHASTIC_LAYER_MAPPING[target_layer_name]
        return plain_class_of(block) in classes or unsharded_class(type(block)) in classes.values()
    if target_layer_name == 'DropPath':  # where none stood, one does once it was asked for by name
        return plain_class_of(block) not in BRANCH_ENDS or isinstance(block, StochasticBlock)
    return target_layer_name == class_name(block)


def find_targets(model: nn.Module, target_layer_name: str) -> List[Target]:
    """The blocks of a model that a target layer's name stands for, in the order that they were registered in."""
    targets = []
    for name, block in model.named_modules():
        if isinstance(block, StochasticDropPath) or not _is_named(block, target_layer_name):
            continue
        by_hand = STOCHASTIC_LAYER_MAPPING.get(target_layer_name, {}).get(plain_class_of(block), StochasticBlock)
        if by_hand is not StochasticBlock:
            targets.append(Target(name, block, by_hand._places, by_hand))
        else:
            target = _find_target(name, block)
            targets += [target] if target else []
    return targets


def names_that_fit(model: nn.Module) -> List[str]:
    """What could be given as a target layer's name for a model: the keys, and the names of its blocks' classes."""
    keys = [key for key in ('DropPath', *STOCHASTIC_LAYER_MAPPING) if find_targets(model, key)]
    return keys + sorted({class_name(target.block) for target in find_targets(model, 'DropPath')})


def _find_target(name: str, block: nn.Module) -> Optional[Target]:
    places = _places(block)
    if not places:
        return None
    try:
        made = stochastic_class(block, places)
    except NoDropPath:
        return None
    except NotCuttable as e:
        return Target(name, block, places, None, str(e))
    return Target(name, block, made._places, made)
