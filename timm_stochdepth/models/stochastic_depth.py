"""Register `NAME_sd_sample` and `NAME_sd_block` for timm's networks that can have them.

The names are registered at the end of an import of timm, which a part of this package may wait for: no network is built
to find them, and what networks need is imported when one is made.
"""
import sys
from dataclasses import replace
from typing import Any, Callable, Dict, List, Optional

from timm.models import DefaultCfg, register_model
from torch import nn

from ..zoo.exceptions import methods_of
from ..zoo.names import stochastic_name, timm_modules

__all__: List[str] = []  # what register_model adds is taken out again: the names are no attributes here

default_cfgs: Dict[str, DefaultCfg] = {}  # where register_model looks for the pretrained tags of a name


def _default_cfg(plain_name: str, module: str) -> Optional[DefaultCfg]:
    """timm's pretrained tags of a network, with the repository of each spelled out."""
    plain = getattr(sys.modules[module], 'default_cfgs', {}).get(plain_name)
    if plain is None:
        return None
    cfgs = {
        tag: replace(cfg, hf_hub_id=f'timm/{plain_name}.{tag}' if tag else f'timm/{plain_name}')
        if cfg.hf_hub_id == 'timm/' else cfg
        for tag, cfg in plain.cfgs.items()}
    return DefaultCfg(tags=plain.tags.copy(), cfgs=cfgs, is_pretrained=plain.is_pretrained)


def _entrypoint(plain_name: str, method: str) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        from .create import create_stochastic

        return create_stochastic(plain_name, method, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = stochastic_name(plain_name, method)
    entrypoint.__doc__ = f"timm's {plain_name} with stochastic depth, by the {method} method."
    return entrypoint


def _register_models() -> None:
    for plain_name, module in timm_modules().items():
        methods = methods_of(plain_name, module)
        cfg = _default_cfg(plain_name, module) if methods else None
        for method in methods:
            entrypoint = _entrypoint(plain_name, method)
            if cfg is not None:
                default_cfgs[entrypoint.__name__] = cfg
            register_model(entrypoint)
            __all__.clear()


_register_models()
