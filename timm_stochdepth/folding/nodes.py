"""Predicates on the nodes of a module's graph, in which its children are leaves."""
import operator
from typing import Any, Iterator, Optional, Set

from torch import Tensor, fx, nn

__all__ = ['flat', 'is_inplace', 'is_size', 'leading_to']

_SIZE_ATTRIBUTES = ('device', 'dtype', 'ndim', 'shape')
_SIZE_METHODS = ('dim', 'size')


def flat(value: Any) -> Iterator[Any]:
    """What a node's arguments hold, out of tuples, lists, dicts and slices."""
    if isinstance(value, (tuple, list)):
        for v in value:
            yield from flat(v)
    elif isinstance(value, dict):
        yield from flat(tuple(value.values()))
    elif isinstance(value, slice):
        yield from flat((value.start, value.stop, value.step))
    else:
        yield value


def leading_to(node: fx.Node) -> Set[fx.Node]:
    """A node of a graph, and all that it is computed of."""
    found = {node}
    for n in reversed(node.graph.nodes):
        if n in found:
            found.update(n.all_input_nodes)
    return found


def is_size(node: Any) -> bool:
    """Whether a value is a pure computation on the shape, type or device of tensors, or on numbers."""
    if not isinstance(node, fx.Node):
        return not isinstance(node, Tensor)
    if node.op == 'call_method':
        return node.target in _SIZE_METHODS
    if node.op != 'call_function':
        return False
    if node.target is getattr:
        return node.args[1] in _SIZE_ATTRIBUTES
    module = getattr(node.target, '__module__', '')
    return module in ('_operator', 'builtins', 'math') and all(map(is_size, flat((node.args, node.kwargs))))


def is_inplace(node: fx.Node, child: Optional[nn.Module]) -> bool:
    """Whether a node, which may be the call of a child, writes to its first operand."""
    if node.op == 'call_module':
        return bool(getattr(child, 'inplace', False))
    name = str(getattr(node.target, '__name__', node.target))
    if node.op == 'call_method':
        return name.endswith('_') and not name.endswith('__')
    if node.op != 'call_function':
        return False
    is_augmented = name.startswith('i') and name[1:] in vars(operator) and node.target is vars(operator).get(name)
    return is_augmented or name == 'setitem' or bool(node.kwargs.get('inplace')) or 'out' in node.kwargs
