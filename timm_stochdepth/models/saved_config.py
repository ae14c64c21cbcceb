"""Complete what timm's save_for_hf writes of stochastic networks, so that timm and transformers rebuild them.

timm 1.0.31 leaves drop rates out of `model_args`, unless they are given: the network would be rebuilt with its default
rate, another function. The number of classes it writes there and at the top, and reads it from the top alone, whereas
transformers passes both to create_model. Other networks are written as before.
"""
from typing import Any, Dict, List, Optional

from timm.models import _hub
from torch import nn

__all__: List[str] = []  # what it says to timm is all that it does

_timms_get_model_args = getattr(_hub, 'get_model_args', None)  # of a later timm nothing is known


def _get_model_args(model: nn.Module, overrides: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    from ..inspection import drop_paths, stochastic_depth_args  # not for names alone

    assert _timms_get_model_args is not None
    is_stochastic = any(drop_paths(model))
    if is_stochastic and hasattr(model, 'plain_architecture'):
        overrides = {**stochastic_depth_args(model), **(overrides or {})}
    model_args = _timms_get_model_args(model, overrides)
    if is_stochastic or hasattr(model, 'folded_drop_rates'):
        model_args.pop('num_classes', None)
    return model_args


if _timms_get_model_args is not None:
    _hub.get_model_args = _get_model_args
