"""Functions made of the syntax of a forward."""
import __future__

import ast
import linecache
from itertools import count
from types import FunctionType
from typing import Any, Callable, Dict, Mapping, Sequence, Type
from weakref import finalize

import torch
from torch import nn

from .decorators import rewrapped, unwrapped
from .source import NotCuttable, parse_forward
from .tables import BRANCH_ENDS

__all__ = ['functions_of', 'masked_forward', 'scriptable_forward', 'without_types']

# torch.compile tells functions apart, and what it has seen of their sizes, by file and line
_NUMBERS = count()


class _Use:
    """Lives as long as one of the functions that it is an attribute of."""


def functions_of(
        definitions: Sequence[ast.FunctionDef],
        plain_forward: Callable[..., Any],
        names: Mapping[str, Any],
) -> Dict[str, Any]:
    """Functions made of syntax, which see what a plain forward sees: its module's globals, and its closure.

    Their source can be read by tracebacks, debuggers and TorchScript as long as there is one of them.

    Args:
        definitions: Their syntax; what is called as the forward's arguments has the defaults of these.
        plain_forward: A forward.
        names: What they refer to besides.
    """
    original: Any = plain_forward
    cells = dict(zip(original.__code__.co_freevars, original.__closure__ or ()))
    source = '\n\n'.join(ast.unparse(ast.fix_missing_locations(d)) for d in definitions) + '\n'
    filename = f'<timm_stochdepth {next(_NUMBERS)}>'
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    use = _Use()
    finalize(use, linecache.cache.pop, filename, None).atexit = False
    maker: Any = ast.parse(f'def make({", ".join({**cells, **names})}):\n    return locals()')
    maker.body[0].body[:0] = ast.parse(source).body
    flags = original.__code__.co_flags & __future__.annotations.compiler_flag
    made: Dict[str, Any] = {}
    exec(compile(maker, filename, 'exec', flags, dont_inherit=True), original.__globals__, made)
    local = made['make'](*({**cells, **names}).values())
    return {d.name: _seeing(local[d.name], cells, original, use) for d in definitions}


def _seeing(function: Any, cells: Mapping[str, Any], original: Any, use: _Use) -> Any:
    """A function whose closure is the original's, where that has the name."""
    own = zip(function.__code__.co_freevars, function.__closure__ or ())
    closure = tuple(cells.get(name, cell) for name, cell in own)
    made: Any = FunctionType(function.__code__, original.__globals__, function.__name__, None, closure)
    if function.__name__.startswith('forward'):
        made.__defaults__, made.__kwdefaults__ = original.__defaults__, original.__kwdefaults__
    made.__annotations__, made.use = function.__annotations__, use
    return made


def without_types(tree: ast.FunctionDef) -> ast.FunctionDef:
    """A definition without annotations, defaults and docstring."""
    tree.returns, tree.args.defaults = None, []
    tree.args.kw_defaults = [None] * len(tree.args.kwonlyargs)
    for argument in ast.walk(tree.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return tree


def scriptable_forward(plain_class: Type[nn.Module]) -> Callable[..., Any]:
    """A forward that is `stochastic_forward` in Python, and the plain one, drop paths called in it, in TorchScript.

    TorchScript compiles the source of a forward, and knows no `*args`: it is given that of the plain class. Where that
    is not to be had, the block can't be scripted, as the plain one can't.
    """
    try:
        tree = parse_forward(plain_class)
    except NotCuttable:
        return rewrapped(plain_class.forward, _forward)
    names = [a.arg for a in (*tree.args.posonlyargs, *tree.args.args)][1:]
    names += [f'*{tree.args.vararg.arg}'] if tree.args.vararg else []
    names += [f'{a.arg}={a.arg}' for a in tree.args.kwonlyargs]
    names += [f'**{tree.args.kwarg.arg}'] if tree.args.kwarg else []
    arguments = ', '.join(names)
    dispatch = f"""
if not torch.jit.is_scripting():
    if type(self)._plain_class.forward is not type(self)._plain_forward:
        return self._forward_since({arguments})
    if self.drops_batch():
        return self.forward_block({arguments})
    return self.stochastic_forward({arguments})
"""
    tree.body = [*ast.parse(dispatch).body, *tree.body]
    tree.args.defaults = []
    tree.args.kw_defaults = [None] * len(tree.args.kwonlyargs)
    forward: Callable[..., Any] = functions_of([tree], unwrapped(plain_class.forward), {'torch': torch})['forward']
    return rewrapped(plain_class.forward, forward)


def masked_forward(plain_class: Type[nn.Module]) -> Callable[..., Any]:
    """The plain forward, in which drop paths are called."""
    if plain_class not in BRANCH_ENDS:
        return unwrapped(plain_class.forward)
    tree = without_types(parse_forward(plain_class))
    forward: Callable[..., Any] = functions_of([tree], unwrapped(plain_class.forward), {})['forward']
    return forward


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    if type(self)._plain_class.forward is not type(self)._plain_forward:
        return self._forward_since(*args, **kwargs)
    if self.drops_batch():
        return self.forward_block(*args, **kwargs)
    return self.stochastic_forward(*args, **kwargs)
