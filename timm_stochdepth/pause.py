"""A forward pass in which nothing is dropped, in training either."""
from contextlib import contextmanager
from typing import Generator

from torch import nn

from .places import drop_paths

__all__ = ['no_drop']


@contextmanager
def no_drop(model: nn.Module) -> Generator[None, None, None]:
    """Context in which a model drops nothing, and scales its branches as at inference, whatever mode it is in.

    In training mode its norms learn their statistics of each batch, those of blocks that would be dropped, too: to
    re-estimate them (`torch.optim.swa_utils.update_bn`), to calibrate, or to debug.

    Args:
        model: Model with stochastic depth, which may be wrapped (DistributedDataParallel, torch.compile, an
            `AveragedModel`). Copies of it are not meant.

    Raises:
        TypeError: model is no module.

    Example:
        >>> import timm
        >>> import timm_stochdepth
        >>> import torch
        >>> model = timm.create_model('resnet50_sd_block', num_classes=10)
        >>> averaged = torch.optim.swa_utils.AveragedModel(model)
        >>> with timm_stochdepth.no_drop(averaged):
        ...     torch.optim.swa_utils.update_bn([torch.randn(8, 3, 64, 64)], averaged)
    """
    before = [(drop_path, drop_path.is_paused) for _, drop_path in drop_paths(model)]
    for drop_path, _ in before:
        drop_path.is_paused = True
    try:
        yield
    finally:
        for drop_path, was_paused in before:
            drop_path.is_paused = was_paused
