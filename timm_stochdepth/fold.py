"""Folding: inference with `shortcut + (1 - p) * branch` is inference of a plain network with other weights.

The factor goes into the weight and bias of the branch's last norm. Where an attention layer follows, its gate has to
see what it saw before, so that the factor is taken out again in the gate's first layer.
"""
from collections import OrderedDict
from copy import deepcopy
from typing import Callable, Dict, Mapping

import timm.layers
from torch import Tensor, nn

from .blocks import StochasticBlock
from .surgery import set_training_progress, stochastic_blocks

__all__ = ['as_weights_of', 'fold_plain_weights', 'fold_stochastic_depth', 'start_warmup']

# attention layers that multiply their input with a gate, and the first layer of that gate, linear in the input
_GATE_INPUT_LAYERS = {
    timm.layers.SEModule: 'fc1',
    timm.layers.EffectiveSEModule: 'fc',
    timm.layers.EcaModule: 'conv',
    timm.layers.CecaModule: 'conv',
}


def _branch_exponents(name: str, block: StochasticBlock) -> Dict[str, int]:
    """Tensors of a block that a factor on its branch goes into, and the factor's exponent in each."""
    norm = getattr(block, block.last_norm)
    if getattr(norm, 'weight', None) is None or not isinstance(getattr(norm, 'act', nn.Identity()), nn.Identity):
        raise ValueError(f'{name}.{block.last_norm} must have a weight and no activation to be folded, but is {norm}.')
    exponents = {f'{block.last_norm}.weight': 1, f'{block.last_norm}.bias': 1}
    attention = getattr(block, block.attention) if block.attention else None
    if attention is not None:
        if type(attention) not in _GATE_INPUT_LAYERS:
            raise ValueError(
                f'{name}.{block.attention} must be one of {", ".join(c.__name__ for c in _GATE_INPUT_LAYERS)} to be'
                f' folded, but is a {type(attention).__name__}.')
        exponents[f'{block.attention}.{_GATE_INPUT_LAYERS[type(attention)]}.weight'] = -1
    return exponents


def as_weights_of(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """A state_dict whose metadata says that it holds weights for the very kind of network that model is."""
    marked: Dict[str, Tensor] = OrderedDict(state_dict)
    marked._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    return marked


def _scale_branches(
        state_dict: Mapping[str, Tensor],
        model: nn.Module,
        factor_of: Callable[[str, StochasticBlock], float],
) -> Dict[str, Tensor]:
    """A state_dict for model, in which the branch of every stochastic block is scaled by a factor."""
    scaled = as_weights_of(model, state_dict)
    for name, block in stochastic_blocks(model):
        factor = factor_of(name, block)
        if factor == 1.:
            continue
        for key, exponent in _branch_exponents(name, block).items():
            key = f'{name}.{key}' if name else key
            # a branch of zeros needs nothing taken out of its gate
            if key in scaled and not (factor == 0. and exponent < 0):
                scaled[key] = scaled[key] * factor ** exponent
    return scaled


def fold_stochastic_depth(model: nn.Module) -> nn.Module:
    """A plain copy of a model, with the same output at inference: no stochastic blocks, no dependency on this package.

    Args:
        model: Model with stochastic blocks; it is left as it is.

    Returns:
        A model of plain blocks, whose state_dict loads strictly into the plain timm or torchvision model.

    Raises:
        ValueError: The last norm of a branch cannot take the rate up, or an attention layer follows it that is not
            a plain gate (squeeze-excite and the ECA family can be folded).
    """
    folded = deepcopy(model)
    folded.load_state_dict(_scale_branches(folded.state_dict(), folded, lambda _, block: block.inference_scale()))
    for _, block in list(stochastic_blocks(folded)):
        block.restore_plain_class()
    plain_architecture = getattr(folded, 'plain_architecture', None)
    if isinstance(plain_architecture, str):  # a registered model: what is saved from now on names timm's model
        for cfg in ('pretrained_cfg', 'default_cfg'):
            setattr(folded, cfg, {**getattr(folded, cfg), 'architecture': plain_architecture})
    return folded


def fold_plain_weights(state_dict: Mapping[str, Tensor], model: nn.Module) -> Dict[str, Tensor]:
    """Weights of a plain network, as model needs them to compute the same at inference, at the rates now in force.

    Args:
        state_dict: Weights made for the plain network; left as they are.
        model: Model with stochastic blocks that they shall be loaded into.

    Raises:
        ValueError: A block is always dropped, at a rate of 1: no weights make its branch count.
    """
    def factor(name: str, block: StochasticBlock) -> float:
        scale = block.inference_scale()
        if scale == 0.:
            raise ValueError(
                f'drop_rate must be below 1 to fold weights of a plain network, but {name} is dropped with'
                f' probability {block.drop_prob}: use a lower rate, or scale_by_keep=True.')
        return 1. / scale
    return _scale_branches(state_dict, model, factor)


def start_warmup(model: nn.Module) -> None:
    """Set the progress of training to 0, and the weights so that the model computes at inference what it computed.

    To be called once, after weights are loaded and before a training run with `drop_warmup`. Without it, weights that
    were right at the full rate would be scaled by the rate at the start, which is 0. Drop rates without a warm-up and
    their weights stay as they are.
    """
    scales = {name: block.inference_scale() for name, block in stochastic_blocks(model)}
    set_training_progress(model, 0.)
    model.load_state_dict(
        _scale_branches(model.state_dict(), model, lambda name, block: scales[name] / block.inference_scale()))
