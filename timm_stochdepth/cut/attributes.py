"""Which attributes of a block a part of its forward uses, itself or in the methods that it calls."""
import ast
from types import FunctionType
from typing import Any, Set, Type

from torch import nn

from .syntax import code_names

__all__ = ['attributes_used']


def attributes_used(node: ast.AST, block: nn.Module, plain_class: Type[nn.Module]) -> Set[str]:
    """Names of a block's attributes, but for numbers of its children, as `self.attn.q_stride`.

    Args:
        node: A part of its forward.
        block: The block.
        plain_class: The class whose methods it has.
    """
    names = _attributes_in(node, block)
    left = list(names)
    while left:
        method = getattr(plain_class, left.pop(), None)
        if isinstance(method, property):
            method = method.fget
        if isinstance(method, FunctionType):
            more = set(code_names(method.__code__)) - names
            names |= more
            left += more
    return names


def _attributes_in(node: ast.AST, block: nn.Module) -> Set[str]:
    if isinstance(node, ast.Attribute):
        root, _, path = ast.unparse(node).partition('.')
        if root == 'self' and path.replace('.', '').isidentifier():
            value: Any = block
            for name in path.split('.'):
                value = getattr(value, name, node)
            is_number = isinstance(value, (bool, int, float, str, tuple, type(None)))
            return set() if is_number else {path.partition('.')[0]}
    return set().union(*(_attributes_in(child, block) for child in ast.iter_child_nodes(node)))
