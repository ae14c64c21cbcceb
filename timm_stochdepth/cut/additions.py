"""Find the additions of residual branches in a statement."""
import ast
from dataclasses import dataclass
from typing import Any, Iterator, List, Optional, Sequence, Tuple

from torch import nn

from .kinds import Kinds
from .operands import describe, drop_path_of, operand_of
from .source import NotCuttable
from .syntax import writes

__all__ = ['Addition', 'adds_result', 'find_addition']


@dataclass
class Addition:
    """An addition of a branch to a shortcut, within a statement.

    Attributes:
        node: `a + b`, `a += b`, `torch.add(a, b)`, `a.add(b)` or `a.add_(b)`.
        operand: The one of the two that is the result of a drop path.
        shortcut: The other one.
        branch_is_left: Whether the branch is the first of them.
        drop_path: The call of the drop path.
        chain: Statements between that call and the addition.
    """
    node: Any
    operand: ast.expr
    shortcut: ast.expr
    branch_is_left: bool
    drop_path: ast.Call
    chain: List[ast.stmt]

    @property
    def is_inplace(self) -> bool:
        """Whether the sum is written into its first operand."""
        return isinstance(self.node, ast.AugAssign) or getattr(getattr(self.node, 'func', 0), 'attr', '') == 'add_'

    def check_inplace(self, before: Sequence[ast.stmt]) -> None:
        """Refuse a sum that is written into a shortcut which something else may hold.

        Raises:
            NotCuttable: The shortcut was not made by a call in the statements before.
        """
        if self.is_inplace and not self.branch_is_left:
            name = self.shortcut.id if isinstance(self.shortcut, ast.Name) else ''
            made = next((s for s in reversed(before) if name in writes(s)), None)
            if not isinstance(made, ast.Assign) or not isinstance(made.value, ast.Call):
                raise NotCuttable(f'{describe(self.node)} writes to a tensor that is used elsewhere')


def find_addition(
        suite: List[ast.stmt],
        i: int,
        block: nn.Module,
        drop_paths: Sequence[str],
        kinds: Kinds,
) -> Optional[Addition]:
    """The innermost addition of a drop path's result in statement i of a suite, the leftmost one.

    Raises:
        NotCuttable: Both operands are results of drop paths.
    """
    for node, left, right in _additions_in(suite[i]):
        found = [operand_of(operand, suite, i, block, drop_paths, kinds) for operand in (left, right)]
        if found[0] and found[1]:
            raise NotCuttable(f'{describe(found[0][0])} and {describe(found[1][0])} are added to each other')
        if found[0]:
            return Addition(node, left, right, True, *found[0])
        if found[1]:
            return Addition(node, right, left, False, *found[1])
    return None


def adds_result(function: ast.FunctionDef, drop_paths: Sequence[str]) -> bool:
    """Whether anything is added in a forward where its first drop path is called, or later."""
    suite = function.body
    calls = (i for i, s in enumerate(suite) if any(drop_path_of(node, drop_paths) for node in ast.walk(s)))
    return any(True for s in suite[next(calls, len(suite)):] for _ in _additions_in(s))


def _additions_in(statement: ast.stmt) -> Iterator[Tuple[Any, ast.expr, ast.expr]]:
    for node in _postorder(statement):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            yield node, node.left, node.right
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add) and isinstance(node.target, ast.Name):
            yield node, ast.Name(node.target.id, ast.Load()), node.value
        elif isinstance(node, ast.Call) and not node.keywords and isinstance(node.func, ast.Attribute):
            if ast.unparse(node.func) == 'torch.add' and len(node.args) == 2:
                yield node, node.args[0], node.args[1]
            elif node.func.attr in ('add', 'add_') and len(node.args) == 1:
                yield node, node.func.value, node.args[0]


def _postorder(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield from _postorder(child)
    yield node
