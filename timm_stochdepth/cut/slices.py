"""Find the residual branches in the source of a forward.

For each call of a drop path whose result is added to something, the branch is what the result is computed by and
nothing else: expressions, and statements of the same suite, whatever Python does in them.
"""
import ast
import re
from typing import List, Sequence, Set, Type

from torch import nn

from .additions import find_addition
from .attributes import attributes_used
from .branch_cut import BranchCut, Slice
from .facts import ForwardFacts
from .kinds import is_size
from .operands import describe, drop_path_of
from .source import NotCuttable
from .syntax import kills, reads, reads_of, writes

__all__ = ['NoDropPath', 'slices_of']


class NoDropPath(NotCuttable):
    """A block's forward calls no drop path: nothing is dropped."""


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
    facts = ForwardFacts(function, block, plain_class, drop_paths)
    slices: List[Slice] = []
    _leave_out_dead_sizes(function.body, facts)
    _cut_suite(function.body, set(), facts, slices)
    for node in ast.walk(function):
        for call in ast.iter_child_nodes(node):
            if drop_path_of(call, drop_paths):
                if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
                    raise NotCuttable(f'the result of {describe(call)} is not added to anything')
                user = 'the result of the block' if isinstance(node, ast.Return) else describe(node)
                raise NotCuttable(f'the result of {describe(call)} goes into {user}, not into an addition')
    return slices


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


def _leave_out_dead_sizes(suite: List[ast.stmt], facts: ForwardFacts) -> None:
    """Leave out what computes sizes that nothing on this path reads: it would be a use of what it measures."""
    live: Set[str] = set()
    for statement in reversed(list(suite)):
        if is_size(statement, facts.kinds) and not writes(statement) & live:
            suite.remove(statement)
        else:
            live = (live - kills(statement)) | reads(statement)


def _cut_suite(suite: List[ast.stmt], live: Set[str], facts: ForwardFacts, slices: List[Slice]) -> None:
    """Cut the branches whose additions stand in a suite.

    Args:
        suite: Its statements; changed.
        live: Names that are read after it.
        facts: What is known of the forward.
        slices: Those that were cut before; what is found is added.
    """
    i = 0
    while i < len(suite):
        statement = suite[i]
        if isinstance(statement, (ast.If, ast.With)):
            after = reads_of(suite[i + 1:], live)
            for part in (statement.body, getattr(statement, 'orelse', [])):
                _cut_suite(part, after, facts, slices)
        elif isinstance(statement, (ast.For, ast.While, ast.Try)):
            for node in ast.walk(statement):
                if drop_path_of(node, facts.drop_paths):
                    source = ast.unparse(statement).partition('\n')[0]
                    raise NotCuttable(f'{describe(node)} is called in `{source}`')
        else:
            while addition := find_addition(suite, i, facts.block, facts.drop_paths, facts.kinds):
                i = BranchCut(facts, addition, suite, i, live).cut(slices)
        i += 1
