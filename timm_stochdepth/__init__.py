"""Stochastic depth for timm and torchvision. Importing the package registers its models with timm.

The public names are imported when they are used: what needs no network, `timm-stochdepth --help`, need not wait for
torch and timm.
"""
from importlib import import_module
from typing import TYPE_CHECKING, Any, List

from .registration import register_with_timm
from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import models as models
    from .blocks import StochasticBlock as StochasticBlock
    from .fold import fold_stochastic_depth as fold_stochastic_depth
    from .fold import start_warmup as start_warmup
    from .hub.push import push_to_hub as push_to_hub
    from .pause import no_drop as no_drop
    from .surgery import apply_stochastic_depth as apply_stochastic_depth
    from .surgery import drop_rates as drop_rates
    from .surgery import set_drop_rate as set_drop_rate
    from .surgery import set_training_progress as set_training_progress
    from .surgery import stochastic_depth_args as stochastic_depth_args
    from .targets import STOCHASTIC_LAYER_MAPPING as STOCHASTIC_LAYER_MAPPING
    from .training.algorithm import StochasticDepth as StochasticDepth

# the same once more, for who runs it
_MODULES = {
    'STOCHASTIC_LAYER_MAPPING': 'targets',
    'StochasticBlock': 'blocks',
    'fold_stochastic_depth': 'fold',
    'start_warmup': 'fold',
    'push_to_hub': 'hub.push',
    'no_drop': 'pause',
    'apply_stochastic_depth': 'surgery',
    'drop_rates': 'surgery',
    'set_drop_rate': 'surgery',
    'set_training_progress': 'surgery',
    'stochastic_depth_args': 'surgery',
    'StochasticDepth': 'training.algorithm',
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
    return sorted({*globals(), *__all__})


register_with_timm()
