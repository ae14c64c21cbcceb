"""Residual blocks with stochastic depth: a plain block's modules and parameters, its forward cut at its drop paths.

A plain block becomes a stochastic one, and back, by a change of class: its modules, parameters and hooks are the very
same objects. The class is made from the plain one, once for all blocks of one shape whose forward does the same.
"""
import inspect
from itertools import combinations
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    ClassVar,
    Dict,
    FrozenSet,
    Hashable,
    List,
    Sequence,
    Tuple,
    Type,
    Union,
    cast,
)

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..capture import as_whole_block, is_traced, refuse_frozen_decisions
from ..fx.block_key import names_read, structure_of
from ..fx.families import BATCH_DIMENSIONS
from ..fx.free_numbers import NumberDecides, cut_with_free_numbers
from ..fx.split import Cut, cut_by_hand
from ..fx.torchscript import scriptable_forward
from ..fx.trace import NotCuttable, required_arguments
from .class_table import ClassTable
from .drop_path import StochasticDropPath
from .guards import looks_at_batch, refuse_split_norms, refuse_waiting
from .metadata import tell_of_weights
from .sharding import sharded_like, unsharded_class

__all__ = ['StochasticBlock', 'cuts_of', 'plain_class_of', 'stochastic_class']

# why a block has no cut; the error itself would keep the network alive, and whatever the block is given: its traceback
Refusal = Tuple[Type[NotCuttable], str]


