"""Complete what timm's save_for_hf writes of stochastic networks, so that timm and transformers rebuild them.

timm 1.0.31 leaves drop rates out of `model_args`, unless they are given: the network would be rebuilt with its default
rate, another function. The number of classes it writes there and at the top, and reads it from the top alone, whereas
transformers passes both to create_model. Other networks are written as before.

A network that was given stochastic depth keeps its plain name, by which timm would rebuild it without. Where that is
another function at inference, it is refused.
"""
from typing import Any, Dict, List, Optional

from timm.models import _hub
from torch import nn

__all__: List[str] = []  # what it says to timm is all that it does

_timms_get_model_args = getattr(_hub, 'get_model_args', None)  # of a later timm nothing is known


def _get_model_args(model: nn.Module, overrides: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    from ..inspection import drop_paths, inference_factors, stochastic_depth_args  # not for names alone
    from ..zoo.names import is_stochastic_architecture

    assert _timms_get_model_args is not None
    is_stochastic = any(drop_paths(model))
    if is_stochastic:
        cfg: Any = model.pretrained_cfg
        name = cfg['architecture']
        if is_stochastic_architecture(name):
            overrides = {**stochastic_depth_args(model), **(overrides or {})}
        elif any(factor != 1. for factor in inference_factors(model).values()):
            raise ValueError(
                f'model must be plain at inference to be saved under the plain name {name}, by which timm rebuilds it,'
                ' but scales its branches there: save fold_stochastic_depth(model), or push it with'
                ' timm_stochdepth.push_to_hub(model, ...), which folds it.')
    model_args = _timms_get_model_args(model, overrides)
    if is_stochastic or hasattr(model, 'folded_drop_rates'):
        model_args.pop('num_classes', None)
    return model_args


if _timms_get_model_args is not None:
    _hub.get_model_args = _get_model_args
