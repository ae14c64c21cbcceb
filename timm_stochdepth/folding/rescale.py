"""What a branch is multiplied with at inference, and weights for other scales with which the function stays the same.

The scale is `1 - p` of its block, 1 in a plain network and with `scale_by_keep`. Weights that were trained for the
scale s, in a network that has the scale t, need the factor s / t in the weight and bias of the branch's last norm.
Where an attention layer follows, its gate has to see what it saw before, so that the factor is taken out again in the
gate's first layer.
"""
from collections import OrderedDict
from typing import Any, Dict, Iterator, List, Mapping, Tuple

import torch
from torch import Tensor, nn

from ..checkpoints.names import strip_name
from ..inspection import drop_paths, inference_scales
from .branch_end import branch_exponents

__all__ = ['as_weights_of', 'fold_weights', 'scale_branches', 'scale_own_branches', 'weights_at_full_rate']


def _scale_of(scales: Mapping[str, float], name: str) -> float:
    # scales have been noted by the names of blocks, too
    return scales.get(name, scales.get(name.rpartition('.')[0], 1.))


def as_weights_of(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """A state_dict whose metadata says that it holds weights for the very kind of network that model is.

    Norms' counters of batches, which inference has no use for and some files lack, are those of model.
    """
    own: Any = model.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith('.num_batches_tracked')}
    marked: Any = OrderedDict({**counters, **state_dict})
    marked._metadata = own._metadata
    return marked


def _factors(
        model: nn.Module,
        trained_scales: Mapping[str, float],
        scales: Mapping[str, float],
) -> Iterator[Tuple[str, Tensor, float]]:
    """Names of blocks, tensors of theirs, and factors that make a branch right for its scale and not the trained one.

    Raises:
        ValueError: A scale is 0 and the trained one is not.
    """
    for place_name, _ in drop_paths(model):
        trained_scale, scale = _scale_of(trained_scales, place_name), _scale_of(scales, place_name)
        name, _, place = place_name.rpartition('.')
        if trained_scale == scale:
            continue
        if scale == 0.:
            raise ValueError(
                f'drop_rate must be below 1 to fold weights that were trained for a lower one, but {name} is dropped'
                ' with probability 1.0: use a lower rate, or scale_by_keep=True.')
        factor = trained_scale / scale
        for tensor, exponent in branch_exponents(name, model.get_submodule(name), place).items():
            # a branch of zeros needs nothing taken out of its gate
            yield name, tensor, 1. if factor == 0. and exponent < 0 else factor ** exponent


def scale_branches(
        state_dict: Mapping[str, Tensor],
        model: nn.Module,
        trained_scales: Mapping[str, float],
        scales: Mapping[str, float],
) -> Dict[str, Tensor]:
    """A state_dict for model, in which the branch of each block is right for its scale, and was for the trained one.

    Raises:
        ValueError: A tensor that is to be scaled is not there, or a scale is 0 and the trained one is not.
    """
    scaled = as_weights_of(model, state_dict)
    keys: Dict[Tensor, List[str]] = {}
    own: Any = model.state_dict(keep_vars=True)
    for key, tensor in own.items():
        keys.setdefault(tensor, []).append(key)
    for name, tensor, factor in _factors(model, trained_scales, scales):
        if tensor not in keys:
            raise ValueError(
                f'model.state_dict() must hold the tensors of {name} to fold them, but lacks one of shape'
                f' {tuple(tensor.shape)}.')
        for own_key in keys[tensor]:
            key = own_key if own_key in scaled else strip_name(own_key)
            if key in scaled:
                scaled[key] = scaled[key] * factor
            elif '.aux_bn.' not in key:  # of a split BatchNorm: they only train, and files have none
                raise ValueError(f'state_dict must hold {key}, which has to be scaled to fold it, but lacks it.')
    return scaled


def scale_own_branches(
        model: nn.Module,
        trained_scales: Mapping[str, float],
        scales: Mapping[str, float],
) -> None:
    """The same for the weights that a model has, in place: what wraps it may give and take a state_dict of its own."""
    factors = list(_factors(model, trained_scales, scales))  # all of them, or none
    with torch.no_grad():
        for _, tensor, factor in factors:
            tensor.mul_(factor)


def fold_weights(
        state_dict: Mapping[str, Tensor],
        model: nn.Module,
        trained_scales: Mapping[str, float],
) -> Dict[str, Tensor]:
    """Weights from elsewhere, as model needs them to compute at inference what they computed there.

    Args:
        state_dict: Weights of a network like model, but for its drop rates; left as they are.
        model: Model with stochastic blocks that they shall be loaded into; the rates in force count.
        trained_scales: What each block's branch was multiplied with at inference where the weights come from, by
            module name; 1, as in a plain network, for those that are not named.

    Raises:
        ValueError: A block of model is always dropped, at a rate of 1: no weights make its branch count. Or the scales
            are those of another network, with other blocks.
    """
    names = [name for name, _ in drop_paths(model)]
    known = {*names, *(name.rpartition('.')[0] for name in names)}
    missing = [name for name, scale in trained_scales.items() if scale != 1. and name not in known]
    if missing:
        raise ValueError(
            f'model must have stochastic depth in the blocks whose weights were trained with it, {", ".join(missing)},'
            f' but has it in {", ".join(names) or "none"}.')
    return scale_branches(state_dict, model, trained_scales, inference_scales(model))


def weights_at_full_rate(model: nn.Module) -> Dict[str, Tensor]:
    """A model's weights for its full rates, with which they compute what the model computes at the rates in force.

    In the middle of a warm-up both differ, and a file says the full rates alone.

    Raises:
        ValueError: The full rate of a block is 1, and the one in force is not: no weights make its branch count.
    """
    full_scales = inference_scales(model, full=True)
    weights: Any = scale_branches(model.state_dict(), model, inference_scales(model), full_scales)
    for name, scale in full_scales.items():
        weights._metadata[name].update(inference_scale=scale)
    return weights
