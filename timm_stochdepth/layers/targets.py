"""Find the blocks of a model that stochastic depth is asked for."""
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple, Type

import timm.models.resnet as timm_resnet
import torchvision.models.resnet as tv_resnet
from torch import nn

from ..cut.slices import NoDropPath
from ..cut.source import NotCuttable
from ..cut.tables import BRANCH_ENDS
from .block import StochasticBlock, plain_class_of
from .block_class import stochastic_class
from .drop_path import StochasticDropPath
from .peers import NotTakenOver, Peer, looks_like_drop_path, read_peer
from .sharding import unsharded_class

__all__ = [
    'STOCHASTIC_LAYER_MAPPING',
    'Target',
    'class_name',
    'drop_paths_left',
    'find_targets',
]

# modules that hold others for their parents, which call them
_LISTS = (nn.ModuleList, nn.ModuleDict)

# target layer name -> {plain block class: its stochastic class}, to be extended with blocks of your own;
# StochasticBlock itself stands for the class that is made from the plain one
STOCHASTIC_LAYER_MAPPING: Dict[str, Dict[Type[nn.Module], Type[StochasticBlock]]] = {
    'ResNetBasicBlock': dict.fromkeys((timm_resnet.BasicBlock, tv_resnet.BasicBlock), StochasticBlock),
    'ResNetBottleneck': dict.fromkeys((timm_resnet.Bottleneck, tv_resnet.Bottleneck), StochasticBlock),
    # of networks without drop paths: HRNet's are timm's ResNet blocks
    'ResidualBlock': dict.fromkeys((*BRANCH_ENDS, timm_resnet.BasicBlock, timm_resnet.Bottleneck), StochasticBlock),
}


@dataclass(frozen=True)
class Target:
    """A block that is to drop its branches.

    Attributes:
        name: Its name in the model.
        block: The block, as it is.
        drop_path_names: Names of its drop paths.
        stochastic_class: The class that gives it stochastic depth; None if its branches can only be masked.
        reason: Why they can only be masked.
        peers: Others' drop paths in its places.
    """
    name: str
    block: nn.Module
    drop_path_names: Tuple[str, ...]
    stochastic_class: Optional[Type[nn.Module]]
    reason: str = ''
    peers: Dict[str, Peer] = field(default_factory=dict)

    def full_name(self, name: str) -> str:
        return f'{self.name}.{name}' if self.name else name

    def drop_paths(self) -> Dict[str, StochasticDropPath]:
        """Those of its drop paths that are this package's."""
        children = self.block._modules
        return {p: c for p in self.drop_path_names if isinstance(c := children.get(p), StochasticDropPath)}

    def rates(self) -> List[float]:
        """The drop rate that each of its drop paths has now."""
        rates = {name: peer.rate for name, peer in self.peers.items()}
        rates.update((name, drop_path.unscheduled_rate()) for name, drop_path in self.drop_paths().items())
        return [rates.get(name, 0.) for name in self.drop_path_names]

    def conventions(self) -> Set[bool]:
        """Whether its drop paths divide by the keep probability in training; nothing where none stands."""
        return {p.scale_by_keep for p in self.peers.values()} | {d.scale_by_keep for d in self.drop_paths().values()}


def class_name(block: nn.Module) -> str:
    """A block's class as it is named, `'vision_transformer.Block'`."""
    plain_class = plain_class_of(block)
    return f'{plain_class.__module__.rpartition(".")[2]}.{plain_class.__qualname__}'


def _named(name: str, block: nn.Module, child_name: str) -> str:
    """What a block calls a child: those of a list have numbers, and the list the name."""
    return name.rpartition('.')[2] if isinstance(block, _LISTS) else child_name


def _read_peers(model: nn.Module) -> Dict[nn.Module, Peer]:
    """Others' drop paths that can be taken over."""
    peers = {}
    for name, block in model.named_modules():
        for child_name, child in block._modules.items():
            called = _named(name, block, child_name)
            if child is None or child in peers or isinstance(child, StochasticDropPath):
                continue
            if looks_like_drop_path(called, child):
                with suppress(NotTakenOver):  # drop_paths_left has those
                    peers[child] = read_peer(called, child)
    return peers


