"""Find the residual branches in the source of a forward.

For each call of a drop path whose result is added to something, the branch is what the result is computed by and
nothing else: expressions, and statements of the same suite, whatever Python does in them.
"""
import ast
import copy
import re
from dataclasses import dataclass
from typing import Any, List, Sequence, Set, Tuple, Type

from torch import nn

from .additions import Addition, find_addition
from .attributes import attributes_used
from .kinds import Dimensions, is_size, kinds_of
from .operands import describe, drop_path_of
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
        dimensions: For each of them the number of dimensions from which on its first is the batch.
        inplace_add: Whether the block adds in place, to the result of the branch.
        branch_is_left: Whether the branch is the first operand of the addition.
    """
    drop_path: str
    name: str
    body: List[ast.stmt]
    inputs: List[str]
    dimensions: List[Dimensions]
    inplace_add: bool
    branch_is_left: bool


def slices_of(
        function: ast.FunctionDef,
        block: nn.Module,
        plain_class: Type[nn.Module],
        drop_paths: Sequence[str],
) -> List[Slice]:
    """Cut the branches out of a forward; their additions are calls of `add_branch` afterwards.

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
        for call in ast.iter_child_nodes(node):
            if drop_path_of(call, drop_paths):
                if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
                    raise NotCuttable(f'the result of {describe(call)} is not added to anything')
                user = 'the result of the block' if isinstance(node, ast.Return) else describe(node)
                raise NotCuttable(f'the result of {describe(call)} goes into {user}, not into an addition')
    return slicer.slices


def _runs_children(function: ast.FunctionDef) -> bool:
    """Whether a forward calls whatever children there are, as that of nn.Sequential does, or hands the block on."""
    owners = [id(n.value) for n in ast.walk(function) if isinstance(n, ast.Attribute)]
    for node in ast.walk(function):
        if isinstance(node, (ast.For, ast.comprehension)):
            if re.match(r'self(\.(_modules|children|modules|named_children)\b|$)', ast.unparse(node.iter)):
                return True
        if isinstance(node, ast.Name) and (node.id == 'getattr' or node.id == 'self' and id(node) not in owners):
            return True
    return False


class _Slicer:
    """What is known of a forward, and the branches that were cut out of it."""

    def __init__(
            self,
            function: ast.FunctionDef,
            block: nn.Module,
            plain_class: Type[nn.Module],
            drop_paths: Sequence[str],
    ) -> None:
        self.block, self.plain_class, self.drop_paths = block, plain_class, drop_paths
        self.kinds = kinds_of(function)
        # variables of the module, or of a function around
        self.of_others = {
            n for node in ast.walk(function) if isinstance(node, (ast.Global, ast.Nonlocal)) for n in node.names}
        bound = set().union(*map(bound_by, function.body)) - self.of_others
        self.locals = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)} | bound
        arguments = [*function.args.args[len(function.args.args) - len(function.args.defaults):],
                     *function.args.kwonlyargs, function.args.vararg]
        self.optional = {a.arg for a in arguments if a is not None}
        self.slices: List[Slice] = []

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
            if isinstance(statement, (ast.If, ast.With)):
                after = reads_of(suite[i + 1:], live)
                for part in (statement.body, getattr(statement, 'orelse', [])):
                    self.cut_suite(part, after)
            elif isinstance(statement, (ast.For, ast.While, ast.Try)):
                for node in ast.walk(statement):
                    if drop_path_of(node, self.drop_paths):
                        source = ast.unparse(statement).partition('\n')[0]
                        raise NotCuttable(f'{describe(node)} is called in `{source}`')
            else:
                while addition := find_addition(suite, i, self.block, self.drop_paths, self.kinds):
                    i = _BranchCut(self, addition, suite, i, live).cut()
            i += 1

    def writes(self, statement: ast.stmt) -> Set[str]:
        """Names that a statement binds or changes, also by a child that works in place."""
        found = writes(statement)
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Name):
                root, _, name = ast.unparse(node.func).partition('.')
                if root == 'self' and getattr(self.block._modules.get(name), 'inplace', False):
                    found.add(node.args[0].id)
        return found

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

    def computes(self, node: ast.AST) -> bool:
        """Whether a node is worth leaving out: no scale, no change of shape."""
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'self' and node.attr not in self.drop_paths:
            child = self.block._modules.get(node.attr)
            if child is not None:
                return not isinstance(child, (nn.Identity, nn.Dropout, *SCALING_LAYERS))
            return bool(attributes_used(node, self.block, self.plain_class) & set(self.block._modules))
        if isinstance(node, ast.Call):
            root, _, name = ast.unparse(node.func).partition('.')
            return root in ('F', 'torch', 'nn') or root in self.locals and not name
        return isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)


