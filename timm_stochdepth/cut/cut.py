"""A block's forward, cut at its drop paths."""
import ast
import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Callable, List, Sequence, Tuple, Type

import torch
from torch import nn

from ..capture import leave_to_python
from .additions import adds_result
from .attributes import attributes_used
from .branch import Branch
from .branch_cut import Slice
from .decorators import unwrapped
from .functions import functions_of, without_types
from .operands import drop_path_of
from .paths import conditions_of, follow_path
from .slices import NoDropPath, slices_of
from .source import inline_methods, parse_forward
from .syntax import writes
from .tables import BRANCH_ENDS

__all__ = ['Cut', 'PlainForward', 'cut_by_hand']


@dataclass(eq=False)
class Cut:
    """A block's forward with stochastic depth.

    Attributes:
        forward: The cut forward, a function of the block and the arguments that are given.
        forward_kept: The plain forward, in which no drop path is called.
        forward_decided: The cut forward of a batch for which is decided what it keeps, a function of the block, of
            these decisions, and the arguments; left alone by torch.compile, which compiles what it calls.
        branches: Name and branch of each drop path's call, in their order.
        code: Source of forward and of the branches.
        path: The path that it is made for, empty if it was made by hand.
        is_compared: Whether it was compared with the plain forward.
    """
    forward: Callable[..., Any]
    forward_kept: Callable[..., Any]
    forward_decided: Callable[..., Any]
    branches: Tuple[Tuple[str, Branch], ...]
    code: str = ''
    path: Tuple[bool, ...] = ()
    is_compared: bool = False

    @cached_property
    def inplace_add(self) -> bool:
        """Whether the block adds in place, to the result of a branch."""
        return any(branch.inplace_add for _, branch in self.branches)

    @cached_property
    def forward_eager(self) -> Callable[..., Any]:
        """The same, of which torch.compile compiles nothing."""
        return torch.compiler.disable(self.forward_decided)


class PlainForward:
    """The forward of a plain class, as the source of its cuts.

    Args:
        plain_class: A class of residual blocks.
        drop_paths: Names of their drop paths.

    Attributes:
        inner: The forward itself, within its decorators.
        path: A function of a block and its forward's arguments: the values of the conditions that decide the path.

    Raises:
        NotCuttable: Its source is not to be had.
    """

    def __init__(self, plain_class: Type[nn.Module], drop_paths: Sequence[str]) -> None:
        self.plain_class, self.drop_paths = plain_class, drop_paths
        self.tree = parse_forward(plain_class)
        arguments = self.tree.args
        arguments.posonlyargs, arguments.args = [], [*arguments.posonlyargs, *arguments.args]
        self.inner: Any = unwrapped(plain_class.forward)
        inline_methods(self.tree, plain_class, list(drop_paths))
        self.tree = _AsDropPathsStand(drop_paths).visit(self.tree)
        self.conditions = conditions_of(self.tree)
        path = without_types(copy.deepcopy(self.tree))
        path.name = 'forward_path'
        values = ''.join(f'bool({condition}), ' for condition in self.conditions)
        path.body = list(ast.parse(f'return ({values})').body)
        self.path: Callable[..., Tuple[bool, ...]] = functions_of([path], self.inner, {})['forward_path']

    def cut(self, block: nn.Module, path: Tuple[bool, ...]) -> Cut:
        """Cut the forward on a path at its drop paths.

        Args:
            block: A block, of which only is asked what its children are.
            path: The path that it takes.

        Raises:
            NotCuttable: A drop path is not added to anything, or what is dropped is not the branch's alone.
        """
        followed = follow_path(self.tree, dict(zip(self.conditions, path)))
        if self._has_no_shortcut(followed):
            raise NoDropPath('it has no shortcut: its branch is added to nothing')
        function = copy.deepcopy(followed)
        slices = slices_of(function, block, self.plain_class, self.drop_paths)
        branches = [_definition(s.name, ['self', *s.inputs], s.body) for s in slices]
        made = functions_of([*branches, *map(_addition, slices)], self.inner, {})
        by_name = {}
        for s, definition in zip(slices, branches):
            others = [d for d in branches if d is not definition]
            by_name[s.name] = Branch(
                run=made[s.name],
                add_scaled=made[f'add_{s.name}'],
                batch_dimensions=tuple(s.dimensions),
                names=self._names_used(definition, [function], block, _local_functions(followed, s.inputs)),
                branch_only=self._names_used(definition, [function, *others], block),
                inplace_add=s.inplace_add,
                branch_is_left=s.branch_is_left,
            )
        kept = without_types(_WithoutDropPaths(self.drop_paths).visit(copy.deepcopy(followed)))
        kept.name = 'forward_kept'
        forward, decided = (_with_additions(function, slices, is_decided) for is_decided in (False, True))
        forwards = functions_of([forward, decided, kept], self.inner, by_name)
        return Cut(
            forwards['forward'],
            forwards['forward_kept'],
            leave_to_python(forwards['forward_decided']),
            tuple((s.drop_path, by_name[s.name]) for s in slices),
            '\n\n'.join(ast.unparse(ast.fix_missing_locations(d)) + '\n' for d in (*branches, forward)),
            path,
        )

    def _has_no_shortcut(self, followed: ast.FunctionDef) -> bool:
        """Whether a block without a drop path of its own adds no shortcut on a path: nothing would be left of it."""
        adds_elsewhere = self.plain_class in BRANCH_ENDS and adds_result(self.tree, self.drop_paths)
        return adds_elsewhere and not adds_result(followed, self.drop_paths)

    def _names_used(
            self,
            branch: ast.AST,
            elsewhere: Sequence[ast.AST],
            block: nn.Module,
            functions: Sequence[ast.AST] = (),
    ) -> Tuple[str, ...]:
        """Names of the children and tensors of a block that a branch uses, and nothing elsewhere, or such functions."""
        used = set().union(*(attributes_used(node, block, self.plain_class) for node in elsewhere))
        found = attributes_used(branch, block, self.plain_class) - used
        found = found.union(*(attributes_used(f, block, self.plain_class) for f in functions)) - set(self.drop_paths)
        computed = [name for name, value in vars(block).items() if isinstance(value, torch.Tensor)]  # pruned
        return tuple(name for name in (*block._modules, *block._parameters, *computed) if name in found)


