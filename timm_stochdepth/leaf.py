"""Modules that are a leaf for every FX tracer, whether it knows them or not."""
import warnings
from typing import Any, Dict, Tuple

from torch import fx, nn

__all__ = ['as_leaf', 'as_whole_block', 'is_traced']


def is_traced(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Whether a module is called by an FX tracer."""
    return any(isinstance(a, fx.Proxy) for a in (*args, *kwargs.values()))


def as_leaf(module: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """The call of a module by a tracer, for which it is a leaf, so that no decision is frozen into a graph."""
    proxy: Any = next(a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy))
    return proxy.tracer.create_proxy('call_module', proxy.tracer.path_of_module(module), args, kwargs)


def as_whole_block(block: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """The same for a block that decides in Python what to compute, which a pass over the graph may not expect."""
    warnings.warn(
        f'A graph that is traced in training holds {type(block).__name__} as a whole, since its stochastic depth'
        ' decides in Python what to compute. A pass that works on what is inside (quantization, fusion) finds nothing'
        ' there: give it model.eval(), or fold_stochastic_depth(model).', stacklevel=4)
    return as_leaf(block, args, kwargs)
