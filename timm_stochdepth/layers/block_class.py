"""Make the class that gives a plain residual block stochastic depth.

A plain block becomes a stochastic one, and back, by a change of class: its modules, parameters and hooks are the very
same objects. The class is made once for all blocks of one shape whose forward does the same.
"""
import inspect
from itertools import combinations
from typing import Any, ClassVar, Dict, FrozenSet, Hashable, List, Sequence, Tuple, Type, Union, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..fx.block_key import names_read, structure_of
from ..fx.families import BATCH_DIMENSIONS, BRANCH_ENDS, SCALING_LAYERS
from ..fx.free_numbers import NumberDecides, cut_with_free_numbers
from ..fx.split import Cut
from ..fx.torchscript import masked_forward, scriptable_forward
from ..fx.trace import NotCuttable, required_arguments
from .block import Refusal, StochasticBlock, plain_class_of, raise_refusal
from .class_table import ClassTable
from .sharding import sharded_like

__all__ = ['cuts_of', 'stochastic_class']


class _CutBlock(StochasticBlock):
    """A block whose branches are found in the plain class's forward."""
    _plain_class: ClassVar[Type[nn.Module]]
    _argument_names: ClassVar[Tuple[str, ...]]
    # with their defaults
    _arguments: ClassVar[Tuple[Tuple[str, Any], ...]]
    # names that its methods read, and what they find there
    _names: ClassVar[Tuple[str, ...]]
    _structure: ClassVar[Tuple[Hashable, ...]]
    # numbers among them that may change, and those of which is known that they may not
    _free: ClassVar[FrozenSet[str]] = frozenset()
    _fixed: ClassVar[FrozenSet[str]] = frozenset()
    _reads_training: ClassVar[bool]
    # the cut, or why there is none, by the names of the arguments that are given, and whether the block is training
    _cuts: ClassVar[Dict[Tuple[Tuple[str, ...], bool], Union[Cut, Refusal]]]

    @torch.jit.unused
    def _find_cut(self, *args: Any, **kwargs: Any) -> Tuple[Union[Cut, Refusal], Dict[str, Any]]:
        made = type(self)  # strict export of torch 2.7 reads tables from a class alone
        values = dict(zip(made._argument_names, args), **kwargs)
        given = {}
        for name, default in made._arguments:
            if name in values and (value := values.pop(name)) is not default:
                given[name] = value
        given.update(values)  # those that the plain forward hands on
        key = tuple(given), self.training and made._reads_training
        return made._cuts.get(key) or self._cut_anew(key), given

    @torch.jit.unused
    @torch.compiler.disable
    def _cut_anew(self, key: Tuple[Tuple[str, ...], bool]) -> Union[Cut, Refusal]:
        if not self.__dict__.get('_is_replica') and self._is_changed():
            self._renew_class()  # something in a list or a dict
        try:
            return self._cut_of(self, key)
        except NumberDecides:
            self._take_class(free=frozenset(), fixed=self._free)
            return self._cut_of(self, key)

    @classmethod
    def _cut_of(cls, block: nn.Module, key: Tuple[Tuple[str, ...], bool]) -> Union[Cut, Refusal]:
        """The cut for a block that has this class, or is to have it."""
        if key not in cls._cuts:
            try:
                cls._cuts[key] = cut_with_free_numbers(block, cls._plain_class, cls._places, key[0], cls._free)
            except NotCuttable as e:
                cls._cuts[key] = type(e), str(e)
        return cls._cuts[key]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name != '__class__':
            self._follow_change(name)

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._follow_change(name)

    def register_buffer(self, name: str, *args: Any, **kwargs: Any) -> None:
        super().register_buffer(name, *args, **kwargs)
        self._follow_change(name)

    def _follow_change(self, name: str) -> None:
        if self.__dict__.get('_is_replica'):  # of nn.DataParallel, put together from what the block is
            return
        # another window, a reparameterized convolution: what was traced is not what the forward does now
        if name in self._names and self._is_changed():
            self._renew_class(name)

    def _is_changed(self) -> bool:
        return structure_of(self, self._names, self._free) != self._structure

    def _renew_class(self, changed: str = '') -> None:
        """Take the class for what the block is now, in which a number that is changed can change again."""
        numbers = frozenset(n for n in (*self._free, changed) if type(vars(self).get(n)) is float) - self._fixed
        for free in (numbers, numbers - {changed}, frozenset()):
            try:
                return self._take_class(free, fixed=numbers - free)
            except NumberDecides:
                continue

    def _take_class(self, free: FrozenSet[str], fixed: FrozenSet[str]) -> None:
        made = _class_for(self, self._plain_class, self._places, free)
        made._fixed |= self._fixed | fixed
        for key in _usual_arguments(made):  # now, and not while the block is compiled
            made._cut_of(self, key)
        self.__class__ = sharded_like(self, made)

    def __reduce_ex__(self, protocol: Any) -> Tuple[Any, ...]:
        # a class that was made here is known to no other process
        return _new_block, (self._plain_class, self._places, self._free), self.__getstate__()


