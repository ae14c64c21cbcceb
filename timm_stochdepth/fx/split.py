"""Cut a block's forward at its drop paths.

A residual branch begins and ends where the block's own code says: for each call of a drop path whose result is added
to something, what feeds the drop path and nothing else is the branch, the other operand of the addition the shortcut.
The cut forward is the block's own one, in which each of these additions is a call of the place's `add`, and each
branch a function of its own. What is not recognized is refused, with the reason.
"""
import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Callable, Dict, List, Sequence, Set, Tuple, Type

import torch
from torch import fx, nn

from .branch import Branch
from .codegen import compile_source
from .find_branches import Residual, ResidualFinder
from .nodes import is_dead, is_size, source_of

__all__ = ['Cut', 'cut_by_hand', 'cut_forward']


@dataclass(frozen=True)
class Cut:
    """A block's forward with stochastic depth.

    Attributes:
        forward: The cut forward, a function of the block and the arguments that are given.
        forward_kept: The plain forward, in which no drop path is called.
        forward_decided: The cut forward of a batch for which is decided what it keeps, a function of the block, of
            these decisions, and the arguments; left alone by torch.compile, which compiles what it calls.
        branches: Place and branch of each drop path's call, in their order.
        ends: For each of them the graph's node that the branch's result comes from.
        code: Source of forward and of the branches.
    """
    forward: Callable[..., Any]
    forward_kept: Callable[..., Any]
    forward_decided: Callable[..., Any]
    branches: Tuple[Tuple[str, Branch], ...]
    ends: Tuple[fx.Node, ...] = ()
    code: str = ''

    @cached_property
    def inplace_add(self) -> bool:
        """Whether the block adds in place, to the result of a branch."""
        return any(branch.inplace_add for _, branch in self.branches)

    @cached_property
    def forward_eager(self) -> Callable[..., Any]:
        """The same, of which torch.compile compiles nothing."""
        return torch.compiler.disable(self.forward_decided)


class _Name(str):
    """A name in generated source."""
    __repr__ = str.__str__


def _source_of_addition(branch: str, place: str) -> str:
    """A function for each branch, since torch.compile counts what it compiles of each."""
    return f"""def add_{branch}(self, shortcut, *inputs):
    return self.{place}.add_scaled(shortcut, {branch}, self, *inputs)
"""


