"""The source of a block's forward."""
import ast
import copy
import dis
import inspect
from types import CodeType, FunctionType
from typing import Any, List, Mapping, Optional, Tuple, Type

from torch import nn

from .decorators import unwrapped
from .tables import BRANCH_ENDS

__all__ = ['NotCuttable', 'inline_methods', 'parse_forward']


class NotCuttable(ValueError):
    """A block's forward has no branch that could be left out; the message is the reason."""


class _AddDropPath(ast.NodeTransformer):
    """Calls the drop path on what a child returns."""

    def __init__(self, branch_end: str) -> None:
        self.branch_end = branch_end

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if ast.unparse(node.func) == f'self.{self.branch_end}':
            return ast.Call(func=ast.parse('self.drop_path', mode='eval').body, args=[node], keywords=[])
        return node


class _Rename(ast.NodeTransformer):
    """Other names for local variables, attributes of a class's own in full, and `super()` with its arguments."""

    def __init__(self, names: Mapping[str, str], class_name: str = '') -> None:
        self.names, self.class_name = names, class_name.lstrip('_')

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.copy_location(ast.Name(self.names.get(node.id, node.id), node.ctx), node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.copy_location(ast.arg(self.names.get(node.arg, node.arg), node.annotation), node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if self.class_name and node.attr.startswith('__') and not node.attr.endswith('__'):
            node.attr = f'_{self.class_name}{node.attr}'
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == 'super' and not node.args:
            node.args = [ast.Name('__class__', ast.Load()), ast.Name('self', ast.Load())]
        return node


def _tree_of(function: Any, plain_class: Type[nn.Module]) -> Optional[ast.FunctionDef]:
    """The syntax of a method, None if its source is not to be had."""
    try:
        source = inspect.getsource(function)
        tree: Any = ast.parse(f'if 1:\n{source}').body[0] if source[0].isspace() else ast.parse(source)
    except (OSError, SyntaxError, TypeError):
        return None
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        return None
    definition.decorator_list = []
    arguments = [*definition.args.posonlyargs, *definition.args.args]
    owner = next((c for c in plain_class.__mro__ if function in vars(c).values()), plain_class)
    if not _is_source_of(definition, function, owner.__name__):
        return None
    renamed = _Rename({a.arg: 'self' for a in arguments[:1]}, owner.__name__).visit(definition)
    return _without_docstring(ast.fix_missing_locations(renamed))


def _is_source_of(definition: ast.FunctionDef, function: Any, class_name: str) -> bool:
    """Whether syntax is that of a function which runs: a file may have been edited since it was imported."""
    variables = [name for name in function.__code__.co_freevars if name != '__class__']
    around: Any = ast.parse(f'def around({", ".join(variables)}):\n class {class_name}:\n  pass')
    around.body[0].body[0].body = [definition]
    code: Any = compile(ast.fix_missing_locations(around), '', 'exec', dont_inherit=True)
    while code.co_name != definition.name:
        code = next(c for c in code.co_consts if isinstance(c, CodeType))
    own = function.__code__
    # pytest rewrites assertions
    return any(name.startswith('@py') for name in own.co_varnames) or _instructions(code) == _instructions(own)


def _instructions(code: CodeType) -> List[Tuple[str, str]]:
    """What code does: but for how it calls a method, which hangs on the module around, and for where it jumps to."""
    found = []
    for i in dis.get_instructions(code):
        if i.opname not in ('CACHE', 'COPY_FREE_VARS', 'EXTENDED_ARG', 'NOP', 'PRECALL', 'PUSH_NULL', 'RESUME'):
            has_value = i.opname.startswith(('LOAD', 'STORE', 'BINARY', 'COMPARE'))
            value = str(i.argval) if has_value and not isinstance(i.argval, CodeType) else ''
            is_where = '<locals>' in value  # the name of a function within, and of what it is in
            found.append((i.opname.replace('METHOD', 'ATTR'), '' if is_where else value))
    return found


def _without_docstring(tree: ast.FunctionDef) -> ast.FunctionDef:
    if ast.get_docstring(tree, clean=False) is not None:
        tree.body = tree.body[1:] or [ast.Pass()]
    return tree


def parse_forward(plain_class: Type[nn.Module]) -> ast.FunctionDef:
    """The syntax of a plain forward, in which its drop paths are called.

    Raises:
        NotCuttable: Its source is not to be had, or not all that is called.
    """
    function = unwrapped(plain_class.forward)
    if not isinstance(function, FunctionType) or function.__name__ != 'forward':
        name = getattr(function, '__name__', type(function).__name__)
        raise NotCuttable(f'its forward is wrapped by a decorator, or another function ({name}) is in its place')
    tree = _tree_of(function, plain_class)
    if tree is None:
        raise NotCuttable(
            'the source of its forward is not to be had, as that of what is typed at a prompt or was edited since')
    if plain_class in BRANCH_ENDS:
        _AddDropPath(BRANCH_ENDS[plain_class]).visit(tree)
    return tree


def inline_methods(tree: ast.FunctionDef, plain_class: Type[nn.Module], names: List[str]) -> None:
    """Put the statements of methods that read some names, as a class's drop paths, where a forward calls them."""
    tree.body = _inlined(tree.body, plain_class, names, [])


def _inlined(
        statements: List[ast.stmt],
        plain_class: Type[nn.Module],
        names: List[str],
        within: List[str],
) -> List[ast.stmt]:
    found: List[ast.stmt] = []
    for statement in statements:
        for field in ('body', 'orelse'):
            if isinstance(getattr(statement, field, None), list):
                setattr(statement, field, _inlined(getattr(statement, field), plain_class, names, within))
        call = _call_of(statement, plain_class, names, within)
        if call is None:
            found.append(statement)
        else:
            found += _method_statements(statement, call, plain_class, names, within)
    return found


def _call_of(statement: ast.stmt, plain_class: Type[nn.Module], names: List[str], within: List[str]) -> Any:
    """The first call in a statement of a method that reads one of the names."""
    if not isinstance(statement, (ast.Assign, ast.AugAssign, ast.Expr, ast.Return)):
        return None
    # what comes before a call, or decides whether it is made, would come after it
    call = _first_call(statement)
    name = '' if call is None else ast.unparse(call.func).partition('self.')[2]
    method: Any = getattr(plain_class, name, None)
    if isinstance(method, FunctionType) and name not in within and set(names) & set(method.__code__.co_names):
        return call
    return None


def _first_call(node: ast.AST) -> Optional[ast.Call]:
    """The call that is made first in a statement, whatever holds."""
    if isinstance(node, (ast.BoolOp, ast.IfExp, ast.Lambda, ast.comprehension)):
        return None
    parts = (_first_call(child) for child in ast.iter_child_nodes(node))
    first = next((part for part in parts if part is not None), None)
    return node if first is None and isinstance(node, ast.Call) else first


def _method_statements(
        statement: ast.stmt,
        call: ast.Call,
        plain_class: Type[nn.Module],
        names: List[str],
        within: List[str],
) -> List[ast.stmt]:
    name = ast.unparse(call.func).partition('.')[2]
    method: Any = getattr(plain_class, name, None)
    tree = _tree_of(method, plain_class)
    if tree is None:
        return [statement]
    arguments = [a.arg for a in tree.args.args[1:]]
    returns = [n for n in ast.walk(tree) if isinstance(n, ast.Return)]
    if not returns or returns[0].value is None:
        return [statement]
    is_simple = not (tree.args.vararg or tree.args.kwarg or tree.args.kwonlyargs or call.keywords) and (
        len(arguments) == len(call.args) and returns == tree.body[-1:] and method.__closure__ is None)
    if not is_simple or method.__globals__ is not unwrapped(plain_class.forward).__globals__:
        return [statement]
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    tree = _Rename({local: f'{name}_{local}' for local in {*arguments, *bound}}).visit(tree)
    result = f'{name}_result'
    assigned = [*zip((f'{name}_{argument}' for argument in arguments), call.args), (result, returns[0].value)]
    entry: List[Any] = [ast.Assign([ast.Name(local, ast.Store())], value) for local, value in assigned if value]
    body = [*entry[:-1], *tree.body[:-1], entry[-1], copy.deepcopy(statement, {id(call): ast.Name(result, ast.Load())})]
    for part in body:
        ast.fix_missing_locations(ast.copy_location(part, call))
    return _inlined(body, plain_class, names, [*within, name])
