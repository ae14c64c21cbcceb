"""Fold a model into a plain copy, with the drop rates in its weights."""
from torch import nn

from ..inspection import drop_paths, drop_rates, inference_factors
from ..layers.install import remove_stochastic_depth
from .computed_tensors import copy_plain
from .plain_names import make_config_plain
from .rescale import multiply, own_rescaling

__all__ = ['fold_stochastic_depth']


def fold_stochastic_depth(model: nn.Module) -> nn.Module:
    """A plain copy of a model, with the same output at inference: no stochastic blocks, no dependency on this package.

    Args:
        model: Model with stochastic blocks, or what holds such networks, a LightningModule for instance; it is left as
            it is.

    Returns:
        A model of plain blocks, whose state_dict loads strictly into the plain timm or torchvision model. What pruning
        and parametrizations compute are parameters of it. Attributes and configurations that name networks of this
        package, wherever in it, name timm's. What it was trained with stays known as its attribute `folded_drop_rates`,
        by module name, and as that of each network of timm in it; the settings as `folded_settings`.

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
    factors = inference_factors(model)
    folded = copy_plain(model)
    networks = [module for module in folded.modules() if any(drop_paths(module))]
    multiply(own_rescaling(folded, factors, {}))
    for network in networks:
        if network is folded or 'pretrained_cfg' in vars(network):  # the inner ones last: wrappers write to them
            network.folded_drop_rates = drop_rates(network)  # type: ignore[assignment]
            network.folded_settings = next(drop_path.settings for _, drop_path in drop_paths(network))  # type: ignore
    remove_stochastic_depth(folded)
    for network in networks:
        make_config_plain(network)
    return folded
