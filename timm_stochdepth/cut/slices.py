"""Find the residual branches in the source of a forward.

For each call of a drop path whose result is added to something, the branch is what the result is computed by and
nothing else: expressions, and statements of the same suite, whatever Python does in them.
"""
import ast
import copy
import re
from dataclasses import dataclass, field
from typing import Any, Iterable, List, Optional, Sequence, Set, Tuple, Type

from torch import nn

from .attributes import attributes_used
from .kinds import Dimensions, is_size, kinds_of
from .operands import describe, drop_path_of, operand_of
from .source import NotCuttable
from .syntax import bound_by, has_effect, is_movable, kills, loaded, reads, reads_of, stored_attributes, writes
from .tables import SCALING_LAYERS

__all__ = ['NoDropPath', 'Slice', 'slices_of']


class NoDropPath(NotCuttable):
    """A block's forward calls no drop path: nothing is dropped."""


@dataclass
class Slice:
    """A residual branch in the source.

    Attributes:
        drop_path: Name of its drop path.
        name: What the branch is called.
        body: Its statements, without the drop path; the last one returns what is added.
        inputs: Names of local variables that it reads.
        arguments: What these are called where the branch is added.
        dimensions: For each of them the number of dimensions from which on its first is the batch.
        inplace_add: Whether the block adds in place, to the result of the branch.
        branch_is_left: Whether the branch is the first operand of the addition.
    """
    drop_path: str
    name: str
    body: List[ast.stmt]
    inputs: List[str]
    arguments: List[str]
    dimensions: List[Dimensions]
    inplace_add: bool
    branch_is_left: bool


@dataclass
class _Addition:
    """An addition of a branch, within a statement."""
    node: Any
    operand: ast.expr
    shortcut: ast.expr
    drop_path: ast.Call
    chain: List[ast.stmt] = field(default_factory=list)


def slices_of(
        function: ast.FunctionDef,
        block: nn.Module,
        plain_class: Type[nn.Module],
        drop_paths: Sequence[str],
) -> List[Slice]:
    """Cut the branches out of a forward, in which their additions are calls of `add_branch` afterwards.

    Args:
        function: The forward, on the path that the block takes; it is changed.
        block: The block.
        plain_class: The class whose forward it is.
        drop_paths: Names of its drop paths.

    Raises:
        NotCuttable: A result of a drop path is not added to anything, or what is dropped is not the branch's alone.
    """
    if not any(drop_path_of(node, drop_paths) for node in ast.walk(function)):
        if _runs_children(function):
            raise NotCuttable('its forward calls its drop path as one of its children')
        if attributes_used(function, block, plain_class) & set(drop_paths):
            raise NotCuttable('its forward calls its drop path in a method')
        raise NoDropPath('its forward calls no drop path')
    slicer = _Slicer(function, block, plain_class, drop_paths)
    slicer.leave_out_dead_sizes(function.body)
    slicer.cut_suite(function.body, set())
    for node in ast.walk(function):
        if drop_path_of(node, drop_paths):
            raise NotCuttable(f'the result of {describe(node)} goes into {slicer.user_of(node)}, not into an addition')
    return slicer.slices


def _runs_children(function: ast.FunctionDef) -> bool:
    """Whether a forward calls whatever children there are, as that of nn.Sequential does."""
    for node in ast.walk(function):
        if isinstance(node, (ast.For, ast.comprehension)):
            if re.match(r'self(\.(_modules|children|modules|named_children)\b|$)', ast.unparse(node.iter)):
                return True
        if isinstance(node, ast.Name) and node.id in ('getattr', 'super'):
            return True
    return False


