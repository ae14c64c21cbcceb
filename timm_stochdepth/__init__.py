"""Stochastic depth (drop path) for timm and torchvision image models, which need not compute what they drop.

Importing the package registers its models with timm: `timm.create_model('resnet50_sd_block')`. For any other model:

    >>> import timm
    >>> import timm_stochdepth
    >>> model = timm.create_model('test_vit', drop_path_rate=0.4)
    >>> timm_stochdepth.apply_stochastic_depth(
    ...     model, 'sample', 'DropPath', drop_rate=None, scale_by_keep=True, skip_dropped=True)

The public names, all others are internal:

    apply_stochastic_depth      give the residual blocks of a model stochastic depth, in place
    Settings                    how a network drops, in one object
    drop_rates                  the rates in force, by name of the block
    set_drop_rate               another rate
    set_training_progress       how far training is: drives a warm-up or a schedule
    start_warmup                begin a training run with a warm-up from weights that are there
    no_drop                     context in which nothing is dropped
    fold_stochastic_depth       a plain copy with the same output at inference
    stochastic_depth_args       the arguments of timm.create_model that rebuild a model
    push_to_hub                 weights, config and model card, in one commit
    StochasticDepth             the algorithm for Composer's trainer
    StochasticBlock             base class of stochastic blocks
    STOCHASTIC_LAYER_MAPPING    the kinds of blocks that can be asked for by a name, to be extended
    models                      module of the registered models

Tables of what the source of a block cannot tell, to be extended (docs/any_model.md):

    BRANCH_ENDS                 in which child the branch of a block without a drop path ends
    BATCH_DIMENSIONS            which arguments of a block have a row for each sample
    SCALING_LAYERS              which layers may scale a branch after its drop path
    GATE_INPUT_LAYERS           which layers multiply their input by a gate, and the gate's first layer
    NORM_LAYERS                 which layers are norms with a weight and a bias
    TRUSTED_BLOCKS              which blocks of your own are cut without a comparison

The command line is `timm-stochdepth`, or `python -m timm_stochdepth`.
"""
from importlib import import_module
from typing import TYPE_CHECKING, Any, List

from .registration import register_with_timm
from .version import __version__

if TYPE_CHECKING:
    from . import models
    from .apply import apply_stochastic_depth
    from .control import no_drop, set_drop_rate, set_training_progress, start_warmup
    from .cut.tables import (
        BATCH_DIMENSIONS,
        BRANCH_ENDS,
        GATE_INPUT_LAYERS,
        NORM_LAYERS,
        SCALING_LAYERS,
        TRUSTED_BLOCKS,
    )
    from .folding.fold import fold_stochastic_depth
    from .hub.push import push_to_hub
    from .inspection import drop_rates, stochastic_depth_args
    from .integrations.composer.algorithm import StochasticDepth
    from .layers.block import StochasticBlock
    from .layers.targets import STOCHASTIC_LAYER_MAPPING
    from .settings import Settings

__all__ = [
    'BATCH_DIMENSIONS', 'BRANCH_ENDS', 'GATE_INPUT_LAYERS', 'NORM_LAYERS', 'SCALING_LAYERS',
    'STOCHASTIC_LAYER_MAPPING', 'Settings', 'StochasticBlock', 'StochasticDepth', 'TRUSTED_BLOCKS', '__version__',
    'apply_stochastic_depth', 'drop_rates', 'fold_stochastic_depth', 'models', 'no_drop', 'push_to_hub',
    'set_drop_rate', 'set_training_progress', 'start_warmup', 'stochastic_depth_args']

# where the names are, which are imported when used: `timm-stochdepth --help` need not wait for torch and timm
_MODULES = (
    'settings', 'inspection', 'control', 'apply', 'folding.fold', 'cut.tables', 'layers.block', 'layers.targets',
    'hub.push', 'integrations.composer.algorithm')


def __getattr__(name: str) -> Any:
    if name == 'models':
        return import_module('.models', __name__)
    if name in __all__:
        for module in _MODULES:
            value = getattr(import_module(f'.{module}', __name__), name, None)
            if value is not None:
                globals()[name] = value
                return value
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> List[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith('__'))})


register_with_timm()
