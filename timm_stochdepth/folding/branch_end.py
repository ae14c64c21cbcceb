"""Find the parameters at a branch's end that absorb a factor."""
from typing import Any, Dict, List, Optional, Sequence, Set, Type

import timm.layers
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..cut.tables import GATE_INPUT_LAYERS, NORM_LAYERS, SCALING_LAYERS
from ..layers.block import StochasticBlock, plain_class_of
from ..layers.block_class import cuts_of
from .computed_tensors import ComputedTensor, own_tensor, own_tensors
from .degree import linear_in, overwritten
from .nodes import is_size, leading_to
from .trace import branch_ends, trace_forward

__all__ = ['branch_exponents']

_LINEAR_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, timm.layers.Conv2dSame)  # themselves: a subclass may compute more
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d)
# what moves values and does not change them, timm's functions among them
_RESHAPES = (
    'contiguous', 'deblockify', 'flatten', 'getitem', 'grid_reverse', 'grid_reverse_nchw', 'permute', 'reshape', 'roll',
    't', 'to', 'transpose', 'view', 'window_reverse', 'window_reverse_nchw', 'window_unpartition')
_PRODUCTS = ('imul', 'mul', 'mul_')
_SUMS = ('add', 'add_', 'iadd')
_LINEAR_FUNCTIONS = ('conv1d', 'conv2d', 'linear')


class _UsedBefore(ValueError):
    """A branch uses what it ends in before, too."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f'{path} must have weights of its own at the end of its branch to be folded, but uses them before, too: a'
            ' factor on the one would be one on the other.')


# by tensor, which hashes by its identity: a name has wrappers in it, and a tensor may have several
Exponents = Dict[Tensor, int]


def branch_exponents(name: str, block: nn.Module, drop_path: str) -> Exponents:
    """Tensors of a block that a factor on the branch of a drop path goes into, and the factor's exponent in each.

    Raises:
        ValueError: The branch ends in something else than a scale, a norm, a linear layer or a convolution, its end
            cannot be found, or its tensors are computed from others (parametrized).
    """
    if not isinstance(block, StochasticBlock):
        raise ValueError(
            f'{name} must be a block whose branches can be left out to be folded, but is a {type(block).__name__}.')
    branches = cuts_of(block)[0].branches
    if hasattr(block, 'last_norm'):
        return _exponents_by_hand(name, block)
    try:
        ends = branch_ends(block, plain_class_of(block), block._drop_path_names)
    except ValueError as e:
        raise _no_end(name, block, f', and {e}') from e
    if 'forward' in vars(block) or [n for n, _ in branches] != [n for n, _ in ends]:
        raise _no_end(name, block)
    exponents: Exponents = {}
    for (dropped_at, branch), (_, end) in zip(branches, ends):
        if dropped_at == drop_path:
            within = leading_to(end)
            earlier = (leading_to(e) for _, e in ends if e is not end and e in within)  # other branches
            found = _walk(block, end, name, within.difference(*earlier))
            names = [
                n for n in branch.branch_only
                if isinstance(getattr(block, n, 0), Tensor) and n not in block._non_persistent_buffers_set]
            children = [block._modules[n] for n in branch.branch_only if n in block._modules]
            of_branch = {own_tensor(block, n, name) for n in names}.union(
                t for child in children if child is not None for t in (*child.parameters(), *child.buffers()))
            if not found.keys() <= of_branch:
                raise _no_end(name, block)  # what else uses it would be scaled, too
            exponents.update(found)
    return exponents


def _exponents_by_hand(name: str, block: StochasticBlock) -> Exponents:
    names = block.last_norm, getattr(block, 'attention', '')
    exponents: Exponents = {}
    for child_name in names[::-1]:
        child = getattr(block, child_name) if child_name else None
        if child is not None:
            exponents.update(_exponents_of(child, f'{name}.{child_name}') or {})
    return exponents


def _walk(root: nn.Module, node: Any, path: str, within: Optional[Set[fx.Node]] = None) -> Exponents:
    """Follow a result back to what it was multiplied with last, and to nothing that is used before, too.

    Args:
        root: A module.
        node: A value of its graph.
        path: The module's name.
        within: What of the graph the branch consists of; all that leads to the value if None.
    """
    ends: Set[fx.Node] = set()
    exponents = _follow(root, node, path, ends)
    for other in (leading_to(node) if within is None else within) - ends:
        if not exponents.keys().isdisjoint(_tensors_used(root, other)):
            raise _UsedBefore(path)
    return exponents


def _follow(root: nn.Module, node: Any, path: str, ends: Set[fx.Node], in_sum: bool = False) -> Exponents:
    """As `_walk`; the nodes at which the factor goes in are added to ends."""
    exponents: Exponents = {}
    names = () if in_sum else linear_in(root, node)
    if names:
        ends.update(n for n in node.graph.nodes if n.op == 'get_attr' and n.target in names)
        return {own_tensor(root, name, path): 1 for name in names}
    if in_sum and _parameter_of(node) and _is_used_once(node) and _is_used_once(_leaf_of(node)):  # a bias
        return _exponents_of_own(root, [node], path, ends)
    written = overwritten(root, node.graph) if isinstance(node, fx.Node) else ()
    while isinstance(node, fx.Node) and node.op not in ('placeholder', 'get_attr'):
        if node in written:
            break
        if in_sum and not _is_used_once(node):
            break  # what feeds the other operand, too, would be scaled twice there
        name = str(getattr(node.target, '__name__', node.target))
        if node.op == 'call_module':
            child = root.get_submodule(name)
            found = _exponents_of(child, f'{path}.{name}')
            exponents.update(found or {})
            ends.add(node)
            if found is not None and type(child) not in GATE_INPUT_LAYERS:
                return exponents
        elif name in _PRODUCTS:
            parameters = [n for n in node.args if _parameter_of(n)]
            if parameters:
                return {**exponents, **_exponents_of_own(root, parameters[:1], path, ends)}
            factors = [n for n in node.args if not is_size(n)]
            if len(factors) > 1:
                break
            node = factors[0]
            continue
        elif name in _SUMS and len(node.args) == 2:  # a low-rank update beside its layer: each of them
            for operand in node.args:
                exponents.update(_follow(root, operand, path, ends, in_sum=True))
            return exponents
        elif name in _LINEAR_FUNCTIONS:
            weights = [n for n in (*node.args[1:], *node.kwargs.values()) if isinstance(n, fx.Node)]
            if not all(map(_parameter_of, weights)):
                break  # one of them is computed
            return {**exponents, **_exponents_of_own(root, weights, path, ends)}
        elif name == 'matmul' and _parameter_of(node.args[1]):
            return {**exponents, **_exponents_of_own(root, node.args[1:2], path, ends)}
        elif name not in _RESHAPES:
            break
        node = node.all_input_nodes[0]
    raise _no_end(path, root)


def _exponents_of_own(root: nn.Module, operands: Sequence[Any], path: str, ends: Set[fx.Node]) -> Exponents:
    """The tensors of a module that operands are, or are made of by reshapes."""
    for operand in operands:
        node = operand
        while _is_used_once(node) and node.op != 'get_attr':
            node = node.all_input_nodes[0]
        if _is_used_once(node):
            ends.add(node)
    return {own_tensor(root, _parameter_of(operand), path): 1 for operand in operands}


def _tensors_used(root: nn.Module, node: fx.Node) -> Set[Tensor]:
    """The tensors of a module that a node of its graph reads, or that the child has which it calls."""
    if node.op == 'call_module':
        child = root.get_submodule(str(node.target))
        return {*child.parameters(), *child.buffers()}
    tensors = {**root._buffers, **root._parameters}
    names = [str(node.target), f'{node.target}_orig'] if node.op == 'get_attr' else []  # pruned
    return {t for t in map(tensors.get, names) if t is not None}


def _exponents_of(module: nn.Module, path: str) -> Optional[Exponents]:
    """The tensors of a module that a factor on its result goes into, None if it is to be looked for before it."""
    if _computes_as(module, _IDENTITIES) or getattr(module, 'drop_prob', None) is not None:
        return None
    if type(module) in GATE_INPUT_LAYERS:
        layer = GATE_INPUT_LAYERS[type(module)]
        return {own_tensor(module.get_submodule(layer), 'weight', f'{path}.{layer}'): -1}
    plain_class = parametrize.type_before_parametrizations(module)
    if _computes_as(module, (*SCALING_LAYERS, *NORM_LAYERS)) or plain_class in _LINEAR_LAYERS:
        tensors = list(own_tensors(module, path))
        has_activation = not isinstance(getattr(module, 'act', nn.Identity()), nn.Identity)
        if not tensors or has_activation:
            raise ValueError(f'{path} must have a weight and no activation to be folded, but is {module}.')
        if isinstance(module, timm.layers.SplitBatchNorm2d):
            tensors += [tensor for norm in module.aux_bn for tensor in own_tensors(norm, path)]
        return dict.fromkeys(tensors, 1)
    try:
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            return _last_of(module, path)
        graph = trace_forward(module, type(module))
        if overwritten(module, graph):
            raise _no_end(path, module)
        return _walk(module, next(n for n in graph.nodes if n.op == 'output').args[0], path)
    except (ComputedTensor, _UsedBefore):
        raise
    except ValueError as e:
        raise _no_end(path, module) from e


def _computes_as(module: nn.Module, classes: Sequence[Type[nn.Module]]) -> bool:
    """Whether a module is of one of some classes, and no class of somebody's own that computes something else."""
    is_known = type(module).__module__.startswith(('timm.', 'torch.', 'torchvision.'))
    return any(isinstance(module, c) and (is_known or type(module).forward is c.forward) for c in classes)