class _Cutter(ResidualFinder):
    """Cuts one graph."""

    def cut(self) -> Cut:
        residuals = self.find_residuals()
        sources: List[str] = []
        names: Dict[str, Any] = {}

        def add_source(graph: fx.Graph, name: str) -> None:
            source, used = source_of(graph, name)
            sources.append(source)
            names.update(used)

        inputs = {}
        for residual in residuals:
            graph, inputs[residual.name] = self.branch_graph(residual)
            add_source(graph, residual.name)
        add_source(self.outer_graph(residuals, inputs, is_decided=False), 'forward')
        code = '\n\n'.join(sources)
        add_source(self.kept_graph(), 'forward_kept')
        add_source(self.outer_graph(residuals, inputs, is_decided=True), 'forward_decided')
        sources += [_source_of_addition(r.name, str(r.call.target)) for r in residuals]
        namespace = compile_source('\n\n'.join(sources), names)
        branches = []
        for residual in residuals:
            branch = self.create_branch(residual, namespace, inputs[residual.name])
            namespace[residual.name] = branch  # what forward refers to
            branches.append((str(residual.call.target), branch))
        return Cut(
            namespace['forward'],
            namespace['forward_kept'],
            torch.compiler.disable(namespace['forward_decided'], recursive=False),
            tuple(branches),
            tuple(residual.operand for residual in residuals),
            code,
        )

    def create_branch(self, residual: Residual, names: Dict[str, Any], inputs: Sequence[fx.Node]) -> Branch:
        used, own = (
            dict.fromkeys(str(n.target) for n in self.nodes
                          if n.op in ('call_module', 'get_attr') and (n in residual.nodes) == is_inside)
            for is_inside in (False, True))
        branch_is_left = residual.addition.args[0] is residual.operand
        return Branch(
            run=names[residual.name],
            add_scaled=names[f'add_{residual.name}'],
            batch_dimensions=tuple(map(self.batch_dimension, inputs)),
            branch_only=tuple(name for name in own if name not in used and name not in self.places),
            inplace_add=branch_is_left and residual.addition.target in (operator.iadd, 'add_'),
            branch_is_left=branch_is_left,
        )

    def outer_graph(
            self,
            residuals: Sequence[Residual],
            inputs: Dict[str, List[fx.Node]],
            is_decided: bool,
    ) -> fx.Graph:
        """The block, in which each addition is a call of its drop path's `add`, or of `add_decided`."""
        by_addition = {r.addition: r for r in residuals}
        in_branch = set().union(*(r.nodes for r in residuals))
        graph = fx.Graph()
        copies: Dict[fx.Node, fx.Node] = {}
        keeps = graph.placeholder('keeps') if is_decided else None
        add = 'add_decided' if is_decided else 'add'
        for node in self.nodes:
            if node in by_addition:
                r = by_addition[node]
                args: Any = copies[r.shortcut], _Name(r.name), _Name('self'), *(copies[n] for n in inputs[r.name])
                decided = [] if keeps is None else [graph.call_function(operator.getitem, (keeps, residuals.index(r)))]
                copies[node] = graph.call_module(f'{r.call.target}.{add}', (*decided, *args))
            elif node not in in_branch:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        for node in reversed(graph.nodes):
            if is_dead(node):
                graph.erase_node(node)
        return graph

    def kept_graph(self) -> fx.Graph:
        graph = fx.Graph()
        self.copy_nodes(self.nodes, graph, {})
        return graph

    def branch_graph(self, residual: Residual) -> Tuple[fx.Graph, List[fx.Node]]:
        """The branch as a graph of its own, and the nodes outside of it that it needs.

        Sizes are computed again inside, from the samples that the branch is given.
        """
        inner: Set[fx.Node] = set()
        inputs: List[fx.Node] = []

        def take_in(node: fx.Node) -> None:
            inner.add(node)
            for needed in node.all_input_nodes:
                if needed in inner or needed in inputs:
                    continue
                if needed in residual.nodes or is_size(needed) or needed.op == 'get_attr':
                    take_in(needed)
                else:
                    self.check_input(needed)
                    inputs.append(needed)

        take_in(residual.operand)
        graph = fx.Graph()
        copies = {node: graph.placeholder(node.name) for node in inputs}
        self.copy_nodes(sorted(inner, key=self.index.__getitem__), graph, copies)
        graph.output(copies[residual.operand])
        return graph, inputs

    def copy_nodes(self, nodes: Sequence[fx.Node], graph: fx.Graph, copies: Dict[fx.Node, fx.Node]) -> None:
        """Copy nodes without the drop paths among them."""
        for node in nodes:
            is_place = node.op == 'call_module' and node.target in self.places
            copies[node] = copies[node.all_input_nodes[0]] if is_place else graph.node_copy(node, copies.__getitem__)


def cut_forward(block: nn.Module, graph: fx.Graph, places: Sequence[str]) -> Cut:
    """Cut a block's graph at its drop paths.

    Args:
        block: The block.
        graph: Its traced forward.
        places: Names of its drop paths.

    Raises:
        NotCuttable: A drop path is not added to anything, or what is dropped is not the branch's alone.
    """
    return _Cutter(block, graph, places).cut()


def cut_by_hand(plain_class: Type[nn.Module], branch_only: Tuple[str, ...]) -> Cut:
    """The cut of a block that says itself what its shortcut, branch and activation are.

    Args:
        plain_class: The class that it has without stochastic depth.
        branch_only: Names of the branch's children and parameters.
    """
    namespace = compile_source(_source_of_addition('branch', 'drop_path'), {})
    branch = namespace['branch'] = Branch(
        lambda block, x: block.branch(x), namespace['add_branch'], (1,), branch_only, inplace_add=True,
        branch_is_left=True)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.activation(self.drop_path.add(self.shortcut(x), branch, self, x))
        return y

    @torch.compiler.disable(recursive=False)
    def forward_decided(self: Any, keeps: Tuple[bool, ...], x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.activation(self.drop_path.add_decided(keeps[0], self.shortcut(x), branch, self, x))
        return y

    return Cut(forward, plain_class.forward, forward_decided, (('drop_path', branch),))
