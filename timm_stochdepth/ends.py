"""Where a factor on a residual branch goes: the tensors at its end that it can be multiplied into."""
from typing import Any, Dict, Optional

import timm.layers
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .blocks import StochasticBlock, cuts_of
from .families import GATE_INPUT_LAYERS, SCALING_LAYERS
from .graph import is_size
from .trace import NotCuttable, required_arguments, trace_forward

__all__ = ['branch_exponents']

_NORMS = (
    _BatchNorm, nn.GroupNorm, nn.LayerNorm, timm.layers.LayerNorm2d, timm.layers.RmsNorm, timm.layers.RmsNorm2d,
    timm.layers.SimpleNorm, timm.layers.SimpleNorm2d)
_LINEAR_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, timm.layers.Conv2dSame)  # themselves, no subclass
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d)
# what moves values and does not change them, timm's functions among them
_RESHAPES = (
    'contiguous', 'deblockify', 'flatten', 'getitem', 'grid_reverse', 'grid_reverse_nchw', 'permute', 'reshape', 'roll',
    'to', 'transpose', 'view', 'window_reverse', 'window_reverse_nchw', 'window_unpartition')
_PRODUCTS = ('imul', 'mul', 'mul_')

Exponents = Dict[str, int]


def branch_exponents(name: str, block: nn.Module, place: str) -> Exponents:
    """Tensors of a block that a factor on a branch goes into, and the factor's exponent in each.

    Args:
        name: The block's name in its model.
        block: A block with stochastic depth.
        place: Name of its drop path.

    Raises:
        ValueError: The branch ends in something else than a scale, a norm, a linear layer or a convolution, or its end
            cannot be found.
    """
    if not isinstance(block, StochasticBlock):
        raise ValueError(
            f'{name} must be a block whose branches can be left out to be folded, but is a {type(block).__name__}.')
    cut = cuts_of(block)[0]
    if not cut.ends:
        return _exponents_by_hand(name, block)
    exponents: Exponents = {}
    for (branch_place, branch), end in zip(cut.branches, cut.ends):
        if branch_place == place:
            found = _walk(block, end, f'{name}.'.lstrip('.'))
            if not all(any(f'{tensor}.'.startswith(f'{own}.') for own in branch.owned) for tensor in found):
                raise _no_end(name, block)  # what else uses it would be scaled, too
            exponents.update(found)
    return exponents


def _exponents_by_hand(name: str, block: StochasticBlock) -> Exponents:
    names = block.last_norm, getattr(block, 'attention', '')
    exponents: Exponents = {}
    for child_name in names[::-1]:
        child = getattr(block, child_name) if child_name else None
        if child is not None:
            exponents.update(_exponents_of(child, child_name, f'{name}.'.lstrip('.')) or {})
    return exponents


def _walk(root: nn.Module, node: Any, path: str) -> Exponents:
    """Follow a result back to what it was multiplied with last."""
    exponents: Exponents = {}
    while isinstance(node, fx.Node):
        name = str(getattr(node.target, '__name__', node.target))
        if node.op == 'call_module':
            child = root.get_submodule(name)
            found = _exponents_of(child, name, path)
            exponents.update(found or {})
            if found is not None and type(child) not in GATE_INPUT_LAYERS:
                return exponents
        elif name in _PRODUCTS:
            parameters = [p for p in map(_parameter_of, node.args) if p]
            if parameters:
                return {**exponents, parameters[0]: 1}
            factors = [n for n in node.args if not is_size(n)]
            if len(factors) > 1:
                break
            node = factors[0]
            continue
        elif name not in _RESHAPES:
            break
        node = node.all_input_nodes[0]
    raise _no_end(path.rstrip('.'), root)


def _exponents_of(module: nn.Module, name: str, path: str) -> Optional[Exponents]:
    """The tensors of a module that a factor on its result goes into, None if it is to be looked for before it."""
    if isinstance(module, _IDENTITIES) or getattr(module, 'drop_prob', None) is not None:
        return None
    if type(module) in GATE_INPUT_LAYERS:
        return {f'{name}.{GATE_INPUT_LAYERS[type(module)]}.weight': -1}
    if isinstance(module, (*SCALING_LAYERS, *_NORMS)) or type(module) in _LINEAR_LAYERS:
        tensors = [n for n, p in module.named_parameters(recurse=False)]
        has_activation = not isinstance(getattr(module, 'act', nn.Identity()), nn.Identity)
        if not tensors or has_activation:
            raise ValueError(f'{path}{name} must have a weight and no activation to be folded, but is {module}.')
        return {f'{name}.{tensor}': 1 for tensor in tensors}
    if isinstance(module, (_ConvNd, nn.Linear)):
        raise _no_end(f'{path}{name}', module)  # a subclass may normalize its weight
    try:
        if isinstance(module, nn.Sequential):
            return _last_of(module, name, path)
        graph = trace_forward(module, type(module), (), required_arguments(type(module)))
        inner = _walk(module, next(n for n in graph.nodes if n.op == 'output').args[0], f'{path}{name}.')
    except (NotCuttable, ValueError) as e:
        raise _no_end(f'{path}{name}', module) from e
    return {f'{name}.{tensor}': exponent for tensor, exponent in inner.items()}


def _last_of(module: nn.Sequential, name: str, path: str) -> Optional[Exponents]:
    exponents: Exponents = {}
    for child_name, child in reversed(module._modules.items()):
        assert child is not None
        found = _exponents_of(child, child_name, f'{path}{name}.')
        exponents.update({f'{name}.{tensor}': exponent for tensor, exponent in (found or {}).items()})
        if found is not None and type(child) not in GATE_INPUT_LAYERS:
            return exponents
    return None


def _parameter_of(node: Any) -> str:
    while isinstance(node, fx.Node) and node.op in ('call_method', 'call_function') and node.all_input_nodes:
        if str(getattr(node.target, '__name__', node.target)) not in (*_RESHAPES, 'unsqueeze'):
            return ''
        node = node.all_input_nodes[0]
    return str(node.target) if isinstance(node, fx.Node) and node.op == 'get_attr' else ''


def _no_end(path: str, module: nn.Module) -> ValueError:
    return ValueError(
        f'{path} must be one of {", ".join(c.__name__ for c in GATE_INPUT_LAYERS)}, or end in a scale, a norm, a linear'
        f' layer or a convolution to be folded, but is a {type(module).__name__}.')