def _local_functions(function: ast.FunctionDef, names: Sequence[str]) -> List[ast.AST]:
    """The functions within a forward that variables of these names hold: a branch may be what calls them."""
    holders = [n for n in ast.walk(function) if isinstance(n, (ast.Assign, ast.FunctionDef)) and n is not function]
    return [
        node for holder in holders if writes(holder) & set(names)
        for node in ast.walk(holder) if isinstance(node, (ast.FunctionDef, ast.Lambda))]


def _definition(name: str, arguments: Sequence[str], body: Sequence[ast.stmt]) -> Any:
    definition: Any = ast.parse(f'def {name}({", ".join(arguments)}): pass').body[0]
    definition.body = list(body)
    return definition


def _addition(s: Slice) -> ast.FunctionDef:
    """A function for each branch, since torch.compile counts what it compiles of each."""
    body = ast.parse(f'return self.{s.drop_path}.add_scaled(shortcut, branch, self, *inputs)').body
    return _definition(f'add_{s.name}', ['self', 'branch', 'shortcut', '*inputs'], body)


class _AsDropPathsStand(ast.NodeTransformer):
    """What a forward asks of its drop paths, which are there: some blocks have None at a rate of 0."""

    def __init__(self, drop_paths: Sequence[str]) -> None:
        self.names = [f'self.{name}' for name in drop_paths]

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        is_none = isinstance(node.ops[0], ast.Is) and ast.unparse(node.comparators[0]) == 'None'
        is_some = isinstance(node.ops[0], ast.IsNot) and ast.unparse(node.comparators[0]) == 'None'
        if (is_none or is_some) and ast.unparse(node.left) in self.names:
            return ast.Constant(is_some)
        return self.generic_visit(node)


class _WithoutDropPaths(ast.NodeTransformer):
    """What drop paths are called on, in their place."""

    def __init__(self, drop_paths: Sequence[str]) -> None:
        self.drop_paths = drop_paths

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        return node.args[0] if drop_path_of(node, self.drop_paths) else node


class _Additions(ast.NodeTransformer):
    """Calls of drop paths, in the place of branches that are added."""

    def __init__(self, slices: Sequence[Slice], is_decided: bool) -> None:
        self.slices, self.is_decided = slices, is_decided

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id == 'add_branch'):
            return node
        number: Any = node.args[0]
        s = self.slices[number.value]
        decided = f'_decided(keeps[{number.value}], ' if self.is_decided else '('
        call: Any = ast.parse(f'self.{s.drop_path}.add{decided}{s.name}, self)', mode='eval').body
        shortcut, *inputs = node.args[1:]
        call.args[-2:] = [shortcut, *call.args[-2:], *inputs]
        return call


def _with_additions(function: ast.FunctionDef, slices: Sequence[Slice], is_decided: bool) -> ast.FunctionDef:
    changed: ast.FunctionDef = _Additions(slices, is_decided).visit(without_types(copy.deepcopy(function)))
    if is_decided:
        changed.name = 'forward_decided'
        changed.args.args.insert(1, ast.arg('keeps'))
    return changed


def cut_by_hand(plain_class: Type[nn.Module], branch_only: Tuple[str, ...]) -> Cut:
    """The cut of a block that says itself what its shortcut, branch and activation are.

    Args:
        plain_class: The class that it has without stochastic depth.
        branch_only: Names of the branch's children and parameters.
    """
    def run(block: Any, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = block.branch(x)
        return y

    def add_scaled(self: Any, branch: Branch, shortcut: torch.Tensor, *inputs: Any) -> torch.Tensor:
        y: torch.Tensor = self.drop_path.add_scaled(shortcut, branch, self, *inputs)
        return y

    branch = Branch(run, add_scaled, (1,), branch_only, branch_only, inplace_add=True, branch_is_left=True)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.activation(self.drop_path.add(self.shortcut(x), branch, self, x))
        return y

    @leave_to_python
    def forward_decided(self: Any, keeps: Tuple[bool, ...], x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.activation(self.drop_path.add_decided(keeps[0], self.shortcut(x), branch, self, x))
        return y

    return Cut(forward, plain_class.forward, forward_decided, (('drop_path', branch),))