class _Unpickled(_CutBlock):
    """A block between the two halves of unpickling, whose attributes are still to come."""

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        self._renew_class()


def _new_block(
        plain_class: Type[nn.Module],
        places: Tuple[str, ...],
        free: FrozenSet[str] = frozenset(),
) -> nn.Module:
    attributes = {'_plain_class': plain_class, '_places': places, '_free': free}
    made: Any = type(plain_class.__name__, (_Unpickled, plain_class), attributes)
    return made.__new__(made)


_CLASSES: ClassTable[_CutBlock] = ClassTable()


def _class_for(
        block: nn.Module,
        plain_class: Type[nn.Module],
        places: Tuple[str, ...],
        free: FrozenSet[str],
) -> Type[_CutBlock]:
    read = names_read(plain_class)
    names = tuple(sorted(read - {'training', *places}))
    structure = structure_of(block, names, free)
    # torch.compile has a limit of graphs for a function, which each shape is to have for itself
    shapes = tuple((name, None if is_lazy(p) else p.shape) for name, p in block.named_parameters())

    def make() -> Type[_CutBlock]:
        arguments = tuple(inspect.signature(plain_class.forward).parameters.values())[1:]
        return type(plain_class.__name__, (_CutBlock, plain_class), {
            '__module__': __name__,
            '_plain_class': plain_class,
            '_places': places,
            '_argument_names': tuple(p.name for p in arguments),
            '_arguments': tuple((p.name, p.default) for p in arguments),
            '_names': names,
            '_structure': structure,
            '_free': free,
            '_reads_training': 'training' in read,
            '_cuts': {},
            'forward': scriptable_forward(plain_class),
            '_forward_masked': masked_forward(plain_class),
        })

    # who reads why a block was refused may add what was missing
    tables = tuple(BATCH_DIMENSIONS.items()), tuple(SCALING_LAYERS), BRANCH_ENDS.get(plain_class)
    return _CLASSES.find((plain_class, places, structure, shapes, tables), plain_class, make)


def stochastic_class(block: nn.Module, places: Sequence[str]) -> Type[StochasticBlock]:
    """The class that gives a block stochastic depth.

    Args:
        block: A residual block, plain or not; it is left as it is.
        places: Names of its drop paths, whatever stands there.

    Raises:
        NotCuttable: Its forward has no branch that could be left out; the message is the reason.
    """
    plain_class = plain_class_of(block)
    probe: Any = _new_block(plain_class, tuple(places))
    object.__setattr__(probe, '__dict__', vars(block))
    probe._renew_class()
    cuts = list(probe._cuts.values())
    if not any(isinstance(cut, Cut) for cut in cuts):
        raise_refusal(cuts[0])
    return cast(Type[StochasticBlock], type(probe))


def _usual_arguments(made: Type[_CutBlock]) -> List[Tuple[Tuple[str, ...], bool]]:
    """The arguments that networks call their blocks with: what has a default is given or not."""
    required = required_arguments(made._plain_class)
    optional = [name for name, default in made._arguments if default is None and name in BATCH_DIMENSIONS]
    given = [(*required, *more) for n in range(len(optional) + 1) for more in combinations(optional, n)]
    return [(names, training) for names in given for training in ((False, True) if made._reads_training else (False,))]


def cuts_of(block: StochasticBlock) -> List[Cut]:
    """The cuts of a block's forward that were made, the one with the fewest arguments first."""
    if not isinstance(block, _CutBlock):
        return [raise_refusal(block._find_cut(None)[0])]
    return [cut for cut in block._cuts.values() if isinstance(cut, Cut)]
