"""Make the class that gives a plain residual block stochastic depth.

A plain block becomes a stochastic one, and back, by a change of class: its modules, parameters and hooks are the very
same objects. The class is made once for all blocks of one plain class and of one shape.
"""
import inspect
from itertools import combinations
from types import FunctionType
from typing import Any, Callable, ClassVar, Dict, Hashable, Iterator, List, Sequence, Tuple, Type, Union, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..cut.cut import Cut, PlainForward
from ..cut.decorators import unwrapped
from ..cut.functions import masked_forward, scriptable_forward
from ..cut.source import NotCuttable
from ..cut.tables import BATCH_DIMENSIONS, BRANCH_ENDS, SCALING_LAYERS, TRUSTED_BLOCKS
from .block import Refusal, StochasticBlock, plain_class_of, raise_refusal
from .class_table import ClassTable
from .fuse import checked_fuse
from .sharding import sharded_like

__all__ = ['cuts_of', 'stochastic_class']

# the path of a forward that is not known: there is one, and it has no cut
_NO_PATH: Tuple[bool, ...] = ()


class _CutBlock(StochasticBlock):
    """A block whose branches are found in the plain class's forward."""
    _plain_class: ClassVar[Type[nn.Module]]
    # as it was when this class was made
    _plain_forward: ClassVar[Callable[..., Any]]
    _source: ClassVar[Union[PlainForward, Refusal]]
    # the plain forward, within its decorators
    _inner_forward: ClassVar[Callable[..., Any]]
    _path: ClassVar[Callable[..., Tuple[bool, ...]]]
    # the cut, or why there is none, by the path that the block takes
    _cuts: ClassVar[Dict[Tuple[bool, ...], Union[Cut, Refusal]]]

    @torch.jit.unused
    def _forward_since(self, *args: Any, **kwargs: Any) -> Any:
        """The forward that somebody has given the plain class since: its drop paths mask."""
        if self._plain_class in BRANCH_ENDS:
            raise RuntimeError(
                f'{self._plain_class.__name__} has been given another forward since stochastic depth was applied to the'
                ' model: call apply_stochastic_depth again.')
        return self._plain_class.forward(self, *args, **kwargs)

    @torch.jit.unused
    def _find_cut(self, *args: Any, **kwargs: Any) -> Union[Cut, Refusal]:
        made = type(self)  # strict export of torch 2.7 reads tables from a class alone
        path = made._path(self, *args, **kwargs)
        return made._cuts.get(path) or self._cut_anew(path)

    @torch.jit.unused
    @torch.compiler.disable
    def _cut_anew(self, path: Tuple[bool, ...]) -> Union[Cut, Refusal]:
        return type(self)._cut_of(self, path)

    @classmethod
    def _cut_of(cls, block: nn.Module, path: Tuple[bool, ...]) -> Union[Cut, Refusal]:
        """The cut for a block that has this class, or is to have it."""
        if path not in cls._cuts:
            try:
                forward = cls._source
                cls._cuts[path] = forward.cut(block, path) if isinstance(forward, PlainForward) else forward
            except NotCuttable as e:
                cls._cuts[path] = type(e), str(e)
        return cls._cuts[path]

    def __reduce_ex__(self, protocol: Any) -> Tuple[Any, ...]:
        # a class that was made here is known to no other process
        return _new_block, (self._plain_class, self._drop_path_names), self.__getstate__()


class _Unpickled(_CutBlock):
    """A block between the two halves of unpickling, whose attributes are still to come."""

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        made = _class_for(self, self._plain_class, self._drop_path_names)
        _usual_cuts(made, self)
        self.__class__ = sharded_like(self, made)


def _new_block(plain_class: Type[nn.Module], drop_path_names: Tuple[str, ...], *_: Any) -> nn.Module:
    attributes = {'_plain_class': plain_class, '_drop_path_names': drop_path_names}
    made: Any = type(plain_class.__name__, (_Unpickled, plain_class), attributes)
    return made.__new__(made)


_CLASSES: ClassTable[_CutBlock] = ClassTable()


