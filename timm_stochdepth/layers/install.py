"""Put drop paths into blocks, and take them out again."""
from typing import Sequence

from torch import nn

from ..draws.shared import SharedDraws
from ..settings import Settings
from .block import StochasticBlock, plain_class_of
from .drop_path import StochasticDropPath
from .progress import TrainingProgress
from .sharding import sharded_like
from .targets import Target

__all__ = ['install_all', 'remove_stochastic_depth']


def install_all(
        targets: Sequence[Target],
        settings: Settings,
        scales: Sequence[Sequence[float]],
        progress: TrainingProgress,
) -> None:
    shared_draws = None
    if settings.stochastic_method == 'block' and settings.use_same_gpu_seed:
        names = (f'{target.name}.{name}' for target in targets for name in target.drop_path_names)
        shared_draws = SharedDraws(' '.join(names))
    drop_path_idx = 0
    for target, scales_of_block in zip(targets, scales):
        for name, scale in zip(target.drop_path_names, scales_of_block):
            _install(target.block, name).configure(settings, scale, drop_path_idx, progress, shared_draws)
            drop_path_idx += 1
        if target.stochastic_class is not None:
            target.block.__class__ = sharded_like(target.block, target.stochastic_class)


def _install(block: nn.Module, name: str) -> StochasticDropPath:
    stood = getattr(block, name, 'nothing')
    if isinstance(stood, StochasticDropPath):
        return stood
    drop_path = StochasticDropPath()
    drop_path.replaced = 'nothing' if stood == 'nothing' else 'None' if stood is None else 'Identity'
    drop_path.training = block.training
    setattr(block, name, drop_path)
    return drop_path


def remove_stochastic_depth(model: nn.Module) -> None:
    """Make a model's blocks plain again, in place: settings forgotten, weights as they are, nothing is dropped."""
    blocks = list(dict(model.named_modules()).values())
    for block in blocks:
        for name, drop_path in list(block._modules.items()):
            if isinstance(drop_path, StochasticDropPath):
                drop_path.progress.remove(drop_path)
                if isinstance(block, StochasticBlock):
                    block.__class__ = sharded_like(block, plain_class_of(block))
                if drop_path.replaced == 'Identity':
                    setattr(block, name, nn.Identity())
                else:
                    delattr(block, name)
                    if drop_path.replaced == 'None':
                        setattr(block, name, None)
