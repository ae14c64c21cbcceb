"""Fold checkpoints that a script of timm's loads to the rates of the network that they are loaded into.

`--initial-checkpoint` of train.py and `--checkpoint` of validate.py go through timm's `load_checkpoint`: here by the
rules of `models.pretrained`. By itself timm drops what a file says of its weights, which are then loaded as they are,
at whatever rate the script was told. What `--resume` names is loaded as it is here too: it goes on amid a warm-up.
Weights for other factors than 1 are refused for a plain network, also as its pretrained ones (`--pretrained-path`).
"""
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional

from torch import Tensor, nn

from ...checkpoints.drop_options import LauncherError
from ...checkpoints.file import read_weights_file
from ...checkpoints.names import strip_wrappers
from ...inspection import drop_paths
from ...models.pretrained import fold_as_said, said_of_this_load
from .script_run import ScriptRun

__all__ = ['load_checkpoint', 'load_pretrained']


def load_checkpoint(
        run: ScriptRun,
        original: Callable[..., Any],
        model: nn.Module,
        checkpoint_path: str,
        use_ema: bool = True,
        *args: Any,
        **kwargs: Any,
) -> Any:
    """timm's function of this name, which keeps what the weights computed, but for a run that is resumed."""
    path = Path(checkpoint_path)
    if run.resumes(path):
        pass
    elif not any(drop_paths(model)):
        _refuse_other_factors(model, path, use_ema)
    elif path.is_file() and path.suffix.lower() not in ('.npz', '.npy'):  # which timm hands on to the model
        kwargs.setdefault('filter_fn', lambda state_dict, model: _fold(state_dict, model, path, use_ema))
    return original(model, checkpoint_path, use_ema, *args, **kwargs)


def load_pretrained(
        run: ScriptRun,
        original: Callable[..., None],
        model: nn.Module,
        pretrained_cfg: Optional[Mapping[str, Any]] = None,
        *args: Any,
        **kwargs: Any,
) -> None:
    """timm's function of this name, which refuses a stochastic network's weights for a plain one."""
    file = (pretrained_cfg or {}).get('file')
    if file and not any(drop_paths(model)):
        _refuse_other_factors(model, Path(file), True)
    original(model, pretrained_cfg, *args, **kwargs)


def _fold(state_dict: Mapping[str, Tensor], model: nn.Module, path: Path, use_ema: bool) -> Dict[str, Tensor]:
    model_args: Any = getattr(model, '_model_args', {})
    fold_pretrained = said_of_this_load(
        model_args.get('fold_pretrained'), getattr(model, 'pretrained_model_args', None))
    try:
        return fold_as_said(
            strip_wrappers(state_dict), model, lambda: read_weights_file(path, use_ema and None), fold_pretrained)
    except ValueError as e:
        raise LauncherError(f'{path} cannot be loaded into {type(model).__name__}: {e}') from e


def _refuse_other_factors(model: nn.Module, path: Path, use_ema: bool) -> None:
    """Refuse weights for a network that scales its branches at inference, as this one does not."""
    try:
        file = read_weights_file(path, use_ema and None)  # EMA weights where there are some, or not
    except (OSError, ValueError):  # what timm cannot read either it tells of itself; other formats say nothing
        return
    factors = (file.trained_factors() or {}).values()
    if any(factor != 1. for factor in factors):
        name = file.architecture or 'a network with stochastic depth'
        raise LauncherError(
            f'{path} must hold the weights of a plain network for {type(model).__name__}, but holds those of {name},'
            f' which scales its branches by {min(factors):.4g} to {max(factors):.4g} at inference. Its'
            f' plain weights are written by: timm-stochdepth fold {path} plain.pth')
