"""What timm's save_for_hf writes of networks with stochastic depth, so that transformers loads it, too."""
from functools import wraps
from typing import Any, Callable, Dict, List

from timm.models import _hub
from torch import nn

from ..places import drop_paths

__all__: List[str] = []  # what it says to timm is all that it does


def _leave_num_classes_at_the_top() -> None:
    """Have timm write the number of classes once: transformers passes it to create_model beside `model_args`.

    timm 1.0.31 writes it into `model_args`, too, and reads it from the top alone. Other networks are written as before.
    """
    get_model_args: Callable[..., Dict[str, Any]] = _hub.get_model_args

    @wraps(get_model_args)
    def without_num_classes(model: nn.Module, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        model_args = get_model_args(model, *args, **kwargs)
        if any(drop_paths(model)) or hasattr(model, 'folded_drop_rates'):
            model_args.pop('num_classes', None)
        return model_args

    _hub.get_model_args = without_num_classes


if hasattr(_hub, 'get_model_args'):  # of a later timm nothing is known
    _leave_num_classes_at_the_top()