class _DropPathNames:
    """Where the blocks of a model have drop paths, or would have some at another rate: `None`, or an `Identity`."""

    def __init__(self, model: nn.Module) -> None:
        self.peers = _read_peers(model)
        # whatever a class calls its drop path, in one block it is an Identity, in the next one a drop path
        self.names: Dict[Type[nn.Module], Set[str]] = {}
        for block in model.modules():
            if not isinstance(block, (nn.Sequential, *_LISTS)):
                self.names.setdefault(plain_class_of(block), set()).update(
                    child_name for child_name, child in block._modules.items() if self.drops(child))

    def drops(self, child: Optional[nn.Module]) -> bool:
        return isinstance(child, StochasticDropPath) or child in self.peers

    def of(self, name: str, block: nn.Module) -> Tuple[str, ...]:
        """The names that a block has its drop paths under."""
        plain_class = plain_class_of(block)
        if plain_class in BRANCH_ENDS:
            end = BRANCH_ENDS[plain_class]
            if end not in block._modules:
                raise ValueError(
                    f'BRANCH_ENDS[{plain_class.__name__}] must be the name of a child of that block, one of'
                    f' {", ".join(map(repr, block._modules))}, but is {end!r}.')
            return ('drop_path',)
        names = self.names.get(plain_class, set())
        attributes = {} if isinstance(block, _LISTS) else vars(block)
        children = {**{n: v for n, v in attributes.items() if v is None}, **block._modules}
        return tuple(
            child_name for child_name, child in children.items()
            if self.drops(child) or ((child_name in names or 'drop_path' in _named(name, block, child_name))
                                     and (child is None or type(child) is nn.Identity)))


def _is_named(block: nn.Module, target_layer_name: str) -> bool:
    if target_layer_name in STOCHASTIC_LAYER_MAPPING:
        classes = STOCHASTIC_LAYER_MAPPING[target_layer_name]
        return plain_class_of(block) in classes or unsharded_class(type(block)) in classes.values()
    if target_layer_name == 'DropPath':  # where none stood, one does once it was asked for by name
        return plain_class_of(block) not in BRANCH_ENDS or isinstance(block, StochasticBlock)
    return target_layer_name == class_name(block)


def _inner_first(module: nn.Module, name: str, seen: Set[nn.Module]) -> Iterator[Tuple[str, nn.Module]]:
    """The modules of a model as `named_modules` has them, but one after those within it: they run before it ends."""
    seen.add(module)
    for child_name, child in module._modules.items():
        if child is not None and child not in seen:
            yield from _inner_first(child, f'{name}.{child_name}'.lstrip('.'), seen)
    yield name, module


def find_targets(model: nn.Module, target_layer_name: str) -> List[Target]:
    """The blocks of a model that a target layer's name stands for, in the order of their drop paths."""
    all_names = _DropPathNames(model)
    targets = []
    for name, block in _inner_first(model, '', set()):
        if isinstance(block, StochasticDropPath) or not _is_named(block, target_layer_name):
            continue
        by_hand = STOCHASTIC_LAYER_MAPPING.get(target_layer_name, {}).get(plain_class_of(block), StochasticBlock)
        if by_hand is not StochasticBlock:
            warnings.warn(
                f'Blocks whose shortcut, branch and activation are written by hand, as in {by_hand.__name__}, go with'
                f' 0.6. An entry of BRANCH_ENDS does the same: BRANCH_ENDS[{class_name(block).rpartition(".")[2]}] ='
                ' \'name of the child that the branch ends in\'.', FutureWarning, stacklevel=4)
            targets.append(Target(name, block, by_hand._drop_path_names, by_hand))
            continue
        names = all_names.of(name, block)
        # each of a list is another block's
        for of_one in [(n,) for n in names] if isinstance(block, _LISTS) else [names] if names else []:
            peers = {p: all_names.peers[c] for p in of_one if (c := block._modules.get(p)) in all_names.peers}
            targets += _find_target(name, block, of_one, peers)
    return targets


def _find_target(name: str, block: nn.Module, drop_path_names: Tuple[str, ...], peers: Dict[str, Peer]) -> List[Target]:
    if plain_class_of(block).forward is nn.Module.forward:
        return [Target(name, block, drop_path_names, None, 'it has no forward of its own', peers)]
    try:
        made = stochastic_class(block, drop_path_names)
    except NoDropPath:
        return []
    except NotCuttable as e:
        return [Target(name, block, drop_path_names, None, str(e), peers)]
    return [Target(name, block, made._drop_path_names, made, peers=peers)]


def drop_paths_left(
        model: nn.Module,
        target_layer_name: str,
        targets: Sequence[Target],
) -> Dict[str, Tuple[str, str]]:
    """What looks like a drop path and is not taken over: names, with the class and the reason.

    Args:
        model: A model, before targets are changed.
        target_layer_name: What blocks are asked for by.
        targets: Those that were found.
    """
    taken = {target.full_name(name) for target in targets for name in target.drop_path_names}
    left = {}
    for block_name, block in model.named_modules():
        for child_name, child in block._modules.items() if _is_named(block, target_layer_name) else ():
            name, called = f'{block_name}.{child_name}'.lstrip('.'), _named(block_name, block, child_name)
            if child is None or name in taken or isinstance(child, StochasticDropPath):
                continue
            if looks_like_drop_path(called, child):
                try:
                    read_peer(called, child)  # timm has some that no forward calls
                except NotTakenOver as e:
                    left[name] = type(child).__name__, str(e)
    return left
