"""Find the residual branches of a block's graph: what feeds a drop path and nothing else."""
import operator
from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Set, Tuple

import torch
from torch import fx, nn

from .families import BATCH_DIMENSIONS, SCALING_LAYERS
from .nodes import describe, is_dead, is_inplace, is_size, keeps_batch_first
from .trace import NoDropPath, NotCuttable

__all__ = ['Residual', 'ResidualFinder']

_ADDITIONS = (operator.add, operator.iadd, torch.add, 'add', 'add_')
_PRODUCTS = (operator.mul, operator.imul, torch.mul, 'mul', 'mul_')
_RESHAPES = ('contiguous', 'flatten', 'permute', 'reshape', 'transpose', 'view')


@dataclass(frozen=True)
class Residual:
    """One call of a drop path, the addition of its result, and what it drops."""
    call: fx.Node
    addition: fx.Node
    operand: fx.Node
    nodes: Set[fx.Node]
    name: str

    @property
    def shortcut(self) -> Any:
        return self.addition.args[1] if self.addition.args[0] is self.operand else self.addition.args[0]


class ResidualFinder:
    """Finds the residual branches of one block's graph; what is not recognized is refused.

    Attributes:
        nodes: The graph's, in their order.
        of_batch: Those of them that hold a row for each sample.
    """

    def __init__(self, block: nn.Module, graph: fx.Graph, places: Sequence[str]) -> None:
        self.block, self.places = block, places
        for node in reversed(graph.nodes):
            # an assertion's operands would else have a use outside of the branch
            if is_dead(node) or getattr(node.target, '__name__', '') == '_assert':
                graph.erase_node(node)
        self.nodes: List[fx.Node] = list(graph.nodes)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        for node in self.nodes:
            if node.op == 'call_method' and not node.users and is_inplace(node, None):
                self.use_result(node)
        self.first = next((n for n in self.nodes if n.op == 'placeholder'), None)
        self.of_batch: Set[fx.Node] = set()
        for node in self.nodes:
            if self.batch_dimension(node) is not None:
                self.of_batch.add(node)

    def use_result(self, node: fx.Node) -> None:
        """Let what reads a tensor after a method has written to it, `x.mul_(gain)`, use the method's result."""
        written: Any = node.args[0]
        for user in list(written.users):
            if self.index[user] > self.index[node]:
                user.replace_input_with(written, node)

    def batch_dimension(self, node: fx.Node) -> Optional[int]:
        """The number of dimensions from which on the first one of a tensor is the batch; None for what is shared."""
        if node is self.first:
            return 1
        if node.op == 'placeholder':
            return BATCH_DIMENSIONS.get(str(node.target))
        is_of_batch = not is_size(node) and any(n in self.of_batch for n in node.all_input_nodes)
        return 1 if is_of_batch else None

    def is_scale(self, node: fx.Node) -> bool:
        return isinstance(self.child(node), tuple(SCALING_LAYERS))

    def child(self, node: fx.Node) -> Optional[nn.Module]:
        """The child that a node calls; none is looked for in the places of drop paths."""
        is_child = node.op == 'call_module' and node.target not in self.places
        return self.block.get_submodule(str(node.target)) if is_child else None

    def find_addition(self, call: fx.Node) -> Tuple[fx.Node, fx.Node]:
        """The addition that a drop path's result goes into, and the operand that it comes in.

        What is linear may stand in between: scales, and changes of shape that leave the samples apart.
        """
        node = call
        while True:
            users = [user for user in node.users if not is_size(user)]
            if len(users) != 1:
                raise NotCuttable(f'the result of {describe(call)} is used {len(users)} times')
            user, = users
            if user.target in _ADDITIONS and len(user.args) == 2 and not user.kwargs and user.args[0] != user.args[1]:
                return user, node
            others = [n for n in user.all_input_nodes if n is not node]
            is_scaled = user.target in _PRODUCTS and not any(n in self.of_batch for n in others)
            is_reshaped = user.target in _RESHAPES and keeps_batch_first(user)
            if not (is_scaled or is_reshaped or self.is_scale(user)):
                raise NotCuttable(f'the result of {describe(call)} goes into {describe(user)}, not into an addition')
            node = user

    def find_branch(self, end: fx.Node) -> Set[fx.Node]:
        """The nodes that feed end and nothing else."""
        branch = {end}
        for node in reversed(self.nodes[:self.index[end]]):
            if node.op != 'placeholder' and all(user in branch for user in node.users):
                branch.add(node)
        return branch

    def find_residuals(self) -> List[Residual]:
        """The residuals, in the order of their drop paths' calls.

        Raises:
            NotCuttable: There are none, or what is dropped is not a branch's alone.
        """
        residuals: List[Residual] = []
        for call in self.nodes:
            if call.op != 'call_module' or call.target not in self.places:
                continue
            addition, operand = self.find_addition(call)
            number = sum(r.call.target == call.target for r in residuals)
            name = f'{call.target}_branch' + (f'_{number + 1}' if number else '')
            residuals.append(Residual(call, addition, operand, self.find_branch(operand), name))
        for residual in residuals:
            self.check(residual, [r for r in residuals if r is not residual])
        if not residuals:
            raise NoDropPath('its forward calls no drop path')
        self.check_nodes(residuals)
        return residuals

    def check(self, residual: Residual, others: Sequence[Residual]) -> None:
        place = describe(residual.call)
        if any(r.addition in residual.nodes or r.addition is residual.addition or r.nodes & residual.nodes
               for r in others):
            raise NotCuttable(f'the branch of {place} holds another residual branch')
        if not any(
                n.op == 'call_module' and n is not residual.call and not self.is_scale(n)
                for n in residual.nodes):
            raise NotCuttable(f'nothing is computed for {place} alone, that dropping it would save')
        if residual.shortcut not in self.of_batch:
            raise NotCuttable(f'the result of {place} is added to no tensor of the batch')

    def check_nodes(self, residuals: Sequence[Residual]) -> None:
        additions = {r.addition for r in residuals}
        for node in self.nodes:
            if node.op == 'get_attr' and str(node.target).startswith('_tensor_constant'):
                raise NotCuttable('its forward computes a tensor from nothing but its parameters, outside of the graph')
            written = node.args[0] if node.args else None
            if isinstance(written, fx.Node) and is_inplace(node, self.child(node)) and any(
                    self.index[user] > self.index[node] or node not in additions
                    for user in written.users if user is not node):
                raise NotCuttable(f'{describe(node)} writes to a tensor that is used elsewhere')

    def check_input(self, node: fx.Node) -> None:
        if node in self.of_batch:
            if not keeps_batch_first(node):
                raise NotCuttable(
                    f'{describe(node)} enters a branch, and may not have the samples in its first dimension')
        elif node.op == 'placeholder' and node.target not in BATCH_DIMENSIONS and not _is_number(node):
            raise NotCuttable(f'nothing says whether the first dimension of its argument {node.target} is the batch')


def _is_number(node: fx.Node) -> bool:
    return node.meta.get('annotation') in (int, float, bool, 'int', 'float', 'bool')
