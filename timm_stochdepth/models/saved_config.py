"""Complete what timm's save_for_hf writes of stochastic networks, so that timm and transformers rebuild them."""
from functools import wraps
from typing import Any, Callable, Dict, List, Optional

from timm.models import _hub
from torch import nn

__all__: List[str] = []  # what it says to timm is all that it does


def _write_what_rebuilds_the_network() -> None:
    """Have timm write the settings of a registered network, and the number of classes once.

    timm 1.0.31 leaves drop rates out of `model_args`, unless they are given: the network would be rebuilt with its
    default rate, another function. The number of classes it writes there and at the top, and reads it from the top
    alone, whereas transformers passes both to create_model. Other networks are written as before.
    """
    get_model_args: Callable[..., Dict[str, Any]] = _hub.get_model_args

    @wraps(get_model_args)
    def get_args(model: nn.Module, overrides: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        from ..inspection import drop_paths, stochastic_depth_args  # not for names alone

        is_stochastic = any(drop_paths(model))
        if is_stochastic and hasattr(model, 'plain_architecture'):
            overrides = {**stochastic_depth_args(model), **(overrides or {})}
        model_args = get_model_args(model, overrides)
        if is_stochastic or hasattr(model, 'folded_drop_rates'):
            model_args.pop('num_classes', None)
        return model_args

    _hub.get_model_args = get_args


if hasattr(_hub, 'get_model_args'):  # of a later timm nothing is known
    _write_what_rebuilds_the_network()
