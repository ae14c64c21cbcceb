"""Which local variables of a forward hold a row for each sample, and which hold sizes."""
import ast
import re
from typing import Any, Dict, List, Mapping, Optional, Set, Union

from .syntax import kills, walk_scope, writes
from .tables import BATCH_DIMENSIONS

__all__ = ['Dimensions', 'Kinds', 'is_size', 'kinds_of']

# the number of dimensions from which on the first one is the batch, None for what all samples share; the name of an
# argument of which nothing says it; a table of them for keywords that are handed on
Dimensions = Union[int, None, str, Mapping[str, Optional[int]]]

_SIZE_ATTRIBUTES = ('device', 'dtype', 'ndim', 'shape')
_SIZE_METHODS = ('dim', 'numel', 'size')
# what annotations of arguments hold that have no samples
_NUMBERS = {
    'bool', 'float', 'int', 'str', 'None', 'Optional', 'Union', 'Tuple', 'tuple', 'List', 'list', 'Sequence', 'typing'}
_OF_SIZES = (ast.Tuple, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.IfExp, ast.Subscript, ast.Slice)
_FUNCTIONS = ('int', 'float', 'len', 'max', 'min', 'round', 'abs', 'math.ceil', 'math.floor', 'math.sqrt')


class Kinds:
    """What the local variables of a forward hold.

    Args:
        of_batch: Names of those that are computed of the batch.
        arguments: What is known of the others that are arguments.
        sizes: Names of those that are computed of sizes alone.
    """

    def __init__(self, of_batch: Set[str], arguments: Dict[str, Dimensions], sizes: Set[str]) -> None:
        self.of_batch, self.arguments, self.sizes = of_batch, arguments, sizes

    def is_of_batch(self, node: ast.AST) -> bool:
        """Whether an expression has a row for each sample."""
        return bool(_values(node) & self.of_batch)

    def dimensions_of(self, name: str) -> Dimensions:
        return 1 if name in self.of_batch else self.arguments.get(name)


def _values(node: ast.AST) -> Set[str]:
    """Names whose values an expression is computed of, not only their sizes."""
    if isinstance(node, ast.Attribute) and node.attr in _SIZE_ATTRIBUTES:
        return set()
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in _SIZE_METHODS:
            return set()
        if isinstance(node.func, ast.Name) and node.func.id == 'len':
            return set()
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Load) else set()
    return set().union(*map(_values, ast.iter_child_nodes(node)))


def kinds_of(function: ast.FunctionDef) -> Kinds:
    """What the local variables of a forward hold."""
    arguments = function.args.args[1:]
    of_batch = {arguments[0].arg} if arguments else set()
    known: Dict[str, Dimensions] = {}
    for argument in (*arguments[1:], *function.args.kwonlyargs):
        annotation = '' if argument.annotation is None else ast.unparse(argument.annotation)
        is_number = bool(annotation) and set(re.findall(r'\w+', annotation)) <= _NUMBERS
        known[argument.arg] = None if is_number else BATCH_DIMENSIONS.get(argument.arg, argument.arg)
    if function.args.vararg:
        known[function.args.vararg.arg] = function.args.vararg.arg
    if function.args.kwarg:
        known[function.args.kwarg.arg] = BATCH_DIMENSIONS
    binding = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.Expr)
    statements: List[Any] = [n for s in function.body for n in walk_scope(s) if isinstance(n, binding)]
    unknown = {name for name, dimensions in known.items() if isinstance(dimensions, str)}
    changed = True
    while changed:
        changed = False
        for statement in statements:
            value = statement.iter if isinstance(statement, ast.For) else statement
            for kind in (of_batch, unknown):
                if _values(value) & kind and not _bound(statement) <= kind:
                    kind |= _bound(statement)
                    changed = True
    known.update({name: name for name in unknown - of_batch})
    kinds = Kinds(of_batch, known, set())
    changed = True
    while changed:
        changed = False
        for statement in statements:
            if is_size(statement, kinds) and not kills(statement) <= kinds.sizes:
                kinds.sizes |= kills(statement)
                changed = True
    kinds.sizes -= set().union(*(_bound(s) for s in statements if not is_size(s, kinds)))
    return kinds


def _bound(statement: ast.stmt) -> Set[str]:
    """Names that a statement writes; the statements within a loop are for themselves."""
    return writes(statement.target if isinstance(statement, ast.For) else statement)


def _is_size(node: ast.AST, kinds: Kinds) -> bool:
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name):
        return node.id in kinds.sizes
    if isinstance(node, ast.Attribute):
        return node.attr in _SIZE_ATTRIBUTES or (
            isinstance(node.value, ast.Name) and node.value.id == 'self') or _is_size(node.value, kinds)
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in _SIZE_METHODS:
            return True
        return ast.unparse(node.func) in _FUNCTIONS and all(_is_size(a, kinds) for a in node.args)
    if isinstance(node, _OF_SIZES):
        return all(_is_size(child, kinds) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))
    return False


def is_size(statement: ast.stmt, kinds: Kinds) -> bool:
    """Whether a statement computes nothing but sizes, and attributes of the block."""
    return isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None and _is_size(
        statement.value, kinds)
