"""Follow the operand of an addition back to the drop path whose result it is."""
import ast
from typing import Any, List, Optional, Sequence, Tuple

from torch import nn

from .kinds import Kinds
from .syntax import writes
from .tables import SCALING_LAYERS

__all__ = ['child_called', 'describe', 'drop_path_of', 'operand_of']


def drop_path_of(node: ast.AST, drop_paths: Sequence[str]) -> str:
    """The name of the drop path that a node calls, empty if it calls none."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) == 1:
        if isinstance(node.func.value, ast.Name) and node.func.value.id == 'self' and node.func.attr in drop_paths:
            return node.func.attr
    return ''


def describe(node: ast.AST) -> str:
    """A node, for messages."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        return name if name.startswith('self.') else f'`{name}`'
    return f'`{ast.unparse(node)}`'


def child_called(call: ast.Call, block: nn.Module) -> Optional[nn.Module]:
    """The child of a block that is called, None if something else is."""
    root, _, name = ast.unparse(call.func).partition('.')
    return block._modules.get(name) if root == 'self' else None


def operand_of(
        node: ast.expr,
        suite: List[ast.stmt],
        i: int,
        block: nn.Module,
        drop_paths: Sequence[str],
        kinds: Kinds,
) -> Optional[Tuple[ast.Call, List[ast.stmt]]]:
    """The drop path's call that an operand is the result of, and the statements that lie between; None if it is none's.

    What is linear may stand in between: scales, and changes of shape that leave the samples apart.

    Args:
        node: The operand of an addition.
        suite: Statements, among them that of the addition.
        i: Its number.
        block: The block.
        drop_paths: Names of its drop paths.
        kinds: What the local variables hold.
    """
    inner: Any = node
    chain: List[ast.stmt] = []
    while not drop_path_of(inner, drop_paths):
        if isinstance(inner, ast.Name):
            i = next((j for j in range(i - 1, -1, -1) if inner.id in writes(suite[j])), -1)
            if i < 0:
                return None
            statement: Any = suite[i]
            chain.append(statement)
            value = getattr(statement, 'value', None)
            if isinstance(statement, ast.Assign) and _is_target(statement.targets, inner.id):
                inner = value
            elif not _is_scaled_in_place(statement, kinds):
                return None
            continue
        inner = _scaled(inner, kinds) or _reshaped(inner, suite, i) or _by_child(inner, block)
        if inner is None:
            return None
    return inner, chain


def _is_scaled_in_place(statement: ast.stmt, kinds: Kinds) -> bool:
    """Whether a statement multiplies a variable with something that has no samples."""
    if isinstance(statement, ast.AugAssign):
        return isinstance(statement.op, ast.Mult) and not kinds.is_of_batch(statement.value)
    return isinstance(statement, ast.Expr) and _scaled(statement.value, kinds) is not None


def _is_target(targets: List[ast.expr], name: str) -> bool:
    return len(targets) == 1 and isinstance(targets[0], ast.Name) and targets[0].id == name


def _scaled(node: ast.AST, kinds: Kinds) -> Optional[ast.expr]:
    """What a product multiplies with something that has no samples."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        factors = [node.left, node.right]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ('mul', 'mul_'):
        factors = [node.func.value, *node.args]
        if ast.unparse(node.func) == 'torch.mul':
            factors = node.args
    else:
        return None
    of_batch = [f for f in factors if kinds.is_of_batch(f)]
    return of_batch[0] if len(of_batch) == 1 and len(factors) == 2 else None


def _reshaped(node: ast.AST, suite: List[ast.stmt], i: int) -> Optional[ast.expr]:
    """What is given another shape, its samples left in the first dimension."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not _keeps_batch(node, suite, i):
        return None
    return node.func.value


def _keeps_batch(node: Any, suite: List[ast.stmt], i: int) -> bool:
    name, dims = node.func.attr, [ast.unparse(a) for a in node.args]
    if name == 'contiguous':
        return True
    if name == 'permute':
        return dims[:1] == ['0']
    if name in ('flatten', 'transpose'):
        return bool(dims) and all(d.lstrip('-').isdigit() and d != '0' for d in dims[:2])
    return name in ('reshape', 'view') and bool(dims) and _is_batch_size(node.args[0], suite[:i])


def _is_batch_size(node: ast.expr, suite: List[ast.stmt]) -> bool:
    text = ast.unparse(node)
    if text.endswith(('.shape[0]', '.size(0)')):
        return True
    for statement in reversed(suite):
        if text in writes(statement):
            if not isinstance(statement, ast.Assign):
                return False
            value = ast.unparse(statement.value)
            target = statement.targets[0]
            if isinstance(target, ast.Tuple):
                return ast.unparse(target.elts[0]) == text and value.endswith(('.shape', '.size()'))
            return value.endswith(('.shape[0]', '.size(0)'))
    return False


def _by_child(node: ast.AST, block: nn.Module) -> Optional[ast.expr]:
    """What a scaling layer is called on."""
    if not isinstance(node, ast.Call) or len(node.args) != 1:
        return None
    return node.args[0] if isinstance(child_called(node, block), tuple(SCALING_LAYERS)) else None
