"""Folding: a plain copy of a model, with the drop rates in its weights."""
from typing import Any

from torch import nn

from .places import drop_paths, drop_rates, stochastic_depth_args
from .reparametrized import copy_plain
from .scales import inference_scales, scale_branches
from .surgery import remove_stochastic_depth

__all__ = ['fold_stochastic_depth']


def fold_stochastic_depth(model: nn.Module) -> nn.Module:
    """A plain copy of a model, with the same output at inference: no stochastic blocks, no dependency on this package.

    Args:
        model: Model with stochastic blocks; it is left as it is.

    Returns:
        A model of plain blocks, whose state_dict loads strictly into the plain timm or torchvision model. What pruning
        and parametrizations compute are parameters of it. What it was trained with stays known as its attribute
        `folded_drop_rates`, by module name.

    Raises:
        TypeError: model is no module.
        ValueError: The last norm of a branch cannot take the rate up, or an attention layer follows it that is not
            a plain gate (squeeze-excite and the ECA family can be folded).

    Example:
        >>> import timm
        >>> model = timm.create_model('resnet50_sd_block', num_classes=10)
        >>> plain = fold_stochastic_depth(model)
        >>> timm.create_model('resnet50', num_classes=10).load_state_dict(plain.state_dict())
        <All keys matched successfully>
    """
    scales = inference_scales(model)
    folded = copy_plain(model)
    folded.load_state_dict(scale_branches(folded.state_dict(), folded, scales, {}))
    if not any(drop_paths(folded)):
        return folded
    settings = stochastic_depth_args(folded)
    folded.folded_drop_rates = drop_rates(folded)  # type: ignore[assignment]
    remove_stochastic_depth(folded)
    plain_architecture = getattr(folded, 'plain_architecture', None)
    if isinstance(plain_architecture, str):  # a registered model: what is saved from now on names timm's model
        for cfg in ('pretrained_cfg', 'default_cfg'):
            setattr(folded, cfg, {**getattr(folded, cfg), 'architecture': plain_architecture})
        # what timm noted of how it was made, and writes to config.json
        model_args: Any = folded._model_args
        folded._model_args = {  # type: ignore[assignment]
            k: v for k, v in model_args.items() if k not in settings and k != 'fold_pretrained'}
    return folded
