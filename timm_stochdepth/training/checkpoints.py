"""Checkpoints that a script of timm's loads: folded to the rates of the network that they are loaded into."""
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Dict, Generator, Mapping

import timm.models
import timm.models._factory
from torch import Tensor, nn

from ..places import drop_paths
from ..scales import fold_weights
from ..weights import strip_wrappers
from ..weights_file import read_weights_file

__all__ = ['folded_checkpoints']


@contextmanager
def folded_checkpoints() -> Generator[None, None, None]:
    """Context in which timm's `load_checkpoint` keeps what a network computes.

    `--initial-checkpoint` of train.py and `--checkpoint` of validate.py go there. By itself timm drops what a file says
    of its weights, which are then loaded as they are, at whatever rate the script was told. `--resume` goes another
    way, and loads them as they are here too.
    """
    load_checkpoint = timm.models.load_checkpoint

    @wraps(load_checkpoint)
    def load_and_fold(model: nn.Module, checkpoint_path: str, *args: Any, **kwargs: Any) -> Any:
        if any(drop_paths(model)) and Path(checkpoint_path).is_file():
            trained_scales = read_weights_file(Path(checkpoint_path)).trained_scales()
            if trained_scales is not None:
                def fold(state_dict: Mapping[str, Tensor], model: nn.Module) -> Dict[str, Tensor]:
                    return fold_weights(strip_wrappers(state_dict), model, trained_scales)
                kwargs.setdefault('filter_fn', fold)
        return load_checkpoint(model, checkpoint_path, *args, **kwargs)

    modules: Any = (timm.models, timm.models._factory)
    for module in modules:
        module.load_checkpoint = load_and_fold
    try:
        yield
    finally:
        for module in modules:
            module.load_checkpoint = load_checkpoint
