"""Forwards made from the source of the plain one: for TorchScript, and with drop paths called in it."""
import ast
import inspect
import re
import textwrap
from types import FunctionType
from typing import Any, Callable, Iterator, Type

import torch
from torch import nn

from .codegen import compile_source
from .families import BRANCH_ENDS

__all__ = ['masked_forward', 'scriptable_forward']


class _AddDropPath(ast.NodeTransformer):
    """Calls the drop path on what a child returns."""

    def __init__(self, branch_end: str) -> None:
        self.branch_end = branch_end

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if ast.unparse(node.func) == f'self.{self.branch_end}':
            return ast.Call(func=ast.parse('self.drop_path', mode='eval').body, args=[node], keywords=[])
        return node


def scriptable_forward(plain_class: Type[nn.Module]) -> Callable[..., Any]:
    """A forward that is `stochastic_forward` in Python, and the plain one, drop paths called in it, in TorchScript.

    TorchScript compiles the source of a forward, and knows no `*args`: it is given that of the plain class. Where that
    is not to be had, the block can't be scripted, as the plain one can't.
    """
    tree = _tree_of(plain_class)
    if tree is None:
        return _forward
    function = tree.body[0]
    self_name, *names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    names += [f'*{function.args.vararg.arg}'] if function.args.vararg else []
    names += [f'{a.arg}={a.arg}' for a in function.args.kwonlyargs]
    names += [f'**{function.args.kwarg.arg}'] if function.args.kwarg else []
    arguments = ', '.join(names)
    dispatch = f'''
if not torch.jit.is_scripting():
    if {self_name}.drops_batch():
        return {self_name}.forward_block({arguments})
    return {self_name}.stochastic_forward({arguments})
'''
    function.body = [*ast.parse(dispatch).body, *function.body]
    return _function_of(tree, plain_class)


def masked_forward(plain_class: Type[nn.Module]) -> Callable[..., Any]:
    """The plain forward, in which drop paths are called."""
    tree = _tree_of(plain_class) if plain_class in BRANCH_ENDS else None
    return plain_class.forward if tree is None else _function_of(tree, plain_class)


def _tree_of(plain_class: Type[nn.Module]) -> Any:
    """The syntax of a plain forward with its drop paths; None if its source is not to be had."""
    plain_forward: Any = inspect.unwrap(plain_class.forward)
    try:
        tree: Any = ast.parse(textwrap.dedent(inspect.getsource(plain_forward)))
    except (OSError, SyntaxError):
        return None
    function = tree.body[0]
    if not isinstance(plain_forward, FunctionType) or not isinstance(function, ast.FunctionDef):
        return None
    function.decorator_list = []
    if plain_class in BRANCH_ENDS:
        _AddDropPath(BRANCH_ENDS[plain_class]).visit(function)
    return tree


def _function_of(tree: Any, plain_class: Type[nn.Module]) -> Callable[..., Any]:
    source = ast.unparse(ast.fix_missing_locations(tree))
    # not all globals: a network is often among them, and would be kept alive
    referred = {'__name__', *_names_in(tree)}
    found = inspect.unwrap(plain_class.forward).__globals__
    known = {name: value for name, value in found.items() if name in referred}
    return compile_source(source, {**known, 'torch': torch}).pop('forward')


def _names_in(tree: ast.AST) -> Iterator[str]:
    """Names that source refers to, those in annotations that are strings among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        for annotation in (getattr(node, 'annotation', None), getattr(node, 'returns', None)):
            if annotation is not None:
                yield from re.findall(r'\w+', ast.unparse(annotation))


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    if self.drops_batch():
        return self.forward_block(*args, **kwargs)
    return self.stochastic_forward(*args, **kwargs)
