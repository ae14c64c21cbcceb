"""What statements of a forward read and write: names of local variables, and attributes."""
import ast
from types import CodeType
from typing import Iterable, Iterator, List, Set

__all__ = ['bound_by', 'code_names', 'has_effect', 'is_movable', 'kills', 'loaded', 'reads', 'reads_of',
           'stored_attributes', 'walk_scope', 'writes']

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SCOPES = (*_COMPREHENSIONS, ast.Lambda, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def code_names(code: CodeType) -> Iterator[str]:
    """Names that a function reads, those of functions within it among them."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_names(constant)


def loaded(node: ast.AST) -> Set[str]:
    """Names that an expression reads, but for those that functions and comprehensions in it bind for themselves."""
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Load) else set()
    found = set().union(*map(loaded, ast.iter_child_nodes(node)))
    if isinstance(node, _COMPREHENSIONS):
        found = found.difference(*(_bound_in(g.target) for g in node.generators))
    elif isinstance(node, (ast.Lambda, ast.FunctionDef)):
        found -= {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
    return found


def walk_scope(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement without the insides of functions and comprehensions."""
    yield node
    if not isinstance(node, _SCOPES):
        for child in ast.iter_child_nodes(node):
            yield from walk_scope(child)


def _root(node: ast.AST) -> str:
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ''


def bound_by(statement: ast.AST) -> Set[str]:
    """Names that a statement binds."""
    found: Set[str] = set()
    for node in walk_scope(statement):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition('.')[0])
    return found


def writes(statement: ast.AST) -> Set[str]:
    """Local names that a statement may bind, or whose objects it may change in place."""
    found = bound_by(statement)
    for node in walk_scope(statement):
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            found.add(_root(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            changes = node.func.attr.endswith('_') and not node.func.attr.endswith('__')
            if changes and isinstance(node.func.value, ast.Name):
                found.add(node.func.value.id)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            if isinstance(node.value.func, ast.Attribute):  # output.append(x)
                found.add(_root(node.value.func.value))
    return found - {'', 'self'}


def kills(statement: ast.stmt) -> Set[str]:
    """Local names that a statement binds whatever happens."""
    if isinstance(statement, ast.Assign):
        return set().union(*map(_bound_in, statement.targets))
    if isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        return set() if statement.value is None else _bound_in(statement.target)
    if isinstance(statement, ast.If):
        return _kills_of(statement.body) & _kills_of(statement.orelse)
    if isinstance(statement, ast.With):
        return _kills_of(statement.body)
    return set()


def _bound_in(target: ast.AST) -> Set[str]:
    return {n.id for n in walk_scope(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _kills_of(statements: Iterable[ast.stmt]) -> Set[str]:
    return set().union(*map(kills, statements))


def reads_of(statements: List[ast.stmt], live: Iterable[str] = ()) -> Set[str]:
    """Names whose values statements read that they have from before, given those that are read after them."""
    found = set(live)
    for statement in reversed(statements):
        found = (found - kills(statement)) | reads(statement)
    return found


def reads(statement: ast.stmt) -> Set[str]:
    """Names that a statement reads, and does not bind itself before."""
    if isinstance(statement, ast.If):
        return loaded(statement.test) | reads_of(statement.body) | reads_of(statement.orelse)
    if isinstance(statement, ast.For):
        in_body = reads_of(statement.body) - _bound_in(statement.target)
        return loaded(statement.iter) | in_body | reads_of(statement.orelse)
    if isinstance(statement, ast.With):
        return set().union(*map(loaded, statement.items)) | reads_of(statement.body)
    found = loaded(statement)
    if isinstance(statement, ast.AugAssign):
        found |= {_root(statement.target)} - {''}
    return found


def stored_attributes(statement: ast.AST) -> Set[str]:
    """Attributes that a statement sets, and names of those whose items it sets."""
    found = set()
    for node in walk_scope(statement):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            holder: ast.AST = node
            while isinstance(holder, ast.Subscript):
                holder = holder.value
            if isinstance(holder, ast.Attribute):
                found.add(holder.attr)
    return found


def has_effect(statement: ast.stmt) -> bool:
    """Whether a statement is there for something else than the names that it binds."""
    return bool(stored_attributes(statement)) or isinstance(
        statement, (ast.Expr, ast.Assert, ast.Delete, ast.Global, ast.Nonlocal, ast.Raise, ast.Import, ast.ImportFrom))


def is_movable(statement: ast.stmt) -> bool:
    """Whether a statement does nothing but compute: leaves no function, and binds no name of another scope."""
    leaves = (ast.Return, ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal)
    in_loop = isinstance(statement, (ast.For, ast.While))
    return not any(
        isinstance(node, leaves) or (isinstance(node, (ast.Break, ast.Continue)) and not in_loop)
        for node in walk_scope(statement))