class _Slicer:

    def __init__(
            self,
            function: ast.FunctionDef,
            block: nn.Module,
            plain_class: Type[nn.Module],
            drop_paths: Sequence[str],
    ) -> None:
        self.function, self.block, self.plain_class, self.drop_paths = function, block, plain_class, drop_paths
        self.kinds = kinds_of(function)
        self.of_others = {
            n for node in ast.walk(function) if isinstance(node, (ast.Global, ast.Nonlocal)) for n in node.names}
        bound = set().union(*map(bound_by, function.body)) - self.of_others
        self.locals = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)} | bound
        arguments, num_defaults = function.args.args, len(function.args.defaults)
        # an error says it when they are given
        self.optional = {a.arg for a in (
            *arguments[len(arguments) - num_defaults:], *function.args.kwonlyargs, function.args.vararg) if a}
        self.slices: List[Slice] = []

    def user_of(self, call: ast.AST) -> str:
        """What the result of a drop path goes into, for messages."""
        for statement in ast.walk(self.function):
            for child in ast.iter_child_nodes(statement):
                if child is call:
                    return 'the result of the block' if isinstance(statement, ast.Return) else describe(statement)
        return 'something else'

    def leave_out_dead_sizes(self, suite: List[ast.stmt]) -> None:
        """Leave out what computes sizes that nothing on this path reads: it would be a use of what it measures."""
        live: Set[str] = set()
        for statement in reversed(list(suite)):
            if is_size(statement, self.kinds) and not writes(statement) & live:
                suite.remove(statement)
            else:
                live = (live - kills(statement)) | reads(statement)

    def cut_suite(self, suite: List[ast.stmt], live: Set[str]) -> None:
        """Cut the branches whose additions stand in a suite.

        Args:
            suite: Its statements; changed.
            live: Names that are read after it.
        """
        i = 0
        while i < len(suite):
            statement = suite[i]
            after = reads_of(suite[i + 1:], live)
            if isinstance(statement, (ast.If, ast.With)):
                for part in (statement.body, getattr(statement, 'orelse', [])):
                    self.cut_suite(part, after)
            elif isinstance(statement, (ast.For, ast.While, ast.Try)):
                self.refuse_drop_paths_in(statement)
            else:
                while (addition := self.find_addition(suite[i], suite, i)) is not None:
                    i -= self.cut(addition, suite, i, live)
            i += 1

    def refuse_drop_paths_in(self, statement: ast.stmt) -> None:
        for node in ast.walk(statement):
            if drop_path_of(node, self.drop_paths):
                raise NotCuttable(f'{describe(node)} is called in `{ast.unparse(statement).splitlines()[0]}`')

    def find_addition(self, statement: ast.stmt, suite: List[ast.stmt], i: int) -> Optional[_Addition]:
        """The innermost addition of a drop path's result in a statement, the leftmost one."""
        candidates: List[Tuple[Any, ast.expr, ast.expr]] = []
        for node in _postorder(statement):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
                candidates.append((node, node.left, node.right))
            elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add) and isinstance(
                    node.target, ast.Name):
                candidates.append((node, ast.Name(node.target.id, ast.Load()), node.value))
            elif isinstance(node, ast.Call) and not node.keywords and isinstance(node.func, ast.Attribute):
                if ast.unparse(node.func) == 'torch.add' and len(node.args) == 2:
                    candidates.append((node, node.args[0], node.args[1]))
                elif node.func.attr in ('add', 'add_') and len(node.args) == 1:
                    candidates.append((node, node.func.value, node.args[0]))
        for node, left, right in candidates:
            for operand, shortcut in ((left, right), (right, left)):
                found = operand_of(operand, suite, i, self.block, self.drop_paths, self.kinds)
                if found is not None:
                    other = operand_of(shortcut, suite, i, self.block, self.drop_paths, self.kinds)
                    if other is not None:
                        raise NotCuttable(f'{describe(other[0])} and {describe(found[0])} are added to each other')
                    return _Addition(node, operand, shortcut, *found)
        return None

    def cut(self, addition: _Addition, suite: List[ast.stmt], i: int, live: Set[str]) -> int:
        """Cut one branch out, and say how many statements have gone with it."""
        statement = suite[i]
        place = describe(addition.drop_path)
        outside = self.reads_besides(addition, statement)
        inside = self.statements_of(addition, suite, i, outside, live)
        for link in addition.chain:
            if link not in inside:
                raise NotCuttable(f'the result of {place} is used elsewhere, too')
        self.check_inplace(addition, suite, i)
        copied = self.sizes_of(addition, inside, suite, i)
        body = [s for s in suite[:i] if s in inside or s in copied]
        self.check(addition, inside, suite, i)
        returned = ast.Return(addition.operand)
        without = [_without_drop_path(s, addition.drop_path) for s in (*body, returned)]
        inputs = sorted((reads_of([*body, returned]) - {'self'}) & self.locals)
        arguments = [self.argument_for(name, body, suite, i, inside, addition) for name in inputs]
        number = sum(s.drop_path == ast.unparse(addition.drop_path.func)[5:] for s in self.slices)
        drop_path = ast.unparse(addition.drop_path.func)[5:]
        is_left = addition.operand is getattr(addition.node, 'left', None) or isinstance(
            addition.node, ast.AugAssign) and addition.shortcut is addition.node.value or (
            isinstance(addition.node, ast.Call) and addition.shortcut is addition.node.args[-1])
        is_inplace = isinstance(addition.node, ast.AugAssign) or getattr(
            getattr(addition.node, 'func', None), 'attr', '') == 'add_'
        name = f'{drop_path}_branch' + (f'_{number + 1}' if number else '')
        self.slices.append(Slice(
            drop_path, name, without, inputs, [a for a, _ in arguments],
            [self.kinds.dimensions_of(name) for name in inputs], is_inplace and is_left, is_left))
        call = ast.Call(
            ast.Name('add_branch', ast.Load()),
            [ast.Constant(len(self.slices) - 1), addition.shortcut, *(ast.Name(a, ast.Load()) for a, _ in arguments)],
            [])
        if isinstance(addition.node, ast.AugAssign):
            suite[i] = ast.Assign([ast.Name(addition.node.target.id, ast.Store())], call)  # type: ignore[attr-defined]
        else:
            suite[i] = _Replace(addition.node, call).visit(statement)
        captured = [c for _, captures in arguments for c in captures]
        before = [s for s in suite[:i] if s not in inside]
        for after_statement, capture in captured:
            before.insert(before.index(after_statement) + 1 if after_statement is not None else 0, capture)
        suite[:i] = before
        return i - len(before)

    def check_inplace(self, addition: _Addition, suite: List[ast.stmt], i: int) -> None:
        """Refuse an addition that is written into a shortcut which something else may hold."""
        target = addition.node
        is_method = getattr(getattr(target, 'func', None), 'attr', '') == 'add_'
        written = target.func.value if is_method else addition.shortcut
        if not is_method and not (isinstance(target, ast.AugAssign) and addition.shortcut is not target.value):
            return
        if written is addition.operand:
            return
        name = written.id if isinstance(written, ast.Name) else ''
        made: Any = next((s for s in reversed(suite[:i]) if name in writes(s)), None)
        if not isinstance(made, ast.Assign) or not isinstance(made.value, ast.Call):
            raise NotCuttable(f'{describe(target)} writes to a tensor that is used elsewhere')

    def reads_besides(self, addition: _Addition, statement: ast.stmt) -> Set[str]:
        """Names that the statement of an addition reads beside the branch."""
        if isinstance(addition.node, ast.AugAssign):
            return loaded(addition.shortcut)
        return reads(copy.deepcopy(statement, {id(addition.node): addition.shortcut}))

    def statements_of(
            self,
            addition: _Addition,
            suite: List[ast.stmt],
            i: int,
            outside: Set[str],
            live: Set[str],
    ) -> List[ast.stmt]:
        """The statements that compute the branch, and nothing that is read elsewhere."""
        needed, found = loaded(addition.operand), set()
        for j in range(i - 1, -1, -1):
            statement = suite[j]
            if self.writes(statement) & needed:
                found.add(j)
                needed = (needed - kills(statement)) | reads(statement)
        for j in range(i):  # what is noted of the branch is noted where it is computed
            is_note = has_effect(suite[j]) and not self.writes(suite[j]) & self.locals
            is_note = is_note or isinstance(suite[j], ast.Delete)
            if j not in found and is_note and any(self.reaches(k, j, suite) for k in found if k < j):
                found.add(j)
        changed = True
        while changed:
            changed = False
            for j in sorted(found):
                if not self.may_move(suite[j]) or self.escapes(j, found, suite, i, outside, live) or self.is_overtaken(
                        j, found, suite, i):
                    found.discard(j)
                    changed = True
        return [suite[j] for j in sorted(found)]

    def reaches(self, j: int, k: int, suite: List[ast.stmt]) -> bool:
        """Whether statement k reads what statement j writes."""
        written = self.writes(suite[j])
        for between in suite[j + 1:k]:
            written = written - kills(between)
        is_deleted = isinstance(suite[k], ast.Delete) and bool(written & writes(suite[k]))
        return is_deleted or bool(written & reads(suite[k]))

    def may_move(self, statement: ast.stmt) -> bool:
        """Whether a statement can be a part of a branch, and with it be left out."""
        if not is_movable(statement) or writes(statement) & self.of_others:
            return False
        if stored_attributes(statement) and writes(statement) & self.locals:
            return False  # it notes something, and computes something else
        calls = [ast.unparse(n.func) for n in ast.walk(statement) if isinstance(n, ast.Call)]
        if any('rand' in call for call in calls):
            return False
        return not calls or has_effect(statement) or bool(loaded(statement) & (self.kinds.of_batch | self.kinds.sizes))

    def escapes(
            self,
            j: int,
            found: Set[int],
            suite: List[ast.stmt],
            i: int,
            outside: Set[str],
            live: Set[str],
    ) -> bool:
        """Whether something outside of the branch reads what a statement of it writes."""
        written = set(self.writes(suite[j]))
        for k in range(j + 1, len(suite)):
            reads_of_k = outside if k == i else set() if k in found else reads(suite[k])
            if written & reads_of_k:
                return True
            written -= kills(suite[k])
        return bool(written & live)

    def is_overtaken(self, j: int, found: Set[int], suite: List[ast.stmt], i: int) -> bool:
        """Whether a statement would be moved past one that sets an attribute that it reads."""
        attributes = {n.attr for n in ast.walk(suite[j]) if isinstance(n, ast.Attribute)}
        of_others = reads(suite[j]) & self.of_others
        return any(
            k not in found and (stored_attributes(suite[k]) & attributes or writes(suite[k]) & of_others)
            for k in range(j + 1, i))

    def sizes_of(
            self,
            addition: _Addition,
            inside: List[ast.stmt],
            suite: List[ast.stmt],
            i: int,
    ) -> List[ast.stmt]:
        """Statements outside that compute sizes for the branch: it computes them again, of the samples that it has."""
        needed, found = loaded(addition.operand), []
        for statement in reversed(suite[:i]):
            if not self.writes(statement) & needed:
                continue
            if statement in inside:
                needed = (needed - kills(statement)) | reads(statement)
            elif is_size(statement, self.kinds):
                found.append(statement)
                needed = (needed - kills(statement)) | reads(statement)
            else:
                needed = needed - kills(statement)
        return found

    def check(self, addition: _Addition, inside: List[ast.stmt], suite: List[ast.stmt], i: int) -> None:
        place = describe(addition.drop_path)
        if any(isinstance(n, ast.NamedExpr) for part in (*inside, suite[i]) for n in ast.walk(part)):
            raise NotCuttable(f'a variable is bound within an expression beside {place}')
        nodes = [n for part in (*inside, addition.operand) for n in ast.walk(part)]
        for node in nodes:
            is_other = node is not addition.drop_path and drop_path_of(node, self.drop_paths)
            if is_other or isinstance(node, ast.Name) and node.id == 'add_branch':
                raise NotCuttable(f'the branch of {place} holds another residual branch')
        if not any(self.computes(n) for n in nodes if n is not addition.drop_path):
            raise NotCuttable(f'nothing is computed for {place} alone, that dropping it would save')
        if not self.kinds.is_of_batch(addition.shortcut):
            raise NotCuttable(f'the result of {place} is added to no tensor of the batch')

    def computes(self, node: ast.AST) -> bool:
        """Whether a node is worth leaving out: no scale, no change of shape."""
        if isinstance(node, ast.BinOp):
            return isinstance(node.op, ast.MatMult)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'self' and node.attr not in self.drop_paths:
            child = self.block._modules.get(node.attr)
            if child is not None:
                return not isinstance(child, (nn.Identity, nn.Dropout, *SCALING_LAYERS))
            return bool(attributes_used(node, self.block, self.plain_class) & set(self.block._modules))
        if isinstance(node, ast.Call):
            root, _, name = ast.unparse(node.func).partition('.')
            return root in ('F', 'torch', 'nn') or root in self.locals and not name
        return False

    def writes(self, statement: ast.stmt) -> Set[str]:
        """Names that a statement binds or changes, also by a child that works in place."""
        found = writes(statement)
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Name):
                name = ast.unparse(node.func)
                child = self.block._modules.get(name[5:]) if name.startswith('self.') else None
                if getattr(child, 'inplace', False):
                    found |= {node.args[0].id}
        return found

    def argument_for(
            self,
            name: str,
            body: List[ast.stmt],
            suite: List[ast.stmt],
            i: int,
            inside: List[ast.stmt],
            addition: _Addition,
    ) -> Tuple[str, List[Tuple[Optional[ast.stmt], ast.stmt]]]:
        """What a branch's input is called where the branch is added, and the statement that keeps it, if it is changed.

        Raises:
            NotCuttable: The branch reads it before and after the change.
        """
        if isinstance(self.kinds.dimensions_of(name), str) and name not in self.optional:
            raise NotCuttable(f'nothing says whether the first dimension of its argument {name} is the batch')
        outer = [(j, s) for j, s in enumerate(suite[:i]) if s not in inside and name in self.writes(s)]
        read_at: Set[int] = set()
        bound = False
        for s in body:
            j = suite.index(s)
            if not bound and name in reads(s):
                read_at.add(max((k for k, _ in outer if k < j), default=-1))
            bound = bound or name in kills(s)
        if not bound and name in loaded(addition.operand):
            read_at.add(max((k for k, _ in outer), default=-1))
        if len(read_at) > 1:
            raise NotCuttable(f'{name} is changed within the branch of {describe(addition.drop_path)}')
        version = read_at.pop() if read_at else -1
        if version == max((k for k, _ in outer), default=-1):
            return name, []
        if any(name not in kills(s) for k, s in outer if k > version):
            raise NotCuttable(f'{name} is changed in place after the branch of {describe(addition.drop_path)} reads it')
        kept = f'{name}_of_{len(self.slices)}'
        capture: ast.stmt = ast.Assign([ast.Name(kept, ast.Store())], ast.Name(name, ast.Load()))
        return kept, [(suite[version] if version >= 0 else None, capture)]


class _Replace(ast.NodeTransformer):
    """One node by another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def _without_drop_path(statement: ast.stmt, call: ast.Call) -> Any:
    return copy.deepcopy(statement, {id(call): copy.deepcopy(call.args[0])})


def _postorder(node: ast.AST) -> Iterable[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield from _postorder(child)
    yield node
