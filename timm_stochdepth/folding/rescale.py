"""Rescale branches so that a network computes the same at other inference factors.

A branch's factor at inference is `1 - p` of its block, 1 in a plain network and with `scale_by_keep`. Weights that were
trained for the factor s, in a network that has the factor t, need s / t in the weight and bias of the branch's last
norm. Where an attention layer follows, its gate has to see what it saw before, so that the factor is taken out again in
the gate's first layer.
"""
from collections import OrderedDict
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..checkpoints.names import strip_name
from ..inspection import drop_paths, inference_factors
from .branch_end import branch_exponents

__all__ = [
    'as_weights_of', 'check_names', 'fold_weights', 'multiply', 'own_rescaling', 'rescaling', 'weights_at_full_rate']

# a block's name, a tensor of it, and what that is to be multiplied with
Rescaling = List[Tuple[str, Tensor, float]]


def _factor_of(factors: Mapping[str, float], name: str) -> float:
    # factors have been noted by the names of blocks, too
    return factors.get(name, factors.get(name.rpartition('.')[0], 1.))


def as_weights_of(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """A state_dict whose metadata says that it holds weights for the very kind of network that model is.

    Norms' counters of batches, which inference has no use for and some files lack, are those of model.
    """
    own: Any = model.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith('.num_batches_tracked')}
    marked: Any = OrderedDict({**counters, **state_dict})
    marked._metadata = own._metadata
    return marked


class _Sharing:
    """Who else has a tensor: a factor on it would be one there.

    Args:
        model: A network.
        blocks: Its stochastic blocks, by their names.
    """

    def __init__(self, model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
        self.owners: Dict[Tensor, List[str]] = {}
        for name, module in model.named_modules():
            for tensor in {*module._parameters.values(), *module._buffers.values()} - {None}:
                self.owners.setdefault(tensor, []).append(name)
        self.blocks: Dict[Tensor, List[str]] = {}
        for name, block in blocks.items():
            for tensor in (*block.parameters(), *block.buffers()):
                self.blocks.setdefault(tensor, []).append(name)

    def others(self, tensor: Tensor, name: str) -> List[str]:
        """Names of the modules that have a tensor if these are several, else of blocks that have its module.

        Args:
            tensor: A tensor of a block.
            name: That block's name; those that it is within, or that are within it, are not meant.
        """
        def is_within(inner: str, outer: str) -> bool:
            return not outer or f'{inner}.'.startswith(f'{outer}.')

        owners = self.owners.get(tensor, [])
        return owners if len(owners) > 1 else [
            n for n in self.blocks.get(tensor, []) if not is_within(n, name) and not is_within(name, n)]


def rescaling(
        model: nn.Module,
        drop_paths: Sequence[Tuple[str, nn.Module]],
        trained: Mapping[str, float],
        factors: Mapping[str, float],
) -> Rescaling:
    """What makes branches right for inference factors that they were not trained for.

    Args:
        model: The network.
        drop_paths: Names of drop paths in it, and the stochastic blocks that have them.
        trained: Factors that the weights are right for, by the name of the drop path or block; 1 if not named.
        factors: Factors that they shall be right for, alike.

    Raises:
        ValueError: A factor is 0 and the trained one is not, or the branch ends in nothing that can be scaled, or in
            what another one ends in.
    """
    found: Rescaling = []
    seen: Dict[Tensor, str] = {}
    sharing = _Sharing(model, {full_name.rpartition('.')[0]: block for full_name, block in drop_paths})
    for full_name, block in drop_paths:
        name, _, drop_path_name = full_name.rpartition('.')
        before, after = _factor_of(trained, full_name), _factor_of(factors, full_name)
        if before == after:
            continue
        if after == 0.:
            raise ValueError(
                f'drop_rate must be below 1 to fold weights that were trained for a lower one, but {name} is dropped'
                ' with probability 1.0: use a lower rate, or scale_by_keep=True.')
        for tensor, exponent in branch_exponents(name, block, drop_path_name).items():
            others = sharing.others(tensor, name) or [n for n in [seen.setdefault(tensor, full_name)] if n != full_name]
            if others:
                raise ValueError(
                    f'{full_name} must have weights of its own at the end of its branch to be folded, but shares them'
                    f' with {" and ".join(others)}: a factor on the one would be one on the other.')
            # a branch of zeros needs nothing taken out of its gate
            found.append((name, tensor, 1. if before == 0. and exponent < 0 else (before / after) ** exponent))
    return found


def own_rescaling(model: nn.Module, trained: Mapping[str, float], factors: Mapping[str, float]) -> Rescaling:
    """`rescaling` of all drop paths that a model has."""
    blocks = [(name, model.get_submodule(name.rpartition('.')[0])) for name, _ in drop_paths(model)]
    return rescaling(model, blocks, trained, factors)


def multiply(rescaling: Rescaling) -> None:
    """Rescale tensors in place: what wraps a network may give and take a state_dict of its own."""
    with torch.no_grad():
        for _, tensor, factor in rescaling:
            tensor.mul_(factor)


def _scaled_weights(
        state_dict: Mapping[str, Tensor],
        model: nn.Module,
        trained: Mapping[str, float],
        factors: Mapping[str, float],
) -> Dict[str, Tensor]:
    """A state_dict for model that is right for inference factors; a ValueError if it lacks what has to be scaled."""
    scaled = as_weights_of(model, state_dict)
    keys: Dict[Tensor, List[str]] = {}
    own: Any = model.state_dict(keep_vars=True)
    for key, tensor in own.items():
        keys.setdefault(tensor, []).append(key)
    for name, tensor, factor in own_rescaling(model, trained, factors):
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


def check_names(model: nn.Module, trained: Mapping[str, float]) -> None:
    """Refuse factors of other branches than those of a model; a ValueError."""
    names = [name for name, _ in drop_paths(model)]
    known = {*names, *(name.rpartition('.')[0] for name in names)}
    missing = [name for name, factor in trained.items() if factor != 1. and name not in known]
    if missing:
        raise ValueError(
            f'model must have stochastic depth in the blocks whose weights were trained with it, {", ".join(missing)},'
            f' but has it in {", ".join(names) or "none"}.')


def fold_weights(
        state_dict: Mapping[str, Tensor],
        model: nn.Module,
        trained: Mapping[str, float],
) -> Dict[str, Tensor]:
    """Weights from elsewhere, as model needs them at the rates in force to compute what they computed there.

    Args:
        state_dict: Weights of a network like model, but for its drop rates; left as they are.
        model: Model with stochastic depth.
        trained: The inference factors where the weights come from, by name; 1, as in a plain network, if not named.

    Raises:
        ValueError: A block of model is always dropped, at a rate of 1, or the factors are those of another network.
    """
    check_names(model, trained)
    return _scaled_weights(state_dict, model, trained, inference_factors(model))


def weights_at_full_rate(model: nn.Module) -> Dict[str, Tensor]:
    """A model's weights for its full rates, with which they compute what the model computes at the rates in force.

    In the middle of a warm-up both differ, and a file says the full rates alone. A full rate of 1 is a ValueError.
    """
    full = inference_factors(model, full=True)
    weights: Any = _scaled_weights(model.state_dict(), model, inference_factors(model), full)
    for name, factor in full.items():
        weights._metadata[name].update(inference_scale=factor)
    return weights