def _class_for(block: nn.Module, plain_class: Type[nn.Module], drop_path_names: Tuple[str, ...]) -> Type[_CutBlock]:
    # torch.compile has a limit of graphs for a function, which each shape is to have for itself
    shapes = tuple((name, None if is_lazy(p) else p.shape) for name, p in block.named_parameters())
    # what the cut asks of children
    children = tuple((name, isinstance(child, tuple(SCALING_LAYERS)), getattr(child, 'inplace', False))
                     for name, child in block._modules.items() if name not in drop_path_names)

    def make() -> Type[_CutBlock]:
        forward: Union[PlainForward, Refusal]
        try:
            forward = PlainForward(plain_class, drop_path_names)
            path = forward.path
        except NotCuttable as e:
            forward, path = (type(e), str(e)), lambda *args, **kwargs: _NO_PATH
        return type(plain_class.__name__, (_CutBlock, plain_class), {
            '__module__': __name__,
            '_plain_class': plain_class,
            '_plain_forward': plain_class.forward,
            '_source': forward,
            '_inner_forward': unwrapped(plain_class.forward),
            '_drop_path_names': drop_path_names,
            '_path': path,
            '_cuts': {},
            '_is_proven': is_proven,
            '_is_trusted': is_trusted,
            'forward': scriptable_forward(plain_class),
            'stochastic_forward': _with_own_code(StochasticBlock.stochastic_forward),
            '_skip_in_graph': _with_own_code(StochasticBlock._skip_in_graph),
            '_forward_masked': masked_forward(plain_class),
            **checked_fuse(plain_class),
        })

    # others may have given timm's class a forward of theirs
    modules = plain_class.__module__, unwrapped(plain_class.forward).__module__
    is_trusted = plain_class in TRUSTED_BLOCKS
    is_proven = is_trusted or all(m.startswith(('timm.', 'torchvision.')) for m in modules)
    # who reads why a block was refused may add what was missing
    tables = tuple(BATCH_DIMENSIONS.items()), BRANCH_ENDS.get(plain_class), is_trusted, is_proven
    key: Hashable = (plain_class, plain_class.forward, drop_path_names, shapes, children, tables)
    return _CLASSES.find(key, plain_class, make)


def _with_own_code(function: Any) -> FunctionType:
    # torch.compile has a limit of graphs for a function's code, and asks about this one where blocks skip eagerly
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    own.__qualname__, own.__doc__ = function.__qualname__, function.__doc__
    vars(own).update(vars(function))
    return own


def stochastic_class(block: nn.Module, drop_path_names: Sequence[str]) -> Type[StochasticBlock]:
    """The class that gives a block stochastic depth.

    Args:
        block: A residual block, plain or not; it is left as it is.
        drop_path_names: Names of its drop paths, whatever stands there.

    Raises:
        NotCuttable: Its forward has no branch that could be left out; the message is the reason.
    """
    plain_class = plain_class_of(block)
    if 'forward' in vars(block):
        raise NotCuttable('its forward is an attribute of the block itself')
    made = _class_for(block, plain_class, tuple(drop_path_names))
    cuts = _usual_cuts(made, block)
    if not any(isinstance(cut, Cut) for cut in cuts):
        raise_refusal(cuts[0])
    return cast(Type[StochasticBlock], made)


def _usual_paths(made: Type[_CutBlock], block: nn.Module) -> Iterator[Tuple[bool, ...]]:
    """The paths of the arguments that networks call their blocks with: what has a default is given or not."""
    parameters = list(inspect.signature(made._plain_class.forward).parameters.values())[1:]
    required = [p.name for p in parameters if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    optional = [p.name for p in parameters if p.default is None and p.name in BATCH_DIMENSIONS]
    for is_training in (False, True):
        like: Any = object.__new__(type(block))
        vars(like).update(vars(block), training=is_training)
        for n in range(len(optional) + 1):
            for more in combinations(optional, n):
                yield made._path(like, **dict.fromkeys((*required, *more), True))


def _usual_cuts(made: Type[_CutBlock], block: nn.Module) -> List[Union[Cut, Refusal]]:
    """Those of the usual paths, made where a block gets its class, and not while it is compiled."""
    return [made._cut_of(block, path) for path in dict.fromkeys(_usual_paths(made, block))]


def cuts_of(block: StochasticBlock) -> List[Cut]:
    """The cuts of a block's forward, the one with the fewest arguments first."""
    if not isinstance(block, _CutBlock):
        return [raise_refusal(block._find_cut(None))]
    return [cut for cut in _usual_cuts(type(block), block) if isinstance(cut, Cut)]
