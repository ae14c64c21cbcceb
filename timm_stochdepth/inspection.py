"""Inspect a model: its drop paths, their rates and settings, and what branches are multiplied with at inference."""
from typing import Any, Dict, Iterator, List, Tuple

from torch import nn

from .layers.drop_path import StochasticDropPath
from .messages import shown, warn_user

__all__ = ['blocks_by_name', 'drop_paths', 'drop_rates', 'inference_factors', 'stochastic_depth_args']


def drop_paths(model: nn.Module) -> Iterator[Tuple[str, StochasticDropPath]]:
    """Names and modules of a model's drop paths, in the order that they were registered in.

    Raises:
        TypeError: model is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f'model must be a torch.nn.Module, but got {shown(model, with_type=True)}.')
    return ((name, m) for name, m in model.named_modules() if isinstance(m, StochasticDropPath))


def blocks_by_name(model: nn.Module) -> Iterator[Tuple[str, StochasticDropPath]]:
    """Drop paths by the names of their blocks; by their own where those of a block have different rates."""
    blocks: Dict[str, List[Tuple[str, StochasticDropPath]]] = {}
    for name, drop_path in drop_paths(model):
        blocks.setdefault(name.rpartition('.')[0], []).append((name, drop_path))
    for block_name, of_block in blocks.items():
        if len({(d.depth_scale, d.unscheduled_rate(), d.drop_prob) for _, d in of_block}) == 1:
            yield block_name, of_block[0][1]
        else:
            yield from of_block


def drop_rates(model: nn.Module) -> Dict[str, float]:
    """Drop rate now in force of each stochastic block, in forward order.

    Args:
        model: Any model; without stochastic depth there are no rates.

    Returns:
        Probabilities in [0, 1], by the block's name in the model. Drop paths of one block that have different rates
        are listed by their own names.

    Raises:
        TypeError: model is no module.
    """
    return {name: drop_path.drop_prob for name, drop_path in blocks_by_name(model)}


def stochastic_depth_args(model: nn.Module) -> Dict[str, Any]:
    """The keyword arguments that give a registered model the stochastic depth of this one.

    They belong into the `model_args` of a config.json, where timm's `save_for_hf` has them from this package: without
    them a model is rebuilt with its default rate, and would scale by that.

    Args:
        model: Model with stochastic depth.

    Returns:
        `drop_path_rate` and the other settings, each under the name that `timm.create_model` takes it by.

    Raises:
        TypeError: model is no module.
        ValueError: model has no stochastic blocks.

    Example:
        >>> import timm
        >>> model = timm.create_model('resnet50_sd_block', drop_path_rate=0.3)
        >>> stochastic_depth_args(model)['drop_path_rate']
        0.3
    """
    found = dict(drop_paths(model))
    if not found:
        raise ValueError(f'model must hold stochastic blocks, but {type(model).__name__} holds none.')
    settings = next(iter(found.values())).settings
    others = [name for name, d in found.items() if d.own_rate is not None or d.settings != settings]
    if others:
        warn_user(
            f'Blocks were given settings of their own, which no arguments of a whole model say: {", ".join(others[:3])}'
            f'{" and others" * (len(others) > 3)}. A model that is rebuilt has others there.')
    return settings.model_args()


def inference_factors(model: nn.Module, full: bool = False) -> Dict[str, float]:
    """What each branch is multiplied with at inference, by the name of its drop path.

    Args:
        model: Any model; without stochastic depth there are none.
        full: At the rates of the end of training, instead of those in force.
    """
    return {name: drop_path.inference_scale(full) for name, drop_path in drop_paths(model)}
