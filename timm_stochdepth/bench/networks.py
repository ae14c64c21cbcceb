"""The networks that are compared: one plain network, and copies of it that drop each in its way."""
from copy import deepcopy
from functools import partial
from typing import Any, Callable, Dict

import timm
import torchvision.ops
from torch import nn

from ..apply import apply_stochastic_depth
from ..inspection import drop_paths
from ..layers.guards import looks_at_batch
from ..layers.install import remove_stochastic_depth
from ..settings import Settings
from .ahead import AheadDropPath
from .conditional import ConditionalDropPath
from .dinov2 import FixedNumberDraws, FixedNumberDropPath
from .settings import BenchSettings

__all__ = ['create_networks']


def create_networks(settings: BenchSettings) -> Dict[str, nn.Module]:
    """The networks of the rows, by their short names, the plain one first, all with the same weights."""
    plain = timm.create_model(settings.model, **settings.model_args)
    networks = {name: deepcopy(plain) for name in settings.rows if name != 'plain'}
    for name, network in networks.items():
        if name in _CHANGES:
            _CHANGES[name](network, settings)
    return {'plain': plain, **networks}


def _drop(model: nn.Module, settings: BenchSettings, stochastic_method: str, **kwargs: Any) -> None:
    # the convention of the models that are registered, and where no norm looks at the batch, that of all peers
    kwargs.setdefault('scale_by_keep', not looks_at_batch(model))
    of_row = Settings(stochastic_method, settings.rate, settings.distribution, **kwargs)
    apply_stochastic_depth(model, settings=of_row, target_layer_name='DropPath')


def _drop_as_peer(model: nn.Module, settings: BenchSettings, make: Callable[[float], nn.Module]) -> None:
    """Somebody else's drop paths, at the same places and rates."""
    _drop(model, settings, 'sample')
    rates = {name: drop_path.drop_prob for name, drop_path in drop_paths(model)}
    remove_stochastic_depth(model)
    for name, rate in rates.items():
        block_name, _, attribute = name.rpartition('.')
        if rate > 0.:
            setattr(model.get_submodule(block_name), attribute, make(rate))


def _drop_as_dinov2(model: nn.Module, settings: BenchSettings) -> None:
    _drop(model, settings, 'sample', scale_by_keep=True)
    for _, drop_path in drop_paths(model):
        drop_path.__class__, drop_path.draws = FixedNumberDropPath, FixedNumberDraws()


def _drop_blocks(model: nn.Module, settings: BenchSettings) -> None:
    # ranks whose generators are seeded alike drop alike
    _drop(model, settings, 'block', use_same_gpu_seed=not settings.ddp)


def _skip_as_on_device(model: nn.Module, settings: BenchSettings) -> None:
    _drop(model, settings, 'sample', skip_dropped=True)
    for _, drop_path in drop_paths(model):
        drop_path.__class__ = AheadDropPath


def _skip_conditionally(model: nn.Module, settings: BenchSettings) -> None:
    _drop_blocks(model, settings)
    for _, drop_path in drop_paths(model):
        drop_path.__class__ = ConditionalDropPath


_CHANGES: Dict[str, Callable[[nn.Module, BenchSettings], None]] = {
    'timm': partial(_drop_as_peer, make=timm.layers.DropPath),
    'torchvision': partial(_drop_as_peer, make=partial(torchvision.ops.StochasticDepth, mode='row')),
    'dinov2': _drop_as_dinov2,
    'conditional': _skip_conditionally,
    'sample': partial(_drop, stochastic_method='sample'),
    'skip': partial(_drop, stochastic_method='sample', skip_dropped=True),
    'ahead': _skip_as_on_device,
    'round': partial(_drop, stochastic_method='sample', skip_dropped=True, round_up=True),
    'fixed': partial(_drop, stochastic_method='sample', skip_dropped=True, draw='fixed'),
    'block': _drop_blocks,
}
