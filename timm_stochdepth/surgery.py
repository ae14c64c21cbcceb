"""Stochastic depth for a model that exists: apply it, look at it, change its rate."""
import re
import warnings
from dataclasses import replace
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from torch import nn

from .blocks import StochasticBlock, plain_class_of
from .norms import refuse_split_norms
from .progress import TrainingProgress
from .rates import check_choice, check_fraction, depth_scales
from .settings import Settings
from .sharding import sharded_like
from .shared_draws import SharedDraws
from .site import StochasticDropPath
from .targets import STOCHASTIC_LAYER_MAPPING, Target, class_name, find_targets

__all__ = ['apply_stochastic_depth', 'drop_rates', 'set_drop_rate', 'set_training_progress', 'stochastic_depth_args']


def drop_paths(model: nn.Module) -> Iterator[Tuple[str, StochasticDropPath]]:
    """Names and modules of all places where a model drops, in the order that they were registered in.

    Raises:
        TypeError: model is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f'model must be a torch.nn.Module, but got {model!r} ({type(model).__name__}).')
    return ((name, m) for name, m in model.named_modules() if isinstance(m, StochasticDropPath))


def check_target_layer_name(name: Any) -> None:
    """Refuse what names no target layer, a class's own name (`'vision_transformer.Block'`) may be one."""
    if not (isinstance(name, str) and re.fullmatch(r'\w+\.\w+', name)):
        check_choice('target_layer_name', name, ('DropPath', *STOCHASTIC_LAYER_MAPPING))


def apply_stochastic_depth(
        model: nn.Module,
        stochastic_method: str,
        target_layer_name: str,
        drop_rate: Optional[float] = 0.2,
        drop_distribution: str = 'linear',
        use_same_gpu_seed: bool = True,
        *,
        drop_warmup: float = 0.,
        drop_schedule: Optional[Sequence[Tuple[float, float]]] = None,
        scale_by_keep: bool = False,
        skip_dropped: bool = False,
) -> None:
    """Give the residual blocks of a model stochastic depth (https://arxiv.org/abs/1603.09382), in place.

    Parameters, buffers, their names, hooks and the optimizer's references stay the same objects. Where a block has
    stochastic depth already, the new settings take the place of the old ones.

    Args:
        model: Any model that holds blocks of the target layer's classes; the first dimension of their input is the
            batch.
        stochastic_method: `'sample'`, an independent draw for each sample and branch, or `'block'`, one draw for a
            branch and the whole batch, a dropped branch is then not computed.
        target_layer_name: `'DropPath'`, every place where timm has a drop path, or torchvision a `StochasticDepth`; a
            key of `STOCHASTIC_LAYER_MAPPING`; or a class's own name, as in `'vision_transformer.Block'`.
        drop_rate: Drop rate of the network, in [0, 1]; None keeps the rate of each drop path that is there.
        drop_distribution: `'linear'`, block l of 0 to L - 1 gets drop_rate * l / (L - 1), or `'uniform'`, each gets
            drop_rate. The branches of one block share its rate, and draw each for itself.
        use_same_gpu_seed: Block method: whether the ranks of a distributed run drop the same blocks.
        drop_warmup: Fraction of training over which the rate rises from 0, in [0, 1]; see `set_training_progress`.
        drop_schedule: Instead of drop_warmup, points (progress of training, share of the rate), linear in between:
            early stochastic depth is `[(0, 1), (0.2, 0)]`, late `[(0.2, 0), (0.2001, 1)]`
            (https://arxiv.org/abs/2303.01500).
        scale_by_keep: Divide by the keep probability in training, as timm's DropPath does, instead of scaling the
            branch by it at inference, as the paper does.
        skip_dropped: Sample method: run a branch for the samples that keep it alone, which saves the time of the
            others. With norms that do not look at the batch this is masking, to rounding. A BatchNorm trains on the
            statistics of the kept samples, and uses its running statistics where it is given one value per channel.

    Raises:
        TypeError: model is no module, a rate not a number, or a flag not a bool.
        ValueError: A value is not one of those allowed; the message names the argument, the value and them. Or the
            branches of a block can't be left out, only masked: the message names the block's class and the reason. Or
            skip_dropped meets a SplitBatchNorm2d.

    Example:
        >>> import timm
        >>> model = timm.create_model('resnet18')
        >>> apply_stochastic_depth(model, 'block', 'ResNetBasicBlock', drop_rate=0.35)
        >>> drop_rates(model)['layer4.1']
        0.35

        As timm trains it, without computing what is dropped:

        >>> model = timm.create_model('test_vit', drop_path_rate=0.4)
        >>> apply_stochastic_depth(model, 'sample', 'DropPath', drop_rate=None, scale_by_keep=True, skip_dropped=True)
    """
    settings = Settings(
        stochastic_method, drop_rate, drop_distribution, use_same_gpu_seed, drop_warmup, drop_schedule, scale_by_keep,
        skip_dropped)
    check_target_layer_name(target_layer_name)
    drop_paths(model)
    targets = find_targets(model, target_layer_name)
    _refuse_targets(targets, settings)  # before any change
    scales = [[scale] * len(t.places) for t, scale in zip(targets, depth_scales(len(targets), drop_distribution))]
    if drop_rate is None:
        rates = [target.rates() for target in targets]
        drop_rate = max((rate for of_block in rates for rate in of_block), default=0.)
        settings = replace(settings, drop_rate=drop_rate)
        scales = [[rate / (drop_rate or 1.) for rate in of_block] for of_block in rates]
    elif target_layer_name != 'DropPath':
        peers = [name for target in targets for name in target.peers()]
        if peers:
            warnings.warn(
                f'A block is not given stochastic depth twice, these are replaced: {", ".join(peers)}.', stacklevel=2)
    _tell_of_no_effect(model, target_layer_name, targets, settings)

    progress = TrainingProgress()
    shared_draws = None
    if stochastic_method == 'block' and use_same_gpu_seed:
        shared_draws = SharedDraws(' '.join(f'{target.name}.{place}' for target in targets for place in target.places))
    place_idx = 0
    for target, scales_of_block in zip(targets, scales):
        for place, scale in zip(target.places, scales_of_block):
            _install(target.block, place).configure(settings, scale, place_idx, progress, shared_draws)
            place_idx += 1
        if target.stochastic_class is not None:
            target.block.__class__ = sharded_like(target.block, target.stochastic_class)


