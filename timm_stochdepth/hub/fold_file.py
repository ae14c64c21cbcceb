"""Fold and unfold files of weights."""
import math
from pathlib import Path
from typing import Any, Optional

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from ..folding.fold import fold_stochastic_depth
from ..folding.rescale import fold_weights
from ..inspection import drop_paths
from ..output.files import write_beside
from ..zoo.names import is_stochastic_architecture, plain_architecture
from .folder import save_weights
from .load import load_model
from .location import NetworkLocation
from .named_models import build_model, check_model_name

__all__ = ['fold_file', 'is_folded', 'unfold_file']


def fold_file(network: NetworkLocation, target: Path, force: bool = False, **load_args: Any) -> float:
    """Write a plain timm network's weights from those of a stochastic one.

    Args:
        network: Where the stochastic network is.
        target: File to write, its suffix says the format, see `save_weights`.
        force: Replace a file that is there.
        load_args: What else is said of the network, for `load_model`.

    Returns:
        The largest difference of the two networks' logits.

    Raises:
        ValueError: The network does not have stochastic depth, or its weights are not finite.
        OSError: target is there already.
    """
    model, _ = load_model(network, **load_args)
    if not any(drop_paths(model)):
        raise ValueError(f'{network} must hold a network with stochastic depth to fold, but holds a plain one.')
    return _save(fold_stochastic_depth(model), model, target, force)


def unfold_file(
        network: NetworkLocation,
        target: Path,
        name: str,
        drop_path_rate: Optional[float] = None,
        force: bool = False,
        **load_args: Any,
) -> float:
    """As `fold_file`, the other way: the weights of the model of that name and rate, from a plain network's."""
    check_model_name('--unfold', name)
    if not is_stochastic_architecture(name):
        raise ValueError(f'--unfold must be one of `timm-stochdepth list`, but got {name!r}.')
    plain, _ = load_model(
        network, model_name=plain_architecture(name) if network.kind == 'file' else None, **load_args)
    if any(drop_paths(plain)):
        raise ValueError(f'{network} must hold a plain network to unfold, but holds a stochastic one.')
    plain_args: Any = plain._model_args
    model = build_model(name, {**plain_args, 'drop_path_rate': drop_path_rate}, plain.state_dict())
    model.load_state_dict(fold_weights(plain.state_dict(), model, {}))
    return _save(model, plain, target, force)


def _save(model: nn.Module, other: nn.Module, target: Path, force: bool) -> float:
    """Save a model that computes what another one does, and return the largest difference of their logits."""
    with write_beside(target, force or _holds(target, model), 'OUT') as file:
        save_weights(model, file)
        cfg: Any = model.pretrained_cfg
        in_chans: Any = getattr(model, 'in_chans', cfg['input_size'][0])
        generator = torch.Generator().manual_seed(0)
        x_NCHW = torch.randn(2, in_chans, *cfg['input_size'][1:], generator=generator)
        with torch.inference_mode():
            difference = (model.eval()(x_NCHW) - other.eval()(x_NCHW)).abs().max().item()
        if not math.isfinite(difference):
            raise ValueError('the weights must give finite logits to be folded, but do not.')
    return difference


def is_folded(path: Path) -> bool:
    """Whether a file is one of safetensors that `fold_file` may have written: nothing is said in it but that."""
    if path.suffix != '.safetensors' or not path.is_file():
        return False
    try:
        with safe_open(path, 'pt') as file:
            return set(file.metadata() or {}) == {'architecture', 'format'}
    except SafetensorError:
        return False


def _holds(path: Path, model: nn.Module) -> bool:
    """Whether a file has a model's weights: written again, it loses nothing."""
    if not is_folded(path):
        return False
    found, state_dict = load_file(path), model.state_dict()
    return found.keys() == state_dict.keys() and all(
        v.dtype == found[name].dtype and torch.equal(v, found[name]) for name, v in state_dict.items())