def _last_of(module: nn.Sequential, path: str) -> Optional[Exponents]:
    exponents: Exponents = {}
    children: List[Any] = list(module._modules.items())
    while children:
        child_name, child = children.pop()
        found = _exponents_of(child, f'{path}.{child_name}')
        exponents.update(found or {})
        if any(not exponents.keys().isdisjoint((*c.parameters(), *c.buffers())) for _, c in children):
            raise _UsedBefore(path)
        if found is not None and type(child) not in GATE_INPUT_LAYERS:
            return exponents
    return None


def _is_used_once(node: Any) -> bool:
    return isinstance(node, fx.Node) and sum(not is_size(user) for user in node.users) <= 1


def _parameter_of(node: Any) -> str:
    leaf = _leaf_of(node)
    return str(leaf.target) if leaf is not None and leaf.op == 'get_attr' else ''


def _leaf_of(node: Any) -> Optional[fx.Node]:
    """What a value was made of by nothing but reshapes."""
    while isinstance(node, fx.Node) and node.op in ('call_method', 'call_function') and node.all_input_nodes:
        is_transposed = node.target is getattr and node.args[1] in ('T', 'mT')
        if not is_transposed and str(getattr(node.target, '__name__', node.target)) not in (*_RESHAPES, 'unsqueeze'):
            return None
        node = node.all_input_nodes[0]
    return node if isinstance(node, fx.Node) else None


def _no_end(path: str, module: nn.Module, why: str = '') -> ValueError:
    attention = ', '.join(dict.fromkeys(c.__name__ for c in GATE_INPUT_LAYERS))
    return ValueError(
        f'{path} must be one of {attention}, or end in a scale, a norm, a linear'
        f' layer or a convolution to be folded, but is a {type(module).__name__}{why}.')