def _refuse_targets(targets: Sequence[Target], settings: Settings) -> None:
    reasons: Dict[str, Target] = {}
    for target in targets:
        if settings.skip_dropped:
            refuse_split_norms(target.block)
        if target.stochastic_class is None:
            reasons.setdefault(class_name(target.block), target)
    if reasons and (settings.skip_dropped or settings.stochastic_method == 'block'):
        name, value = ('skip_dropped', 'False') if settings.skip_dropped else ('stochastic_method', "'sample'")
        blocks = '; '.join(f'{c} ({target.name}): {target.reason}' for c, target in reasons.items())
        raise ValueError(
            f'{name} must be {value} for blocks whose branches cannot be left out, but got'
            f' {getattr(settings, name)!r}: {blocks}.')


def _tell_of_no_effect(model: nn.Module, target_layer_name: str, targets: Sequence[Target], settings: Settings) -> None:
    if not targets:
        warnings.warn(f'No {target_layer_name} found in {type(model).__name__}: nothing is dropped.', stacklevel=3)
    if settings.drop_rate == 0.:
        warnings.warn('drop_rate is 0: stochastic depth has no effect.', stacklevel=3)
    if settings.stochastic_method == 'sample' and not settings.use_same_gpu_seed:
        warnings.warn(
            "use_same_gpu_seed=False has no effect with stochastic_method='sample': every sample has a draw of its"
            " own.", stacklevel=3)
    if settings.stochastic_method == 'block' and settings.skip_dropped:
        warnings.warn(
            "skip_dropped=True has no effect with stochastic_method='block', which never computes what it drops.",
            stacklevel=3)


def _install(block: nn.Module, place: str) -> StochasticDropPath:
    stood = getattr(block, place, 'nothing')
    if isinstance(stood, StochasticDropPath):
        return stood
    drop_path = StochasticDropPath()
    drop_path.stands_for = 'nothing' if stood == 'nothing' else 'None' if stood is None else 'Identity'
    drop_path.training = block.training
    setattr(block, place, drop_path)
    return drop_path


