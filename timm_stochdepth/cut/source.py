"""Source of a block's forward, and functions made of it."""
import __future__

import ast
import copy
import functools
import inspect
import linecache
from itertools import count
from types import CellType, FunctionType
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Type
from weakref import finalize

import torch
from torch import nn

from .tables import BRANCH_ENDS

__all__ = ['NotCuttable', 'functions_of', 'inline_methods', 'masked_forward', 'parse_forward', 'scriptable_forward',
           'unwrapped', 'without_types']

# torch.compile tells functions apart, and what it has seen of their sizes, by file and line
_NUMBERS = count()


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
    renamed = _Rename({a.arg: 'self' for a in arguments[:1]}, owner.__name__).visit(definition)
    return without_docstring(ast.fix_missing_locations(renamed))


def parse_forward(plain_class: Type[nn.Module]) -> ast.FunctionDef:
    """The syntax of a plain forward, in which its drop paths are called.

    Raises:
        NotCuttable: Its source is not to be had, or not all that is called.
    """
    function = unwrapped(plain_class.forward)
    if not isinstance(function, FunctionType) or function.__name__ != 'forward':
        raise NotCuttable('its forward is wrapped by a decorator')
    tree = _tree_of(function, plain_class)
    if tree is None:
        raise NotCuttable('the source of its forward is not to be had, as that of what is typed at a prompt')
    if plain_class in BRANCH_ENDS:
        _AddDropPath(BRANCH_ENDS[plain_class]).visit(tree)
    return tree


def unwrapped(function: Any) -> Callable[..., Any]:
    """A forward within its decorators; as it is where these do not hold it as a variable."""
    inner = _held_by(function)
    return function if inner is None else unwrapped(inner)


def _held_by(function: Any) -> Optional[Callable[..., Any]]:
    """The forward that a decorator's function calls, with `functools.wraps` or without."""
    cells = [cell.cell_contents for cell in getattr(function, '__closure__', None) or () if _is_filled(cell)]
    found = [f for f in cells if isinstance(f, FunctionType) and f is not function and f.__name__ == 'forward']
    wrapped = getattr(function, '__wrapped__', None)
    return found[0] if len(found) == 1 and wrapped in (None, found[0]) else None


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def rewrapped(function: Any, inner: Callable[..., Any]) -> Callable[..., Any]:
    """A forward's decorators around another forward.

    Args:
        function: The decorated forward.
        inner: What is to stand in the place of the forward itself.
    """
    held = _held_by(function)
    if held is None:
        return inner
    made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(
        CellType(cell.cell_contents) if _is_filled(cell) else CellType() for cell in function.__closure__))
    made.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(made, inner)
    for cell in made.__closure__ or ():
        if _is_filled(cell) and cell.cell_contents in (held, function):
            cell.cell_contents = rewrapped(held, inner) if cell.cell_contents is held else made
    return made


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
    for node in ast.walk(statement):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith('self.'):
            name = ast.unparse(node.func).partition('.')[2]
            method: Any = getattr(plain_class, name, None)
            if isinstance(method, FunctionType) and name not in within and set(names) & set(method.__code__.co_names):
                return node
    return None


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


def without_docstring(tree: ast.FunctionDef) -> ast.FunctionDef:
    if ast.get_docstring(tree, clean=False) is not None:
        tree.body = tree.body[1:] or [ast.Pass()]
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
    if self.drops_batch():
        return self.forward_block(*args, **kwargs)
    return self.stochastic_forward(*args, **kwargs)
