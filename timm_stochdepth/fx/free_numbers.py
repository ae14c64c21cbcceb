"""Cut forwards that read numbers of the block anew in each pass, as a gain that the training loop sets."""
from typing import Any, Collection, Dict, Sequence, Type

from torch import fx, nn

from .nodes import is_number, is_size
from .split import Cut, cut_forward
from .trace import NotCuttable, trace_forward

__all__ = ['NumberDecides', 'cut_with_free_numbers']


class NumberDecides(Exception):
    """What a block's forward does hangs on the value of a number."""


def cut_with_free_numbers(
        block: nn.Module,
        plain_class: Type[nn.Module],
        places: Sequence[str],
        given: Sequence[str],
        numbers: Collection[str],
) -> Cut:
    """Cut a block's forward, to read some of its numbers when it runs.

    The trace in which they have no value is compared with those of their values, and of others.

    Args:
        block: A residual block, left as it is.
        plain_class: The class whose forward is cut.
        places: Names of its drop paths.
        given: Names of the arguments that are given.
        numbers: Names of the attributes that are read, each a float.

    Raises:
        NotCuttable: There is no cut, whatever the numbers are.
        NumberDecides: The forward is another one for other numbers.
    """
    traced = plain_class, places, given
    if not numbers:
        return cut_forward(block, trace_forward(block, *traced), places)
    others = _with_numbers(block, {name: 1.5 * getattr(block, name) + 0.25 for name in numbers})
    try:
        graph = trace_forward(block, *traced, numbers=numbers)
        if not all(_is_trace_of(graph, b, trace_forward(b, *traced)) for b in (block, others)):
            raise NumberDecides
        return cut_forward(block, graph, places)
    except NotCuttable as e:
        if any(_refusal(b, *traced) != str(e) for b in (block, others)):
            raise NumberDecides from e
        raise


def _with_numbers(block: nn.Module, numbers: Dict[str, float]) -> Any:
    """What traces as a block does whose numbers are others."""
    stand_in: Any = object.__new__(type(block))
    vars(stand_in).update(vars(block), **numbers)
    return stand_in


def _is_trace_of(graph: fx.Graph, block: nn.Module, expected: fx.Graph) -> bool:
    """Whether a graph into which the numbers of a block are put is the expected one."""
    nodes = iter(expected.nodes)
    known: Dict[fx.Node, Any] = {}
    for node in graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        inputs = [known[n] for n in node.all_input_nodes]
        try:
            if is_number(node):
                known[node] = getattr(block, str(node.target))
            elif is_size(node) and inputs and not any(isinstance(n, fx.Node) for n in inputs):
                known[node] = node.target(*args, **kwargs)
            else:
                known[node] = next(nodes)
                e = known[node]
                if (e.op, e.target, e.args, e.kwargs) != (node.op, node.target, args, kwargs):
                    return False
        except Exception:  # whatever a comparison or a computation raises
            return False
    return True


def _refusal(block: nn.Module, plain_class: Type[nn.Module], places: Sequence[str], given: Sequence[str]) -> str:
    try:
        cut_forward(block, trace_forward(block, plain_class, places, given), places)
    except NotCuttable as e:
        return str(e)
    return ''
