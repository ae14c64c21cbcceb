"""Stochastic depth for a model that exists: apply it, look at it, change its rate."""
import warnings
from typing import Any, Dict, Iterator, Sequence, Tuple

import timm.layers
import torchvision.ops
from torch import nn

from .blocks import STOCHASTIC_LAYER_MAPPING, StochasticBlock
from .progress import TrainingProgress
from .rates import check_choice, check_fraction, depth_scales

__all__ = ['apply_stochastic_depth', 'drop_rates', 'set_drop_rate', 'set_training_progress', 'stochastic_depth_args']


def stochastic_blocks(model: nn.Module) -> Iterator[Tuple[str, StochasticBlock]]:
    """Names and stochastic blocks of a model, in the order that they were registered in: forward order for a ResNet.

    Raises:
        TypeError: model is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f'model must be a torch.nn.Module, but got {model!r} ({type(model).__name__}).')
    return ((name, m) for name, m in model.named_modules() if isinstance(m, StochasticBlock))


def check_arguments(stochastic_method: str, target_layer_name: str, drop_rate: float, **settings: Any) -> None:
    """Check what `apply_stochastic_depth` takes, without a model; it raises what that raises."""
    check_choice('target_layer_name', target_layer_name, tuple(STOCHASTIC_LAYER_MAPPING))
    StochasticBlock().configure(stochastic_method, drop_rate, depth_scale=1., **settings)


def _replace_drop_path(blocks: Sequence[Tuple[str, nn.Module]]) -> None:
    peers = (timm.layers.DropPath, torchvision.ops.StochasticDepth)
    replaced = []
    for name, block in blocks:
        for child_name, child in list(block.named_modules()):
            if isinstance(child, peers):
                block.set_submodule(child_name, nn.Identity())
                replaced.append(f'{name}.{child_name} ({type(child).__name__})')
    if replaced:
        warnings.warn(
            f'A block is not given stochastic depth twice, these are replaced: {", ".join(replaced)}.', stacklevel=3)


def apply_stochastic_depth(
        model: nn.Module,
        stochastic_method: str,
        target_layer_name: str,
        drop_rate: float = 0.2,
        drop_distribution: str = 'linear',
        use_same_gpu_seed: bool = True,
        *,
        drop_warmup: float = 0.,
        scale_by_keep: bool = False,
        skip_dropped: bool = False,
) -> None:
    """Give the residual blocks of a model stochastic depth, in place.

    Parameters, buffers, their names, hooks and the optimizer's references stay the same objects. Where a block has
    stochastic depth already, the new settings take the place of the old ones.

    Args:
        model: Any model that holds blocks of the target layer's classes.
        stochastic_method: `'sample'`, an independent draw for each sample and block, or `'block'`, one draw for a
            block and the whole batch, a dropped branch is then not computed.
        target_layer_name: A key of `STOCHASTIC_LAYER_MAPPING`.
        drop_rate: Drop rate of the network, in [0, 1].
        drop_distribution: `'linear'`, block l of L gets drop_rate * l / (L - 1), or `'uniform'`, each gets drop_rate.
        use_same_gpu_seed: Block method: whether the ranks of a distributed run drop the same blocks.
        drop_warmup: Fraction of training over which the rate rises from 0, in [0, 1]; see `set_training_progress`.
        scale_by_keep: Divide by the keep probability in training, as timm's DropPath does, instead of scaling the
            branch by it at inference, as the paper does.
        skip_dropped: Sample method: run the branch for the samples that keep it alone, which saves the time of the
            others. Its norms then train on the statistics of the kept samples, so that results are not those of
            masking. They use their running statistics where all they would be given is one value per channel.

    Raises:
        TypeError: A rate is not a number, a flag not a bool.
        ValueError: A value is not one of those allowed; the message names the argument, the value and them.

    Example:
        >>> import timm
        >>> model = timm.create_model('resnet18')
        >>> apply_stochastic_depth(model, 'block', 'ResNetBasicBlock', drop_rate=0.35)
        >>> drop_rates(model)['layer4.1']
        0.35
    """
    settings: Dict[str, Any] = dict(
        drop_distribution=drop_distribution,
        drop_warmup=drop_warmup,
        use_same_gpu_seed=use_same_gpu_seed,
        scale_by_keep=scale_by_keep,
        skip_dropped=skip_dropped,
    )
    check_arguments(stochastic_method, target_layer_name, drop_rate, **settings)  # before any change
    stochastic_blocks(model)
    stochastic_classes = STOCHASTIC_LAYER_MAPPING[target_layer_name]
    ours = tuple(stochastic_classes.values())
    blocks = [(n, m) for n, m in model.named_modules() if type(m) in stochastic_classes or type(m) in ours]
    scales = depth_scales(len(blocks), drop_distribution)

    if not blocks:
        warnings.warn(f'No {target_layer_name} found in {type(model).__name__}: nothing is dropped.', stacklevel=2)
    if drop_rate == 0.:
        warnings.warn('drop_rate is 0: stochastic depth has no effect.', stacklevel=2)
    if stochastic_method == 'sample' and not use_same_gpu_seed:
        warnings.warn(
            "use_same_gpu_seed=False has no effect with stochastic_method='sample': every sample has a draw of its"
            " own.", stacklevel=2)
    if stochastic_method == 'block' and skip_dropped:
        warnings.warn(
            "skip_dropped=True has no effect with stochastic_method='block', which never computes what it drops.",
            stacklevel=2)

    _replace_drop_path(blocks)
    progress = TrainingProgress()
    for block_idx, ((_, block), scale) in enumerate(zip(blocks, scales)):
        block.__class__ = stochastic_classes.get(type(block), type(block))
        block.configure(stochastic_method, drop_rate, scale, **settings, block_idx=block_idx, progress=progress)


def drop_rates(model: nn.Module) -> Dict[str, float]:
    """Drop rate now in force of each stochastic block, by module name, in forward order."""
    return {name: block.drop_prob for name, block in stochastic_blocks(model)}


def set_drop_rate(model: nn.Module, drop_rate: float) -> None:
    """Set the drop rate of a network, in [0, 1]: spread over the depth, and warmed up, as before.

    Raises:
        TypeError: drop_rate is not a number.
        ValueError: drop_rate is outside [0, 1].
    """
    drop_rate = check_fraction('drop_rate', drop_rate)
    for _, block in stochastic_blocks(model):
        block.set_drop_rate(drop_rate)


def set_training_progress(model: nn.Module, fraction: float) -> None:
    """Say how far training is, from 0 at its start to 1 at its end: this drives `drop_warmup`.

    A model that nobody tells stands at 1, where every rate is the full one. Copies made by deepcopy, an EMA's for
    instance, follow. Weights stay as they are: `start_warmup` begins a training run that is given weights.

    Raises:
        TypeError: fraction is not a number.
        ValueError: fraction is outside [0, 1].
    """
    fraction = check_fraction('fraction', fraction)
    for progress in {block.progress for _, block in stochastic_blocks(model)}:
        progress.tell(fraction)


def stochastic_depth_args(model: nn.Module) -> Dict[str, Any]:
    """The keyword arguments that give a registered model the stochastic depth of this one.

    They belong into the `model_args` of a config.json, as in `timm.models.save_for_hf(model, path, model_args=...)`:
    without them a model is rebuilt with its default rate, and would scale by that.

    Raises:
        ValueError: The model has no stochastic blocks.
    """
    for _, block in stochastic_blocks(model):
        return dict(
            drop_path_rate=block.drop_rate,
            drop_distribution=block.drop_distribution,
            drop_warmup=block.drop_warmup,
            use_same_gpu_seed=block.use_same_gpu_seed,
            scale_by_keep=block.scale_by_keep,
            skip_dropped=block.skip_dropped,
        )
    raise ValueError(f'model must hold stochastic blocks, but {type(model).__name__} holds none.')
