"""Trace a module's forward, with its children as leaves: to find what a result was multiplied with last."""
import inspect
import operator
from functools import partial
from types import FunctionType
from typing import Any, Callable, Dict, List, Sequence, Tuple, Type

from timm.layers import get_notrace_functions
from torch import Tensor, fx, nn

from ..cut.tables import BRANCH_ENDS
from ..layers.check import copied
from .nodes import is_inplace, is_size

__all__ = ['branch_ends', 'trace_forward']

_ADDITIONS = ('add', 'add_', 'iadd')


class _Proxy(fx.Proxy):
    """A value of the block: what writes to it, `x += shortcut`, stays that, where fx would have it make a new one."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy('call_function', operator.setitem, (self, key, value), {})


def _inplace(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: _Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy('call_function', function, (self, other), {})

    return method


for _name in ('iadd', 'imul', 'isub', 'itruediv'):
    setattr(_Proxy, f'__{_name}__', _inplace(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, branch_end: str) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.branch_end = branch_end

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def read_tensor(self, name: str, probe: nn.Module) -> fx.Proxy:
        return self.create_proxy('get_attr', name, (), {})

    def to_bool(self, obj: fx.Proxy) -> bool:
        operands = obj.node.args
        # tensors have the types that the forward compares theirs with
        if obj.node.target is operator.eq and isinstance(operands[0], fx.Node):
            if operands[0].target is getattr and operands[0].args[1] == 'dtype':
                return True
        return super().to_bool(obj)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if self.branch_end and self.path_of_module(m) == self.branch_end:
            return self.create_proxy('call_module', 'drop_path', (output,), {})
        return output


def trace_forward(module: nn.Module, plain_class: Type[nn.Module], drop_paths: Sequence[str] = ()) -> fx.Graph:
    """Trace what a module computes of the arguments that have no default.

    Args:
        module: A module, left as it is.
        plain_class: The class whose forward is traced.
        drop_paths: Names of its drop paths, whatever stands there, if anything.

    Raises:
        ValueError: Its control flow hangs on a value.
    """
    parameters = list(inspect.signature(plain_class.forward).parameters.values())[1:]
    given = [p.name for p in parameters if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    made: Dict[str, Any] = {}
    exec(f'def forward(self, {", ".join(given)}):\n    return self.plain_forward({", ".join(given)})', made)
    # in the globals of the module's own module, where the tracer finds the functions that are not to be looked into
    plain_forward: Any = inspect.unwrap(plain_class.forward)
    forward = FunctionType(made['forward'].__code__, plain_forward.__globals__)
    tracer = _Tracer(BRANCH_ENDS.get(plain_class, ''))
    # pruning and others make plain attributes of parameters
    computed = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
    probe_class = type(plain_class.__name__, (plain_class,), {
        'forward': forward,
        'plain_forward': plain_forward,
        **{name: property(partial(tracer.read_tensor, name)) for name in computed},
    })
    probe: Any = object.__new__(probe_class)
    # what the forward notes in a list or a dictionary is not to be a proxy
    probe.__dict__.update({n: copied(value) for n, value in vars(module).items() if n not in (*drop_paths, *computed)})
    probe._modules = {**module._modules, **{name: nn.Identity() for name in drop_paths}}
    try:
        return tracer.trace(probe)
    except Exception as e:  # whatever other people's code raises on values that are none
        message = str(e).strip().partition('\n')[0]
        raise ValueError(f'its forward cannot be traced: {message}') from e


def branch_ends(block: nn.Module, plain_class: Type[nn.Module], drop_paths: Sequence[str]) -> List[Tuple[str, fx.Node]]:
    """What is added of each drop path's result, with its name, in the order of their calls.

    Raises:
        ValueError: The forward cannot be traced.
    """
    graph = trace_forward(block, plain_class, drop_paths)
    for node in reversed(graph.nodes):
        if not node.users and (is_size(node) or node.op == 'get_attr' or node.target is operator.getitem):
            graph.erase_node(node)
    _use_results(list(graph.nodes))
    ends = []
    for call in graph.nodes:
        if call.op == 'call_module' and call.target in drop_paths:
            node = call
            while len(node.users) == 1:
                user, = node.users
                if getattr(user.target, '__name__', user.target) in _ADDITIONS:
                    ends.append((str(call.target), node))
                    break
                node = user
    return ends


def _use_results(nodes: List[fx.Node]) -> None:
    """Let what reads a tensor after a method has written to it, `x.mul_(gain)`, use the method's result."""
    for i, node in enumerate(nodes):
        if node.op == 'call_method' and not node.users and is_inplace(node, None):
            written: Any = node.args[0]
            for user in set(written.users) & set(nodes[i + 1:]):
                user.replace_input_with(written, node)