class StochasticBlock(nn.Module):
    """A residual block whose branches are dropped at random in training: the base class of all of them.

    Those with a drop path are made by `stochastic_class`. A family of your own without one derives from this class and
    the plain one, and defines `shortcut(x)`, `branch(x)` and `activation(x)`; a branch's result is overwritten. It has

        last_norm: Name of the child whose weight and bias scale the branch; the rate is folded into them.
        attention: Name of the child that follows it in the branch, if there is one that is not None in some blocks.
        shortcut_modules: Names of the shortcut's children, all others are the branch's or have no parameters.
    """
    # what a child of a plain class may be called has no underscore in front: it would be hidden
    _places: ClassVar[Tuple[str, ...]] = ('drop_path',)
    # of a family of your own, by the names of what its branch has
    _cuts_by_hand: ClassVar[Dict[Tuple[str, ...], Cut]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._cuts_by_hand = {}

    if TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any: ...  # children, and what a family defines

    def forward(self, x: Tensor) -> Tensor:
        """What the plain block computes, with branches dropped in training."""
        if torch.jit.is_scripting():
            return self.activation(self.shortcut(x) + self.drop_path(self.branch(x)))
        elif self.drops_batch():
            return self.forward_block(x)
        else:
            return self.stochastic_forward(x)

    @torch.jit.unused
    def stochastic_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The plain block's forward, with branches dropped."""
        place: StochasticDropPath = getattr(self, self._places[0])
        skips_samples = place.drops() and place.skip_dropped
        if is_traced(args, kwargs):
            return as_whole_block(self, args, kwargs) if skips_samples else self._forward_masked(*args, **kwargs)
        if self._is_idle():
            return plain_class_of(self).forward(self, *args, **kwargs)
        if skips_samples:
            refuse_frozen_decisions('skip_dropped', True)
            if looks_at_batch(self):
                return self._forward_eager(*args, **kwargs)
            return self._forward_kept_samples(*args, **kwargs)
        return self._forward_masked(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        tell_of_weights(self._drop_paths(), local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    @torch.jit.unused
    def _is_idle(self) -> bool:
        return all(drop_path.is_idle() for drop_path in self._drop_paths())

    @torch.jit.unused
    def _forward_masked(self, *args: Any, **kwargs: Any) -> Any:
        cut, given = self._find_cut(*args, **kwargs)
        if not isinstance(cut, Cut):  # as the block now stands: its drop paths mask what it computes
            return plain_class_of(self).forward(self, *args, **kwargs)
        return cut.forward(self, **given)

    @torch.jit.unused
    def _drop_paths(self) -> List[StochasticDropPath]:
        return [getattr(self, name) for name in self._places]

    @torch.jit.unused
    def drops_batch(self) -> bool:
        """Whether a forward pass drops branches for the whole batch, if it drops any."""
        place: StochasticDropPath = getattr(self, self._places[0])
        if not (place.drops_batch and place.drops()):
            return False
        refuse_frozen_decisions('stochastic_method', 'block')
        return True

    @torch.jit.unused
    @torch.compiler.disable(recursive=False)
    def forward_block(self, *args: Any, **kwargs: Any) -> Any:
        """The plain block's forward, without the branches that the batch does not keep."""
        if is_traced(args, kwargs):
            return as_whole_block(self, args, kwargs)
        run, args, kwargs = self._decide(args, kwargs)
        return run(self, *args, **kwargs)

    # the decisions stay outside of compiled code, what they decide on is compiled by itself
    @torch.jit.unused
    @torch.compiler.disable
    def _decide(self, args: Any, kwargs: Any) -> Tuple[Callable[..., Any], Tuple[Any, ...], Dict[str, Any]]:
        drop_paths = self._drop_paths()
        cut, given = self._cut(*args, **kwargs)
        if self._is_idle():
            return cut.forward_kept, (), given
        if not drop_paths[0].settings.use_same_gpu_seed:
            refuse_waiting(self, cut.branches, 'use_same_gpu_seed', False)
        for drop_path in drop_paths:
            drop_path.decisions = []  # not emptied: a replica of nn.DataParallel has the very same list
        for name, _ in cut.branches:
            drop_path = getattr(self, name)
            drop_path.decisions.append(drop_path.is_idle() or drop_path.draw_block())
        decisions = [decision for drop_path in drop_paths for decision in drop_path.decisions]
        is_plain = all(decisions) and not drop_paths[0].scale_by_keep
        if is_plain and all(branch.takes_sum_of(self) == branch.takes_sum for _, branch in cut.branches):
            return cut.forward_kept, (), given
        return cut.forward_decided if any(decisions) else cut.forward_eager, (), given

    # inductor has no backward pass of a BatchNorm for a number of samples that changes (torch 2.14)
    @torch.jit.unused
    @torch.compiler.disable
    def _forward_eager(self, *args: Any, **kwargs: Any) -> Any:
        refuse_split_norms(self)
        return self._forward_kept_samples(*args, **kwargs)

    @torch.jit.unused
    def _forward_kept_samples(self, *args: Any, **kwargs: Any) -> Any:
        cut, given = self._cut(*args, **kwargs)
        refuse_waiting(self, cut.branches, 'skip_dropped', True)
        return cut.forward(self, **given)

    @torch.jit.unused
    def _cut(self, *args: Any, **kwargs: Any) -> Tuple[Cut, Dict[str, Any]]:
        """The cut forward for the arguments that are given, and these by their names.

        Raises:
            NotCuttable: There is none.
        """
        cut, given = self._find_cut(*args, **kwargs)
        if isinstance(cut, Cut):
            return cut, given
        raise _error_of(cut)

    @torch.jit.unused
    def _find_cut(self, *args: Any, **kwargs: Any) -> Tuple[Union[Cut, Refusal], Dict[str, Any]]:
        """The cut forward for the arguments that are given, or why there is none, and these by their names."""
        owned = tuple(
            name for name in (*self._modules, *self._parameters)
            if name not in (*getattr(self, 'shortcut_modules', ()), *self._places))
        cut = type(self)._cuts_by_hand.get(owned) or self._cut_by_hand(owned)
        return cut, {'x': args[0]} if args else kwargs

    @torch.jit.unused
    @torch.compiler.disable
    def _cut_by_hand(self, owned: Tuple[str, ...]) -> Cut:
        cut = self._cuts_by_hand[owned] = cut_by_hand(plain_class_of(self), owned)
        return cut


class _CutBlock(StochasticBlock):
    """A block whose branches are found in the plain class's forward."""
    _plain_class: ClassVar[Type[nn.Module]]
    _arguments: ClassVar[Tuple[inspect.Parameter, ...]]
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
        values = {**{p.name: value for p, value in zip(made._arguments, args)}, **kwargs}
        given = {
            p.name: values[p.name] for p in made._arguments if p.name in values and values[p.name] is not p.default}
        if kwargs:  # those that the plain forward hands on
            given.update((n, v) for n, v in kwargs.items() if all(n != p.name for p in made._arguments))
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
        return _new_block, (self._plain_class, self._places, self._free), self.__dict__


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
        return type(plain_class.__name__, (_CutBlock, plain_class), {
            '__module__': __name__,
            '_plain_class': plain_class,
            '_places': places,
            '_arguments': tuple(inspect.signature(plain_class.forward).parameters.values())[1:],
            '_names': names,
            '_structure': structure,
            '_free': free,
            '_reads_training': 'training' in read,
            '_cuts': {},
            'forward': scriptable_forward(plain_class),
        })

    return _CLASSES.find((plain_class, places, structure, shapes), plain_class, make)


def plain_class_of(block: nn.Module) -> Type[nn.Module]:
    """The class that a block has without stochastic depth."""
    if isinstance(block, _CutBlock):
        return block._plain_class
    plain_class: Any = next(c for c in unsharded_class(type(block)).__mro__ if not issubclass(c, StochasticBlock))
    return plain_class


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
        raise _error_of(cuts[0])
    return cast(Type[StochasticBlock], type(probe))


def _error_of(refusal: Refusal) -> NotCuttable:
    error, reason = refusal
    return error(reason)


def _usual_arguments(made: Type[_CutBlock]) -> List[Tuple[Tuple[str, ...], bool]]:
    """The arguments that networks call their blocks with: what has a default is given or not."""
    required = required_arguments(made._plain_class)
    optional = [p.name for p in made._arguments if p.default is None and p.name in BATCH_DIMENSIONS]
    given = [(*required, *more) for n in range(len(optional) + 1) for more in combinations(optional, n)]
    return [(names, training) for names in given for training in ((False, True) if made._reads_training else (False,))]


def cuts_of(block: StochasticBlock) -> List[Cut]:
    """The cuts of a block's forward that were made, the one with the fewest arguments first."""
    if not isinstance(block, _CutBlock):
        return [block._cut(None)[0]]
    return [cut for cut in block._cuts.values() if isinstance(cut, Cut)]