def remove_stochastic_depth(model: nn.Module) -> None:
    """Make a model's blocks plain again, in place: settings forgotten, weights as they are, nothing is dropped."""
    blocks = list(dict(model.named_modules()).values())
    for block in blocks:
        for place, drop_path in list(block._modules.items()):
            if isinstance(drop_path, StochasticDropPath):
                drop_path.progress.remove(drop_path)
                if isinstance(block, StochasticBlock):
                    block.__class__ = sharded_like(block, plain_class_of(block))
                if drop_path.stands_for == 'Identity':
                    setattr(block, place, nn.Identity())
                else:
                    delattr(block, place)
                    if drop_path.stands_for == 'None':
                        setattr(block, place, None)


def blocks_by_name(model: nn.Module) -> Iterator[Tuple[str, StochasticDropPath]]:
    """Drop paths by the names of their blocks; by their own where those of a block have different rates."""
    blocks: Dict[str, List[Tuple[str, StochasticDropPath]]] = {}
    for name, drop_path in drop_paths(model):
        blocks.setdefault(name.rpartition('.')[0], []).append((name, drop_path))
    for block_name, of_block in blocks.items():
        if len({drop_path.depth_scale for _, drop_path in of_block}) == 1:
            yield block_name, of_block[0][1]
        else:
            yield from of_block


def drop_rates(model: nn.Module) -> Dict[str, float]:
    """Drop rate now in force of each stochastic block, in forward order.

    Args:
        model: Any model; without stochastic depth there are no rates.

    Returns:
        Probabilities in [0, 1], by the block's name in the model. Drop paths of one block that have different rates
        are listed by their own names.

    Raises:
        TypeError: model is no module.
    """
    return {name: drop_path.drop_prob for name, drop_path in blocks_by_name(model)}


def set_drop_rate(model: nn.Module, drop_rate: float) -> None:
    """Set the drop rate of a network: spread over the depth, and warmed up, as before.

    It takes effect with the next forward pass. Copies made by deepcopy, an EMA's for instance, follow.

    Args:
        model: Model with stochastic depth; others stay as they are.
        drop_rate: Drop rate of the network, in [0, 1].

    Raises:
        TypeError: model is no module, or drop_rate not a number.
        ValueError: drop_rate is outside [0, 1].
    """
    drop_rate = check_fraction('drop_rate', drop_rate)
    for _, drop_path in drop_paths(model):
        drop_path.progress.tell_rate(drop_path.place_idx, drop_rate)


def set_training_progress(model: nn.Module, fraction: float) -> None:
    """Say how far training is: this drives `drop_warmup` and `drop_schedule`.

    A model that nobody tells stands at 1, where a warm-up is over. Copies made by deepcopy, an EMA's for instance,
    follow. Weights stay as they are: `start_warmup` begins a training run that is given weights.

    Args:
        model: Model with stochastic depth; others stay as they are.
        fraction: Share of training that is done, from 0 at its start to 1 at its end.

    Raises:
        TypeError: model is no module, or fraction not a number.
        ValueError: fraction is outside [0, 1].

    Example:
        >>> import timm
        >>> model = timm.create_model('resnet18')
        >>> apply_stochastic_depth(model, 'block', 'ResNetBasicBlock', drop_rate=0.2, drop_warmup=0.5)
        >>> set_training_progress(model, 0.25)
        >>> drop_rates(model)['layer4.1']
        0.1
    """
    fraction = check_fraction('fraction', fraction)
    for progress in {drop_path.progress for _, drop_path in drop_paths(model)}:
        progress.tell(fraction)


def stochastic_depth_args(model: nn.Module) -> Dict[str, Any]:
    """The keyword arguments that give a registered model the stochastic depth of this one.

    They belong into the `model_args` of a config.json, as in `timm.models.save_for_hf(model, path, model_args=...)`:
    without them a model is rebuilt with its default rate, and would scale by that.

    Args:
        model: Model with stochastic depth.

    Returns:
        `drop_path_rate` and the other settings, each under the name that `timm.create_model` takes it by.

    Raises:
        TypeError: model is no module.
        ValueError: model has no stochastic blocks.

    Example:
        >>> import timm
        >>> model = timm.create_model('resnet50_sd_block', drop_path_rate=0.3)
        >>> stochastic_depth_args(model)['drop_path_rate']
        0.3
    """
    for _, drop_path in drop_paths(model):
        return drop_path.settings.model_args()
    raise ValueError(f'model must hold stochastic blocks, but {type(model).__name__} holds none.')
