"""Trace a block's forward, with its children as leaves."""
import inspect
import operator
from functools import partial
from types import FunctionType
from typing import Any, Callable, Collection, List, Sequence, Type

from timm.layers import get_notrace_functions
from torch import fx, nn

from .codegen import compile_source
from .families import BRANCH_ENDS

__all__ = ['NoDropPath', 'NotCuttable', 'required_arguments', 'trace_forward']


class NotCuttable(ValueError):
    """A block's forward has no branch that could be left out; the message is the reason."""


class NoDropPath(NotCuttable):
    """A block's forward calls no drop path: nothing is dropped."""


class _Proxy(fx.Proxy):
    """A value of the block: what writes to it, `x += shortcut`, stays that, where fx would have it make a new one."""


def _inplace(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: _Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy('call_function', function, (self, other), {})

    return method


class _ProxyOfNumbers(_Proxy):
    """A value in a trace of numbers that are not known: looking something up by it would find nothing, and not fail."""
    __hash__ = __str__ = __format__ = None  # type: ignore[assignment]


for _name in ('iadd', 'imul', 'isub', 'itruediv'):
    setattr(_Proxy, f'__{_name}__', _inplace(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, branch_end: str, is_dtype_known: bool, numbers: Collection[str]) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.branch_end = branch_end
        self.is_dtype_known = is_dtype_known
        self.numbers = numbers

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _ProxyOfNumbers(node, self) if self.numbers else _Proxy(node, self)

    def read_number(self, name: str, probe: nn.Module) -> fx.Proxy:
        proxy: fx.Proxy = self.create_proxy('get_attr', name, (), {})
        proxy.node.meta['is_number'] = True
        return proxy

    def to_bool(self, obj: fx.Proxy) -> bool:
        operands = obj.node.args
        if self.is_dtype_known and obj.node.target is operator.eq and isinstance(operands[0], fx.Node):
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


def required_arguments(plain_class: Type[nn.Module]) -> List[str]:
    """Names of the arguments of a class's forward that have no default."""
    parameters = list(inspect.signature(plain_class.forward).parameters.values())[1:]
    return [p.name for p in parameters if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]


def trace_forward(
        block: nn.Module,
        plain_class: Type[nn.Module],
        places: Sequence[str],
        given: Sequence[str],
        is_dtype_known: bool = False,
        numbers: Collection[str] = (),
) -> fx.Graph:
    """Trace what a block computes, as it stands, of the arguments that are given.

    Args:
        block: A residual block, left as it is.
        plain_class: The class whose forward is traced.
        places: Names of its drop paths, whatever stands there, if anything.
        given: Names of the arguments that are given, the others keep their defaults.
        is_dtype_known: Take tensors to have the types that the forward compares theirs with.
        numbers: Names of attributes that are numbers, which the graph reads when it runs.

    Raises:
        NotCuttable: Its control flow hangs on a value.
    """
    names = ', '.join(given)
    source = f'def forward(self, {names}):\n    return self.plain_forward({", ".join(f"{n}={n}" for n in given)})\n'
    plain_forward: Any = inspect.unwrap(plain_class.forward)
    # in the globals of the block's own module, where the tracer finds the functions that are not to be looked into
    forward = FunctionType(compile_source(source, {})['forward'].__code__, plain_forward.__globals__)
    tracer = _Tracer(BRANCH_ENDS.get(plain_class, ''), is_dtype_known, numbers)
    probe_class = type(plain_class.__name__, (plain_class,), {
        'forward': forward,
        'plain_forward': plain_class.forward,
        **{name: property(partial(tracer.read_number, name)) for name in numbers},
    })
    probe: Any = object.__new__(probe_class)
    probe.__dict__.update(vars(block))
    for name in places:
        probe.__dict__.pop(name, None)
    probe._modules = {**block._modules, **{name: nn.Identity() for name in places}}
    try:
        graph = tracer.trace(probe)
    except Exception as e:  # whatever other people's code raises on values that are none
        message = str(e).strip().partition('\n')[0]
        raise NotCuttable(f'its forward cannot be traced: {message}') from e
    parameters = inspect.signature(plain_forward).parameters
    for node in graph.nodes:
        if node.op == 'placeholder' and node.target in parameters:
            node.meta['annotation'] = parameters[node.target].annotation
    return graph
