"""Fold and unfold files."""
import math
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from torch import nn

from ..folding.fold import fold_stochastic_depth
from ..folding.rescale import fold_weights
from ..inspection import drop_paths
from ..output.file_kinds import WEIGHTS
from ..output.files import write_file
from ..output.terminal import progress_bar
from .folder import save_weights
from .load import load_model
from .location import NetworkSource
from .named_models import build_model, create_model, is_stochastic

__all__ = ['fold_file', 'unfold_file']


def _largest_difference(model: nn.Module, other: nn.Module) -> float:
    generator = torch.Generator().manual_seed(0)
    cfg: Any = model.pretrained_cfg
    in_chans: Any = getattr(model, 'in_chans', cfg['input_size'][0])
    x_NCHW = torch.randn(2, in_chans, *cfg['input_size'][1:], generator=generator)
    with torch.inference_mode():
        difference = (model.eval()(x_NCHW) - other.eval()(x_NCHW)).abs().max().item()
    if not math.isfinite(difference):
        raise ValueError('the weights must give finite logits to be folded, but do not.')
    return difference


def fold_file(
        source: NetworkSource,
        target: Path,
        use_ema: bool = False,
        force: bool = False,
        model_name: Optional[str] = None,
        model_args: Optional[Dict[str, Any]] = None,
) -> float:
    """Write a plain timm network's weights from a checkpoint or folder of a stochastic one.

    Args:
        source: Where the network is, see `load_model`.
        target: File to write, its suffix says the format, see `save_weights`.
        use_ema: Take a checkpoint's EMA weights.
        force: Replace a file of the same format.
        model_name: Name of the network, for a file that does not say it.
        model_args: Arguments of the network, likewise.

    Returns:
        The largest difference of the two networks' logits.

    Raises:
        ValueError: source does not hold a network with stochastic depth, its weights are not finite, or target is none
            that may be written.
        OSError: target is there already.
    """
    with (
        write_file(target, WEIGHTS, sources=source.paths, force=force) as file,
        progress_bar(2, 'folding', 'step') as progress,
    ):
        model, _ = load_model(source, use_ema, model_name, model_args)
        if not any(drop_paths(model)):
            raise ValueError(f'{source} must hold a network with stochastic depth to fold, but holds a plain one.')
        progress.update()
        folded = fold_stochastic_depth(model)
        save_weights(folded, file)
        progress.update()
        return _largest_difference(model, folded)


def unfold_file(
        source: NetworkSource,
        target: Path,
        name: str,
        drop_path_rate: Optional[float] = None,
        force: bool = False,
        model_args: Optional[Dict[str, Any]] = None,
) -> float:
    """Write the weights of a model with stochastic depth from those of the plain network.

    Args:
        source: Where the plain network is, see `load_model`.
        target: File to write, its suffix says the format, see `save_weights`.
        name: Name of the model.
        drop_path_rate: Its drop rate, the default one if None.
        force: Replace a file of the same format.
        model_args: Arguments of both networks, for a file that does not say them.

    Returns:
        The largest difference of the two networks' logits.

    Raises:
        ValueError: name is none of this package, source does not fit it or says that it holds a stochastic network, or
            target is none that may be written.
        OSError: target is there already.
    """
    with (
        write_file(target, WEIGHTS, sources=source.paths, force=force) as file,
        progress_bar(2, 'unfolding', 'step') as progress,
    ):
        probe: Any = create_model(name, on_meta=True)
        if not is_stochastic(probe):
            raise ValueError(f'--unfold must be one of `timm-stochdepth list`, but got {name!r}.')
        name_of_file = probe.plain_architecture if source.kind == 'file' else None
        plain, _ = load_model(source, model_name=name_of_file, model_args=model_args)
        if any(drop_paths(plain)):
            raise ValueError(f'{source} must hold a plain network to unfold, but holds a stochastic one.')
        progress.update()
        plain_args: Any = plain._model_args
        model = build_model(name, {**plain_args, 'drop_path_rate': drop_path_rate}, plain.state_dict())
        model.load_state_dict(fold_weights(plain.state_dict(), model, {}))
        save_weights(model, file)
        progress.update()
        return _largest_difference(model, plain)
