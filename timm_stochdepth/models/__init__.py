"""The registered models: timm's residual networks with stochastic depth, for `timm.create_model`.

Each is an entrypoint here, too, as in timm: `timm_stochdepth.models.resnet50_sd_block()`.
"""
from typing import Any

from timm.models import is_model, model_entrypoint

from ..zoo.names import is_stochastic_architecture
from . import saved_config as saved_config
from . import stochastic_depth as stochastic_depth


def __getattr__(name: str) -> Any:  # of thousands of names, which `dir` need not list
    if is_model(name) and is_stochastic_architecture(name):
        return model_entrypoint(name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
