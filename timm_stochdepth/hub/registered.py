"""The network of this package's names that a plain network with stochastic depth is."""
from math import isclose
from typing import Any, Dict

import timm
from timm.models import get_model_args
from torch import nn

from ..folding.rescale import weights_at_full_rate
from ..inspection import drop_paths, stochastic_depth_args
from ..zoo.names import stochastic_name
from .card import full_drop_rates
from .folder import check_is_built
from .named_models import create_model

__all__ = ['registered_network']


def registered_network(model: nn.Module) -> nn.Module:
    """The network of this package's name that is a plain one with stochastic depth: of the same weights and rates.

    Args:
        model: A network of timm that `apply_stochastic_depth` was called on.

    Raises:
        ValueError: There is no such name, or its arguments do not say this stochastic depth.
    """
    plain_cfg: Any = model.pretrained_cfg
    method = next(drop_path.settings.stochastic_method for _, drop_path in drop_paths(model))
    name = stochastic_name(plain_cfg['architecture'], method)
    if not timm.is_model(name):
        raise ValueError(
            f'keep_stochastic_depth must be False for {plain_cfg["architecture"]} with the {method} method: there is no'
            f' {name}.')
    model_args = _at_requested_rate(name, model, {**get_model_args(model), **stochastic_depth_args(model)})
    check_is_built(create_model(name, model_args, on_meta=True), model)
    built: Any = create_model(name, model_args)
    built.to(next(model.parameters()).dtype).load_state_dict(weights_at_full_rate(model))
    built.pretrained_cfg = {**plain_cfg, 'architecture': name}
    return built.train(model.training)


def _at_requested_rate(name: str, model: nn.Module, model_args: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments with the drop rate that was asked for, which no block of some families reaches."""
    rate = model_args['drop_path_rate']
    found, built = (max(full_drop_rates(m).values()) for m in (model, create_model(name, model_args, on_meta=True)))
    rate = min(1., rate * found / built) if built else rate
    rounded = round(rate, 6)  # timm computes rates in single precision
    return {**model_args, 'drop_path_rate': rounded if isclose(rate, rounded, rel_tol=1e-6) else rate}
