"""The degree of what a module computes in its own tensors: those that a factor on it goes into are found, and proven.

`scale * x + bias` is linear in scale and bias together: a factor on both is one on the result. A batch norm of frozen
buffers, written as products and sums, is linear in its weight and bias likewise, and not in its statistics.
"""
from itertools import combinations
from typing import Any, Dict, FrozenSet, List, Optional, Set, cast

from torch import fx, nn

from .nodes import flat, is_inplace, is_size, leading_to

__all__ = ['linear_in', 'overwritten']

_PRODUCTS = ('imul', 'matmul', 'mul', 'mul_', 'multiply')
_QUOTIENTS = ('div', 'div_', 'itruediv', 'truediv')
_SUMS = ('add', 'add_', 'iadd', 'isub', 'sub', 'sub_')
# names of the arguments of layers
_ARGUMENTS = {
    **dict.fromkeys(('conv1d', 'conv2d', 'linear'), ('input', 'weight', 'bias')),
    **dict.fromkeys(('group_norm', 'layer_norm', 'rms_norm'), ('input', '', 'weight', 'bias')),
    'batch_norm': ('input', '', '', 'weight', 'bias'),
}
_VIEWS = (
    'contiguous', 'detach', 'expand', 'flatten', 'getattr', 'getitem', 'permute', 'reshape', 'squeeze', 't',
    'transpose', 'unsqueeze', 'view')
# what moves, repeats, casts or negates values
_KEPT = (*_VIEWS, 'bfloat16', 'double', 'float', 'half', 'neg', 'to', 'type', 'type_as')
# subsets are tried: one more tensor doubles them
_MAX_TENSORS = 5

# how often a factor on certain tensors appears in each value of a graph; None: it is no factor of the value
Degrees = Dict[fx.Node, Optional[int]]


def linear_in(module: nn.Module, node: Any) -> FrozenSet[str]:
    """Names of tensors of a module that a value of its traced forward is linear in, all at once; empty without such.

    Of several sets it is the one with the fewest buffers, and then with the fewest tensors.

    Args:
        module: What was traced.
        node: The value.
    """
    if not isinstance(node, fx.Node):
        return frozenset()
    needed = leading_to(node)
    if needed & overwritten(module, node.graph):
        return frozenset()
    nodes = [n for n in node.graph.nodes if n in needed]
    own = {n for n, p in module._parameters.items() if p is not None}
    buffers = {n for n, b in module._buffers.items() if b is not None} - module._non_persistent_buffers_set
    found = {str(n.target) for n in nodes if n.op == 'get_attr'} & {*own, *buffers}
    if len(found) > _MAX_TENSORS:
        return frozenset()
    subsets = [frozenset(names) for k in range(1, len(found) + 1) for names in combinations(sorted(found), k)]
    for names in sorted(subsets, key=lambda names: len(names & buffers)):  # small ones stay first
        degrees: Degrees = {}
        for n in nodes:
            degrees[n] = int(n.target in names) if n.op == 'get_attr' else _degree(n, degrees)
        if degrees[node] == 1:
            return names
    return frozenset()


def _degree(node: fx.Node, degrees: Degrees) -> Optional[int]:
    """The degree of a value, from those of its operands."""
    if is_size(node):
        return 0
    of_operands = [degrees[v] if isinstance(v, fx.Node) else 0 for v in flat((node.args, node.kwargs))]
    if not any(degree != 0 for degree in of_operands):
        return 0
    if node.op == 'call_module' or None in of_operands:
        return None
    name, n = str(getattr(node.target, '__name__', node.target)), len(of_operands)
    first, *others = cast(List[int], of_operands)
    if name in _PRODUCTS and n == 2:
        return first + others[0]
    if name in _QUOTIENTS and n == 2:
        return first - others[0]
    if name in _SUMS and n == 2:
        return first if others[0] == first else None
    if name in _KEPT:
        return None if any(others) else first
    if name == 'addcmul' and n == 3:
        return first if sum(others) == first else None
    if name in _ARGUMENTS:
        given: Dict[str, Any] = {**dict(zip(_ARGUMENTS[name], node.args)), **node.kwargs}
        x, weight, bias = (degrees.get(given.get(key)) or 0 for key in ('input', 'weight', 'bias'))  # type: ignore
        has_others = sum(map(bool, of_operands)) > sum(map(bool, (x, weight, bias)))
        is_norm = '' in _ARGUMENTS[name]  # in which no factor on the input is one on the result
        if has_others or x and is_norm:
            return None
        return x + weight if given.get('bias') is None or bias == x + weight else None
    return None


def overwritten(module: nn.Module, graph: fx.Graph) -> Set[fx.Node]:
    """Values that a traced forward writes to, and uses under their former name: its graph does not show these."""
    index = {n: i for i, n in enumerate(graph.nodes)}
    found = set()
    for node in graph.nodes:
        child = module.get_submodule(str(node.target)) if node.op == 'call_module' else None
        written = node.args[0] if node.args and is_inplace(node, child) else None
        while isinstance(written, fx.Node):  # what a view is of is written to, too
            if any(index[user] > index[node] for user in written.users):
                found.add(written)
            is_view = str(getattr(written.target, '__name__', written.target)) in _VIEWS
            written = written.args[0] if is_view else None
    return found
