"""Stochastic depth (drop path) for timm and torchvision image models, which need not compute what they drop.

Importing the package registers its models with timm: `timm.create_model('resnet50_sd_block')`. For any other model:

    >>> import timm
    >>> import timm_stochdepth
    >>> model = timm.create_model('test_vit', drop_path_rate=0.4)
    >>> timm_stochdepth.apply_stochastic_depth(
    ...     model, 'sample', 'DropPath', drop_rate=None, scale_by_keep=True, skip_dropped=True)

The public names, all others are internal:

    apply_stochastic_depth      give the residual blocks of a model stochastic depth, in place
    drop_rates                  the rates in force, by name of the block
    set_drop_rate               another rate
    set_training_progress       how far training is: drives a warm-up or a schedule
    start_warmup                begin a training run with a warm-up from weights that are there
    no_drop                     context in which nothing is dropped
    fold_stochastic_depth       a plain copy with the same output at inference
    stochastic_depth_args       the arguments of timm.create_model that rebuild a model
    push_to_hub                 weights, config and model card, in one commit
    StochasticDepth             the algorithm for Composer's trainer
    StochasticBlock             base class of stochastic blocks, to be derived from for blocks without a drop path
    STOCHASTIC_LAYER_MAPPING    the kinds of blocks that can be asked for by a name, to be extended
    models                      module of the registered models

The command line is `timm-stochdepth`, or `python -m timm_stochdepth`.
"""
from importlib import import_module
from typing import TYPE_CHECKING, Any, List

from .registration import register_with_timm
from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import models as models
    from .apply import apply_stochastic_depth as apply_stochastic_depth
    from .control import no_drop as no_drop
    from .control import set_drop_rate as set_drop_rate
    from .control import set_training_progress as set_training_progress
    from .control import start_warmup as start_warmup
    from .folding.fold import fold_stochastic_depth as fold_stochastic_depth
    from .hub.push import push_to_hub as push_to_hub
    from .inspection import drop_rates as drop_rates
    from .inspection import stochastic_depth_args as stochastic_depth_args
    from .integrations.composer.algorithm import StochasticDepth as StochasticDepth
    from .layers.block import StochasticBlock as StochasticBlock
    from .layers.targets import STOCHASTIC_LAYER_MAPPING as STOCHASTIC_LAYER_MAPPING

# the same once more, for who runs it; imported when used: `timm-stochdepth --help` need not wait for torch and timm
_MODULES = {
    'STOCHASTIC_LAYER_MAPPING': 'layers.targets',
    'StochasticBlock': 'layers.block',
    'fold_stochastic_depth': 'folding.fold',
    'start_warmup': 'control',
    'push_to_hub': 'hub.push',
    'no_drop': 'control',
    'apply_stochastic_depth': 'apply',
    'drop_rates': 'inspection',
    'set_drop_rate': 'control',
    'set_training_progress': 'control',
    'stochastic_depth_args': 'inspection',
    'StochasticDepth': 'integrations.composer.algorithm',
}

__all__ = [*_MODULES, 'models', '__version__']  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == 'models':
        return import_module('.models', __name__)
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(f'.{_MODULES[name]}', __name__), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith('__'))})


register_with_timm()
