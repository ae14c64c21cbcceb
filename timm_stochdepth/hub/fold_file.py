"""Fold and unfold files."""
from pathlib import Path
from typing import Any, Optional

import torch
from safetensors.torch import load_file
from torch import nn

from ..files import write_beside
from ..fold import fold_plain_weights, fold_stochastic_depth
from .folder import save_weights
from .sources import create_model, is_stochastic, load_model, load_state_dict

__all__ = ['fold_file', 'unfold_file']


def _largest_difference(model: nn.Module, other: nn.Module) -> float:
    generator = torch.Generator().manual_seed(0)
    cfg: Any = model.pretrained_cfg
    x_NCHW = torch.randn(2, *cfg['input_size'], generator=generator)
    with torch.inference_mode():
        return (model.eval()(x_NCHW) - other.eval()(x_NCHW)).abs().max().item()


def fold_file(source: Path, target: Path, use_ema: bool = False) -> float:
    """Write a plain timm network's weights from a checkpoint or folder of a stochastic one.

    Returns:
        The largest difference of the two networks' logits.

    Raises:
        ValueError: source does not hold a network with stochastic depth.
    """
    model, _ = load_model(source, use_ema)
    if not is_stochastic(model):
        raise ValueError(f'{source} must hold a network with stochastic depth to fold, but holds a plain one.')
    folded = fold_stochastic_depth(model)
    with write_beside(target) as file:
        save_weights(folded, file)
    return _largest_difference(model, folded)


def unfold_file(source: Path, target: Path, name: str, drop_path_rate: Optional[float] = None) -> float:
    """Write the weights of a model with stochastic depth from safetensors of the plain network.

    Args:
        source: Weights of the plain network.
        target: File to write.
        name: Name of the model.
        drop_path_rate: Its drop rate, the default one if None.

    Returns:
        The largest difference of the two networks' logits.

    Raises:
        ValueError: name is none of this package, or source does not fit it.
    """
    plain_weights = load_file(source)
    num_classes = plain_weights['fc.bias'].shape[0] if 'fc.bias' in plain_weights else 0
    in_chans = plain_weights['conv1.weight'].shape[1] if 'conv1.weight' in plain_weights else 3
    model: Any = create_model(name, num_classes=num_classes, in_chans=in_chans, drop_path_rate=drop_path_rate)
    if not is_stochastic(model):
        raise ValueError(f'MODEL must be one of `timm-stochdepth list`, but got {name!r}.')
    plain = create_model(model.plain_architecture, num_classes=num_classes, in_chans=in_chans)
    load_state_dict(plain, plain_weights, source)
    model.load_state_dict(fold_plain_weights(plain_weights, model))
    with write_beside(target) as file:
        save_weights(model, file)
    return _largest_difference(model, plain)
