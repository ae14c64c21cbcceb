"""Modules that are a leaf for every FX tracer, whether it knows them or not."""
from typing import Any, Dict, Tuple

from torch import fx, nn

__all__ = ['as_leaf', 'is_traced']


def is_traced(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Whether a module is called by an FX tracer."""
    return any(isinstance(a, fx.Proxy) for a in (*args, *kwargs.values()))


def as_leaf(module: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """The call of a module by a tracer, for which it is a leaf, so that no decision is frozen into a graph."""
    proxy: Any = next(a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy))
    return proxy.tracer.create_proxy('call_module', proxy.tracer.path_of_module(module), args, kwargs)