class _BranchCut:
    """One branch, which is cut out of a suite of statements.

    Args:
        slicer: What is known of the forward.
        addition: Where the branch is added.
        suite: The statements; changed.
        i: The number of the one that the addition is in.
        live: Names that are read after them.
    """

    def __init__(self, slicer: _Slicer, addition: Addition, suite: List[ast.stmt], i: int, live: Set[str]) -> None:
        self.slicer, self.addition, self.suite, self.i, self.live = slicer, addition, suite, i, live
        self.call = describe(addition.drop_path)
        # what the statement of the addition reads beside the branch
        self.outside = loaded(addition.shortcut) if isinstance(addition.node, ast.AugAssign) else reads(
            copy.deepcopy(suite[i], {id(addition.node): addition.shortcut}))
        self.inside = self.find_statements()

    def cut(self) -> int:
        """Cut the branch out, and return the new number of the statement of the addition."""
        addition, suite, slices = self.addition, self.suite, self.slicer.slices
        if any(link not in self.inside for link in addition.chain):
            raise NotCuttable(f'the result of {self.call} is used elsewhere, too')
        addition.check_inplace(suite[:self.i])
        self.check()
        sizes = self.find_sizes()
        body = [s for s in suite[:self.i] if s in self.inside or s in sizes]
        returned = ast.Return(addition.operand)
        inputs = sorted(reads_of([*body, returned]) & self.slicer.locals - {'self'})
        before = [s for s in suite[:self.i] if s not in self.inside]
        arguments = [self.find_argument(name, body, before) for name in inputs]
        drop_path = self.call.partition('.')[2]
        number = sum(s.drop_path == drop_path for s in slices)
        slices.append(Slice(
            drop_path,
            f'{drop_path}_branch' + (f'_{number + 1}' if number else ''),
            [_without_drop_path(s, addition.drop_path) for s in (*body, returned)],
            inputs,
            [self.slicer.kinds.dimensions_of(name) for name in inputs],
            addition.is_inplace and addition.branch_is_left,
            addition.branch_is_left,
        ))
        call: Any = ast.parse(f'add_branch({", ".join([str(len(slices) - 1), *arguments])})', mode='eval').body
        call.args.insert(1, addition.shortcut)
        if isinstance(addition.node, ast.AugAssign):
            suite[self.i] = ast.Assign([addition.node.target], call)
        else:
            suite[self.i] = copy.deepcopy(suite[self.i], {id(addition.node): call})
        suite[:self.i] = before
        return len(before)

    def find_statements(self) -> List[ast.stmt]:
        """The statements that compute the branch, and nothing that is read elsewhere."""
        needed, found = loaded(self.addition.operand), set()
        for j in range(self.i - 1, -1, -1):
            if self.slicer.writes(self.suite[j]) & needed:
                found.add(j)
                needed = (needed - kills(self.suite[j])) | reads(self.suite[j])
        for j in range(self.i):  # what is noted of the branch is noted where it is computed
            statement = self.suite[j]
            is_note = has_effect(statement) and not self.slicer.writes(statement) & self.slicer.locals
            if (is_note or isinstance(statement, ast.Delete)) and any(self.reaches(k, j) for k in found if k < j):
                found.add(j)
        while left := {j for j in found if self.must_stay(j, found)}:
            found -= left
        return [self.suite[j] for j in sorted(found)]

    def must_stay(self, j: int, found: Set[int]) -> bool:
        return not self.slicer.may_move(self.suite[j]) or self.escapes(j, found) or self.is_overtaken(j, found)

    def reaches(self, j: int, k: int) -> bool:
        """Whether statement k reads or deletes what statement j writes."""
        written = self.slicer.writes(self.suite[j]).difference(*map(kills, self.suite[j + 1:k]))
        statement = self.suite[k]
        return bool(written & (writes(statement) if isinstance(statement, ast.Delete) else reads(statement)))

    def escapes(self, j: int, found: Set[int]) -> bool:
        """Whether something outside of the branch reads what a statement of it writes."""
        written = self.slicer.writes(self.suite[j])
        for k in range(j + 1, len(self.suite)):
            statement = self.suite[k]
            if k not in found and written & (self.outside if k == self.i else reads(statement)):
                return True
            written = written - kills(statement)
        return bool(written & self.live)

    def is_overtaken(self, j: int, found: Set[int]) -> bool:
        """Whether a statement would be moved past one that sets an attribute or a global that it reads."""
        attributes = {n.attr for n in ast.walk(self.suite[j]) if isinstance(n, ast.Attribute)}
        of_others = reads(self.suite[j]) & self.slicer.of_others
        return any(
            stored_attributes(self.suite[k]) & attributes or writes(self.suite[k]) & of_others
            for k in range(j + 1, self.i) if k not in found)

    def find_sizes(self) -> List[ast.stmt]:
        """Statements outside that compute sizes for the branch: it computes them again, of the samples that it has."""
        needed, found = loaded(self.addition.operand), []
        for statement in reversed(self.suite[:self.i]):
            if self.slicer.writes(statement) & needed:
                needed = needed - kills(statement)
                if is_size(statement, self.slicer.kinds) and statement not in self.inside:
                    found.append(statement)
                if statement in self.inside or statement in found:
                    needed |= reads(statement)
        return found

    def check(self) -> None:
        parts = [*self.inside, self.addition.operand]
        if any(isinstance(n, ast.NamedExpr) for part in (*parts, self.suite[self.i]) for n in ast.walk(part)):
            raise NotCuttable(f'a variable is bound within an expression beside {self.call}')
        nodes = [n for part in parts for n in ast.walk(part) if n is not self.addition.drop_path]
        if any(drop_path_of(n, self.slicer.drop_paths) or getattr(n, 'id', '') == 'add_branch' for n in nodes):
            raise NotCuttable(f'the branch of {self.call} holds another residual branch')
        if not any(map(self.slicer.computes, nodes)):
            raise NotCuttable(f'nothing is computed for {self.call} alone, that dropping it would save')
        if not self.slicer.kinds.is_of_batch(self.addition.shortcut):
            raise NotCuttable(f'the result of {self.call} is added to no tensor of the batch')

    def find_argument(self, name: str, body: Sequence[ast.stmt], before: List[ast.stmt]) -> str:
        """What an input of the branch is called where the branch is added.

        Args:
            name: The name that the branch reads.
            body: Its statements.
            before: Those that stay before the addition; one that keeps the value is added where it is changed.
        """
        if isinstance(self.slicer.kinds.dimensions_of(name), str) and name not in self.slicer.optional:
            raise NotCuttable(f'nothing says whether the first dimension of its argument {name} is the batch')
        changes = [s for s in before if name in self.slicer.writes(s)]
        position = {id(s): j for j, s in enumerate(self.suite)}
        readers = _readers(name, [*body, self.suite[self.i]], self.addition.operand)
        # how many of the changes each of those that read it has seen
        seen = {sum(position[id(c)] < position[id(s)] for c in changes if id(c) in position) for s in readers}
        if len(seen) > 1:
            raise NotCuttable(f'{name} is changed within the branch of {self.call}')
        num_seen = seen.pop() if seen else len(changes)
        if num_seen == len(changes):
            return name
        if any(name not in kills(s) for s in changes[num_seen:]):
            raise NotCuttable(f'{name} is changed in place after the branch of {self.call} reads it')
        kept = f'{name}_of_{len(self.slicer.slices)}'
        before.insert(before.index(changes[num_seen]), ast.parse(f'{kept} = {name}').body[0])
        return kept


def _readers(name: str, statements: Sequence[ast.stmt], operand: ast.expr) -> List[ast.stmt]:
    """The statements of a branch, the last of which adds its operand, that read a name from outside."""
    found: List[Tuple[ast.stmt, bool]] = []
    for statement in statements[:-1]:
        found.append((statement, name in reads(statement)))
        if name in kills(statement):
            break
    else:
        found.append((statements[-1], name in loaded(operand)))
    return [statement for statement, is_reader in found if is_reader]


def _without_drop_path(statement: ast.stmt, call: ast.Call) -> Any:
    return copy.deepcopy(statement, {id(call): copy.deepcopy(call.args[0])})
