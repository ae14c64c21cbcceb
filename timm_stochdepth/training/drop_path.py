"""Stochastic depth for whatever model of timm's a script creates."""
from contextlib import contextmanager
from functools import wraps
from typing import Any, Generator

import timm
import timm.models
import timm.models._factory
from torch import nn

from ..places import drop_paths
from ..settings import Settings
from ..surgery import apply_settings

__all__ = ['stochastic_drop_path']


@contextmanager
def stochastic_drop_path(settings: Settings) -> Generator[None, None, None]:
    """Context in which the drop paths of each model that `timm.create_model` makes are given these settings."""
    create_model = timm.models.create_model

    @wraps(create_model)
    def create_and_apply(model_name: str, *args: Any, **kwargs: Any) -> nn.Module:
        model = create_model(model_name, *args, **kwargs)
        if any(drop_paths(model)):
            raise ValueError(
                f'--model must be a plain network of timm with --stochastic-depth or --skip-dropped, but got'
                f' {model_name!r}, which has stochastic depth of its own: use its arguments (--model-kwargs).')
        apply_settings(model, 'DropPath', settings)
        return model

    modules: Any = (timm, timm.models, timm.models._factory)
    for module in modules:
        module.create_model = create_and_apply
    try:
        yield
    finally:
        for module in modules:
            module.create_model = create_model
