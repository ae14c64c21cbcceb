"""What a block's forward can tell from one block of its class to another: these are cut alike."""
from types import CodeType, FunctionType
from typing import Any, Collection, FrozenSet, Hashable, Iterator, List, Tuple

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


def _value(value: Any) -> Hashable:
    if isinstance(value, (list, tuple)):
        return tuple(_value(v) for v in value)
    try:
        hash(value)
    except TypeError:
        return object()  # equal to nothing
    return type(value), value


def structure_of(block: nn.Module, names: Collection[str]) -> Tuple[Hashable, ...]:
    """A key that is equal for blocks whose forward does the same.

    It holds the values of the block's attributes, which of its tensors and children are there, the classes of these and
    the values of theirs.

    Args:
        block: A residual block.
        names: Of the attributes that count, those that its class's methods may read.
    """
    key: List[Hashable] = []
    for name in names:
        # pruning and nn.DataParallel make plain attributes of parameters
        if any(isinstance(owner.get(name), Tensor) for owner in (vars(block), block._parameters, block._buffers)):
            key.append((name, True))
        elif name in vars(block):
            key.append((name, _value(vars(block)[name])))
        elif name in block._parameters or name in block._buffers:
            key.append((name, False))
        elif name in block._modules:
            child = block._modules[name]
            values = tuple((n, _value(vars(child)[n])) for n in names if child is not None and n in vars(child))
            tensors = tuple(n for n in names if child is not None and child._parameters.get(n) is not None)
            length = len(child) if isinstance(child, (nn.ModuleList, nn.ModuleDict)) else 0
            key.append((name, type(child), values, tensors, getattr(child, 'inplace', False), length))
    return tuple(key)
