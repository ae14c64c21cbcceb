"""Cache key of a block: blocks with equal keys share one class, and with it their cut forwards."""
from functools import partial
from types import CodeType, FunctionType
from typing import Any, Collection, FrozenSet, Hashable, Iterator, List, Tuple
from weakref import ref

from torch import Tensor, nn

__all__ = ['names_read', 'structure_of']


def _code_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_names(constant)


def names_read(plain_class: type) -> FrozenSet[str]:
    """Names of all attributes that the methods of a class may read."""
    methods = [
        method for c in plain_class.__mro__ if c not in nn.Module.__mro__
        for name, method in vars(c).items() if isinstance(method, FunctionType) and name != '__init__']
    return frozenset(name for method in methods for name in _code_names(method.__code__))


class _Itself:
    """Stands in a key for an object that is like no other, and does not keep it alive."""

    def __init__(self, value: Any) -> None:
        self.id = id(value)
        try:
            self.get: Any = ref(value)
        except TypeError:  # has no weak references
            self.get = lambda: value

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Itself) and self.get() is other.get() is not None

    def __hash__(self) -> int:
        return self.id


def _value(value: Any, holders: Tuple[int, ...] = ()) -> Hashable:
    """A value as a part of a key: equal for what has equal parts, copies among them."""
    kind = type(value)
    if kind in (type(None), bool, int, str, bytes):
        return kind, value
    if kind in (float, complex):
        return kind, repr(value)  # tells 0. from -0., and not nan from nan
    if id(value) in holders:  # which holds itself
        return 'holder', holders.index(id(value))
    holders = (*holders, id(value))
    if kind in (tuple, list):
        return kind, *(_value(v, holders) for v in value)
    if kind in (set, frozenset):
        return kind, frozenset(_value(v, holders) for v in value)
    # a function, a class, a module, an object that says of no other that it is equal
    is_unique = kind.__hash__ is object.__hash__ and kind is not partial
    if is_unique or isinstance(value, (Tensor, nn.Module)):
        return _Itself(value)
    try:
        parts: Any = value.__reduce_ex__(4)  # what copy and pickle make it of, items of lists and dicts by an iterator
    except Exception:  # whatever other people's code raises
        return _Itself(value)
    if isinstance(parts, str):
        return _Itself(value)
    return kind, *(_value(list(part) if hasattr(part, '__next__') else part, holders) for part in parts)


def structure_of(block: nn.Module, names: Collection[str], free: Collection[str] = ()) -> Tuple[Hashable, ...]:
    """A key that is equal for blocks whose forward does the same.

    It holds the values of the block's attributes, which of its tensors and children are there, the classes of these and
    the values of theirs.

    Args:
        block: A residual block.
        names: Of the attributes that count, those that its class's methods may read.
        free: Those of them whose values do not count.
    """
    key: List[Hashable] = []
    for name in names:
        # pruning and nn.DataParallel make plain attributes of parameters
        if any(isinstance(owner.get(name), Tensor) for owner in (vars(block), block._parameters, block._buffers)):
            key.append((name, True))
        elif name in vars(block):
            value = vars(block)[name]
            key.append((name, type(value) if name in free else _value(value)))
        elif name in block._parameters or name in block._buffers:
            key.append((name, False))
        elif name in block._modules:
            child = block._modules[name]
            values = tuple((n, _value(vars(child)[n])) for n in names if child is not None and n in vars(child))
            tensors = tuple(n for n in names if child is not None and child._parameters.get(n) is not None)
            length = len(child) if isinstance(child, (nn.ModuleList, nn.ModuleDict)) else 0
            key.append((name, type(child), values, tensors, getattr(child, 'inplace', False), length))
    return tuple(key)
