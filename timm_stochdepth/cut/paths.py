"""The path that a block takes through its forward: what its attributes decide, as `if self.downsample is not None`.

A cut is made for one path, and looked up by the values of these conditions in each pass: nothing is frozen.
"""
import ast
import copy
from typing import Any, List, Mapping, Sequence, Union

from .syntax import stored_attributes, walk_scope, writes

__all__ = ['conditions_of', 'follow_path']

_ALLOWED = (ast.BoolOp, ast.Compare, ast.UnaryOp, ast.Attribute, ast.Constant, ast.Name, ast.Tuple, ast.boolop,
            ast.cmpop, ast.unaryop, ast.Load)


class _Conditions:
    """What of a forward's conditions is decided before it runs.

    Args:
        function: The forward.
    """

    def __init__(self, function: ast.FunctionDef) -> None:
        body = ast.Module(function.body, [])
        self.stored = stored_attributes(body)
        self.arguments = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)} - writes(body) - {'self'}

    def are_decided(self, test: ast.expr) -> bool:
        """Whether a condition is one on attributes that the forward does not set, and on which arguments are given."""
        names = [n for n in ast.walk(test) if isinstance(n, ast.Name)]
        compared = [n for n in ast.walk(test) if isinstance(n, ast.Compare) and _is_with_none(n)]
        given = [n.left for n in compared if isinstance(n.left, ast.Name) and n.left.id in self.arguments]
        return all(n.id == 'self' or n in given for n in names) and all(
            isinstance(n, _ALLOWED) and getattr(n, 'attr', '') not in self.stored for n in ast.walk(test))

    def within(self, node: ast.AST, taken: Sequence[ast.expr] = ()) -> List[str]:
        """Those of a part of the forward, by the others that lead there."""
        found: List[str] = []
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.If, ast.IfExp)) or not self.are_decided(child.test):
                found += self.within(child, taken)
                continue
            found.append(key_of(child.test, taken))
            for arm, test in ((child.body, child.test), (child.orelse, ast.UnaryOp(ast.Not(), child.test))):
                parts: Any = arm if isinstance(arm, list) else [ast.Expr(arm)]
                found += self.within(ast.Module(parts, []), [*taken, test])
        return found


def _is_with_none(test: ast.Compare) -> bool:
    return isinstance(test.ops[0], (ast.Is, ast.IsNot)) and ast.unparse(test.comparators[0]) == 'None'


def key_of(test: ast.expr, taken: Sequence[ast.expr]) -> str:
    """The source of a condition, asked only where the others hold."""
    return ast.unparse(ast.BoolOp(ast.And(), [*taken, test]) if taken else test)


def conditions_of(function: ast.FunctionDef) -> List[str]:
    """The source of the conditions that decide the path."""
    return list(dict.fromkeys(_Conditions(function).within(function)))


class _Follow(ast.NodeTransformer):

    def __init__(self, conditions: _Conditions, values: Mapping[str, bool]) -> None:
        self.conditions, self.values = conditions, values
        self.taken: List[ast.expr] = []

    def _follow(self, node: Any) -> Any:
        is_true = self.values[key_of(node.test, self.taken)]
        self.taken.append(node.test if is_true else ast.UnaryOp(ast.Not(), node.test))
        arm = node.body if is_true else node.orelse
        followed = self._all(arm) if isinstance(arm, list) else self.visit(arm)
        self.taken.pop()
        return followed

    def visit_If(self, node: ast.If) -> Any:
        return self._follow(node) if self.conditions.are_decided(node.test) else self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        return self._follow(node) if self.conditions.are_decided(node.test) else self.generic_visit(node)

    def _all(self, statements: Sequence[ast.stmt]) -> List[ast.stmt]:
        found: List[ast.stmt] = []
        for statement in statements:
            visited: Union[ast.stmt, List[ast.stmt]] = self.visit(statement)
            found += visited if isinstance(visited, list) else [visited]
        return found


def _end_where_it_leaves(statements: List[ast.stmt]) -> List[ast.stmt]:
    for i, statement in enumerate(statements):
        if isinstance(statement, (ast.Return, ast.Raise)):
            return statements[:i + 1]
    return statements or [ast.Pass()]


def follow_path(function: ast.FunctionDef, values: Mapping[str, bool]) -> ast.FunctionDef:
    """The statements of a forward that are on a path.

    Args:
        function: A forward.
        values: Those of the conditions that decide, see `conditions_of`.
    """
    followed: ast.FunctionDef = _Follow(_Conditions(function), values).visit(copy.deepcopy(function))
    for node in walk_scope(followed):
        if isinstance(getattr(node, 'body', None), list):
            node.body = _end_where_it_leaves(node.body)  # type: ignore[attr-defined]
    followed.body = _end_where_it_leaves(followed.body)
    return followed
