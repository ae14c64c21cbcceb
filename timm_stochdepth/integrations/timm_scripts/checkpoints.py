"""Checkpoints that a script of timm's loads: folded to the rates of the network that they are loaded into."""
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Generator, Mapping, Optional

import timm.models
import timm.models._builder
import timm.models._factory
from torch import Tensor, nn

from ...checkpoints.drop_options import LauncherError
from ...checkpoints.file import read_weights_file
from ...checkpoints.names import strip_wrappers
from ...inspection import drop_paths
from ...models.pretrained import fold_as_said, said_of_this_load
from .replaced import replaced
from .script_run import ScriptRun

__all__ = ['folded_checkpoints']


@contextmanager
def folded_checkpoints(run: ScriptRun) -> Generator[None, None, None]:
    """Context in which timm's `load_checkpoint` keeps what a network computes, by the rules of `models.pretrained`.

    `--initial-checkpoint` of train.py and `--checkpoint` of validate.py go there. By itself timm drops what a file says
    of its weights, which are then loaded as they are, at whatever rate the script was told. What `--resume` names is
    loaded as it is here too: it goes on amid a warm-up.

    Weights for other scales than 1 are refused for a plain network, also as its pretrained ones (`--pretrained-path`).
    """

    def wrap_load_checkpoint(load_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def load_and_fold(
                model: nn.Module,
                checkpoint_path: str,
                use_ema: bool = True,
                *args: Any,
                **kwargs: Any,
        ) -> Any:
            path = Path(checkpoint_path)
            if run.resumes(path):
                pass
            elif not any(drop_paths(model)):
                _refuse_other_scales(model, path, use_ema)
            elif path.is_file() and path.suffix.lower() not in ('.npz', '.npy'):  # which timm hands on to the model
                kwargs.setdefault('filter_fn', lambda state_dict, model: _fold(state_dict, model, path, use_ema))
            return load_checkpoint(model, checkpoint_path, use_ema, *args, **kwargs)

        return load_and_fold

    def wrap_load_pretrained(load_pretrained: Callable[..., None]) -> Callable[..., None]:
        def check_and_load(
                model: nn.Module,
                pretrained_cfg: Optional[Mapping[str, Any]] = None,
                *args: Any,
                **kwargs: Any,
        ) -> None:
            file = (pretrained_cfg or {}).get('file')
            if file and not any(drop_paths(model)):
                _refuse_other_scales(model, Path(file), True)
            load_pretrained(model, pretrained_cfg, *args, **kwargs)

        return check_and_load

    with replaced('load_checkpoint', wrap_load_checkpoint, timm.models, timm.models._factory), \
            replaced('load_pretrained', wrap_load_pretrained, timm.models._builder):
        yield


def _fold(state_dict: Mapping[str, Tensor], model: nn.Module, path: Path, use_ema: bool) -> Dict[str, Tensor]:
    model_args: Any = getattr(model, '_model_args', {})
    fold_pretrained = said_of_this_load(
        model_args.get('fold_pretrained'), getattr(model, 'pretrained_model_args', None))
    try:
        return fold_as_said(
            strip_wrappers(state_dict), model, lambda: read_weights_file(path, _as_timm(use_ema)), fold_pretrained)
    except ValueError as e:
        raise LauncherError(f'{path} cannot be loaded into {type(model).__name__}: {e}') from e


def _refuse_other_scales(model: nn.Module, path: Path, use_ema: bool) -> None:
    """Refuse weights that say that they are for a network that scales its branches at inference, as this one does not.

    Raises:
        LauncherError: It says what to do.
    """
    try:
        file = read_weights_file(path, _as_timm(use_ema))
    except (OSError, ValueError):  # what timm cannot read either it tells of itself; other formats say nothing
        return
    scales = file.trained_scales() or {}
    if any(scale != 1. for scale in scales.values()):
        name = file.architecture or 'a network with stochastic depth'
        raise LauncherError(
            f'{path} must hold the weights of a plain network for {type(model).__name__}, but holds those of {name},'
            f' which scales its branches by {min(scales.values()):.4g} to {max(scales.values()):.4g} at inference. Its'
            f' plain weights are written by: timm-stochdepth fold {path} plain.pth')


def _as_timm(use_ema: bool) -> Optional[bool]:
    return None if use_ema else False  # where there are some, or not
