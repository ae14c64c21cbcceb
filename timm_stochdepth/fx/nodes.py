"""Predicates on the nodes of a block's graph, in which its children are leaves."""
import operator
import re
from typing import Any, Dict, Iterator, Optional, Tuple

from torch import Tensor, fx, nn

__all__ = ['describe', 'flat', 'is_dead', 'is_inplace', 'is_number', 'is_size', 'keeps_batch_first', 'source_of']

_SIZE_ATTRIBUTES = ('device', 'dtype', 'ndim', 'shape')
_SIZE_METHODS = ('dim', 'size')
# operations whose result has the batch in its first dimension if their operands have, whatever the other arguments are
_BATCH_FIRST = ('add', 'add_', 'chunk', 'clone', 'contiguous', 'float', 'iadd', 'imul', 'mul', 'mul_', 'neg', 'split',
                'sub', 'to', 'truediv', 'type_as')


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


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, '__name__', node.target))


def is_number(node: fx.Node) -> bool:
    """Whether a node reads a number of the block's, see `trace_forward`."""
    return bool(node.meta.get('is_number'))


def is_size(node: Any) -> bool:
    """Whether a value is a pure computation on the shape, type or device of tensors, or on numbers."""
    if not isinstance(node, fx.Node):
        return not isinstance(node, Tensor)
    if is_number(node):
        return True
    if node.op == 'call_method':
        return node.target in _SIZE_METHODS
    if node.op != 'call_function':
        return False
    if node.target is getattr:
        return node.args[1] in _SIZE_ATTRIBUTES
    module = getattr(node.target, '__module__', '')
    return module in ('_operator', 'builtins', 'math') and all(map(is_size, flat((node.args, node.kwargs))))


def is_dead(node: fx.Node) -> bool:
    """Whether nothing uses a node, and leaving it out changes nothing."""
    return not node.users and (is_size(node) or node.op == 'get_attr' or node.target is operator.getitem)


def is_inplace(node: fx.Node, child: Optional[nn.Module]) -> bool:
    """Whether a node, which may be the call of a child, writes to its first operand."""
    if node.op == 'call_module':
        return bool(getattr(child, 'inplace', False))
    name = _name(node)
    if node.op == 'call_method':
        return name.endswith('_') and not name.endswith('__')
    if node.op != 'call_function':
        return False
    is_augmented = name.startswith('i') and name[1:] in vars(operator) and node.target is vars(operator).get(name)
    return is_augmented or name == 'setitem' or bool(node.kwargs.get('inplace')) or 'out' in node.kwargs


def keeps_batch_first(node: fx.Node) -> bool:
    """Whether a tensor of the batch has the samples in its first dimension, if those that it was made of have."""
    if node.op in ('placeholder', 'call_module'):
        return True
    name, args = _name(node), node.args[1:]
    if name in ('view', 'reshape'):
        return _is_batch_size(next(flat(args), None))
    if name in ('cat', 'concat', 'stack'):
        return bool((args[0] if args else node.kwargs.get('dim', 0)) != 0)
    if name in ('permute', 'transpose'):
        dims = tuple(flat(args))
        return dims[:1] == (0,) if name == 'permute' else 0 not in dims
    if name == 'flatten':
        return bool(args and args[0] != 0)
    if name == 'getitem':  # of a tensor, all samples; of a tuple, one of its tensors
        return not isinstance(args[0], tuple) or args[0][:1] == (slice(None),)
    return name in _BATCH_FIRST


def _is_batch_size(node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.target is operator.getitem:
        return bool(node.args[1] == 0 and is_size(node))
    return node.target == 'size' and node.args[1:] == (0,)


def describe(node: fx.Node) -> str:
    """A node, for messages."""
    if node.op in ('call_module', 'get_attr'):
        return f'self.{node.target}'
    return 'the result of the block' if node.op == 'output' else f'`{_name(node)}`'


def source_of(graph: fx.Graph, name: str) -> Tuple[str, Dict[str, Any]]:
    """A graph as the source of a function, and the names that it refers to."""
    code = graph.python_code('self')
    # without the deletions of what is not used any more
    source = re.sub(r';  (\w+ = )+None.*$', '', code.src, flags=re.MULTILINE)
    source = source[source.index('def forward('):].replace('def forward(', f'def {name}(', 1)
    return source.strip() + '\n', dict(code.globals)
