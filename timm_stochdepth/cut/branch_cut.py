"""Cut one residual branch out of a suite of statements."""
import ast
import copy
from dataclasses import dataclass
from typing import Any, List, Sequence, Set, Tuple

from .additions import Addition
from .facts import ForwardFacts
from .kinds import Dimensions, is_size
from .operands import describe, drop_path_of
from .source import NotCuttable
from .syntax import has_effect, kills, loaded, reads, reads_of, stored_attributes, writes

__all__ = ['BranchCut', 'Slice']


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


class BranchCut:
    """One branch, which is cut out of a suite of statements.

    Args:
        facts: What is known of the forward.
        addition: Where the branch is added.
        suite: The statements; changed.
        i: The number of the one that the addition is in.
        live: Names that are read after them.
    """

    def __init__(self, facts: ForwardFacts, addition: Addition, suite: List[ast.stmt], i: int, live: Set[str]) -> None:
        self.facts, self.addition, self.suite, self.i, self.live = facts, addition, suite, i, live
        self.call = describe(addition.drop_path)
        # what the statement of the addition reads beside the branch
        self.outside = loaded(addition.shortcut) if isinstance(addition.node, ast.AugAssign) else reads(
            copy.deepcopy(suite[i], {id(addition.node): addition.shortcut}))
        self.inside = self.find_statements()

    def cut(self, slices: List[Slice]) -> int:
        """Cut the branch out, and return the new number of the statement of the addition.

        Args:
            slices: Those that were cut before; this one is added.
        """
        addition, suite = self.addition, self.suite
        if any(link not in self.inside for link in addition.chain):
            raise NotCuttable(f'the result of {self.call} is used elsewhere, too')
        addition.check_inplace(suite[:self.i])
        self.check()
        sizes = self.find_sizes()
        body = [s for s in suite[:self.i] if s in self.inside or s in sizes]
        returned = ast.Return(addition.operand)
        inputs = sorted(reads_of([*body, returned]) & self.facts.locals - {'self'})
        before = [s for s in suite[:self.i] if s not in self.inside]
        arguments = [self.find_argument(name, f'{name}_of_{len(slices)}', body, before) for name in inputs]
        drop_path = self.call.partition('.')[2]
        number = sum(s.drop_path == drop_path for s in slices)
        slices.append(Slice(
            drop_path,
            f'{drop_path}_branch' + (f'_{number + 1}' if number else ''),
            [_without_drop_path(s, addition.drop_path) for s in (*body, returned)],
            inputs,
            [self.facts.kinds.dimensions_of(name) for name in inputs],
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
            if self.facts.writes(self.suite[j]) & needed:
                found.add(j)
                needed = (needed - kills(self.suite[j])) | reads(self.suite[j])
        for j in range(self.i):  # what is noted of the branch is noted where it is computed
            statement = self.suite[j]
            is_note = has_effect(statement) and not self.facts.writes(statement) & self.facts.locals
            if (is_note or isinstance(statement, ast.Delete)) and any(self.reaches(k, j) for k in found if k < j):
                found.add(j)
        while left := {j for j in found if self.must_stay(j, found)}:
            found -= left
        return [self.suite[j] for j in sorted(found)]

    def must_stay(self, j: int, found: Set[int]) -> bool:
        return not self.facts.may_move(self.suite[j]) or self.escapes(j, found) or self.is_overtaken(j, found)

    def reaches(self, j: int, k: int) -> bool:
        """Whether statement k reads or deletes what statement j writes."""
        written = self.facts.writes(self.suite[j]).difference(*map(kills, self.suite[j + 1:k]))
        statement = self.suite[k]
        return bool(written & (writes(statement) if isinstance(statement, ast.Delete) else reads(statement)))

    def escapes(self, j: int, found: Set[int]) -> bool:
        """Whether something outside of the branch reads what a statement of it writes."""
        written = self.facts.writes(self.suite[j])
        for k in range(j + 1, len(self.suite)):
            statement = self.suite[k]
            if k not in found and written & (self.outside if k == self.i else reads(statement)):
                return True
            written = written - kills(statement)
        return bool(written & self.live)

    def is_overtaken(self, j: int, found: Set[int]) -> bool:
        """Whether a statement would be moved past one that sets an attribute or a global that it reads."""
        attributes = {n.attr for n in ast.walk(self.suite[j]) if isinstance(n, ast.Attribute)}
        of_others = reads(self.suite[j]) & self.facts.of_others
        return any(
            stored_attributes(self.suite[k]) & attributes or writes(self.suite[k]) & of_others
            for k in range(j + 1, self.i) if k not in found)

    def find_sizes(self) -> List[ast.stmt]:
        """Statements outside that compute sizes for the branch: it computes them again, of the samples that it has."""
        needed, found = loaded(self.addition.operand), []
        for statement in reversed(self.suite[:self.i]):
            if self.facts.writes(statement) & needed:
                needed = needed - kills(statement)
                if is_size(statement, self.facts.kinds) and statement not in self.inside:
                    found.append(statement)
                if statement in self.inside or statement in found:
                    needed |= reads(statement)
        return found

    def check(self) -> None:
        parts = [*self.inside, self.addition.operand]
        if any(isinstance(n, ast.NamedExpr) for part in (*parts, self.suite[self.i]) for n in ast.walk(part)):
            raise NotCuttable(f'a variable is bound within an expression beside {self.call}')
        nodes = [n for part in parts for n in ast.walk(part) if n is not self.addition.drop_path]
        if any(drop_path_of(n, self.facts.drop_paths) or getattr(n, 'id', '') == 'add_branch' for n in nodes):
            raise NotCuttable(f'the branch of {self.call} holds another residual branch')
        if not any(map(self.facts.computes, nodes)):
            raise NotCuttable(f'nothing is computed for {self.call} alone, that dropping it would save')
        if not self.facts.kinds.is_of_batch(self.addition.shortcut):
            raise NotCuttable(f'the result of {self.call} is added to no tensor of the batch')

    def find_argument(self, name: str, kept: str, body: Sequence[ast.stmt], before: List[ast.stmt]) -> str:
        """What an input of the branch is called where the branch is added.

        Args:
            name: The name that the branch reads.
            kept: What the value is called if it is to be kept from a change.
            body: Its statements.
            before: Those that stay before the addition; one that keeps the value is added where it is changed.
        """
        if isinstance(self.facts.kinds.dimensions_of(name), str) and name not in self.facts.optional:
            raise NotCuttable(
                f'nothing says whether the first dimension of its argument {name} is the batch: an entry'
                f' BATCH_DIMENSIONS[{name!r}] does, None for a number and for what all samples share')
        changes = [s for s in before if name in self.facts.writes(s)]
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
