"""Apply stochastic depth to a model that exists."""
from dataclasses import fields, replace
from functools import wraps
from inspect import signature
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar, cast

from torch import nn

from .checkpoints.names import RecordedDropPath
from .folding.rescale import Rescaling, multiply, rescaling
from .folding.trained_weights import former_factors, note_change
from .inspection import drop_paths, inference_factors
from .layers.guards import refuse_rounding, refuse_split_norms
from .layers.install import install_all
from .layers.progress import TrainingProgress
from .layers.target_names import HOW_TO_ADD_BLOCKS, check_target_layer_name, names_that_fit
from .layers.targets import STOCHASTIC_LAYER_MAPPING, Target, class_name, drop_paths_left, find_targets
from .messages import shown, warn_user
from .settings import Settings, check_flag, depth_shares

__all__ = [
    'apply_recorded', 'apply_settings', 'apply_stochastic_depth', 'refuse_targets', 'warn_of_no_effect']

F = TypeVar('F', bound=Callable[..., None])


def _settings_or_single_ones(function: F) -> F:
    """Refuse single settings beside `settings`, as defaults that are given, too, show in the call alone."""
    names = {field.name for field in fields(Settings)}

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> None:
        settings = kwargs.get('settings')
        if settings is not None:
            if not isinstance(settings, Settings):
                raise TypeError(
                    f'settings must be a timm_stochdepth.Settings, but got {shown(settings, with_type=True)}.')
            both = [name for name in signature(function).bind_partial(*args, **kwargs).arguments if name in names]
            if both:
                raise ValueError(f'settings must not be given with single ones, but {", ".join(both)} were given, too.')
        function(*args, **kwargs)

    return cast(F, call)


@_settings_or_single_ones
def apply_stochastic_depth(
        model: nn.Module,
        stochastic_method: Optional[str] = None,
        target_layer_name: Optional[str] = None,
        drop_rate: Optional[float] = 0.2,
        drop_distribution: str = 'linear',
        use_same_gpu_seed: bool = True,
        *,
        drop_warmup: float = 0.,
        drop_schedule: Optional[Sequence[Tuple[float, float]]] = None,
        scale_by_keep: Optional[bool] = None,
        skip_dropped: bool = False,
        round_up: bool = False,
        draw: str = 'independent',
        keep_function: bool = False,
        settings: Optional[Settings] = None,
) -> None:
    """Give the residual blocks of a model stochastic depth (https://arxiv.org/abs/1603.09382), in place.

    Parameters, buffers, their names, hooks and the optimizer's references stay the same objects. Where a block has
    stochastic depth already, the new settings take the place of the old ones.

    A network that was trained computes something else at inference afterwards, as its branches are scaled there:
    `keep_function=True` scales the weights for it. With `scale_by_keep=True` inference is that of the plain network.

    Args:
        model: Any model that holds such blocks; the first dimension of their input is the batch.
        stochastic_method: `'sample'` or `'block'`; see `Settings`, as for all that is in it.
        target_layer_name: `'DropPath'`, wherever timm, torchvision or others have one (docs/any_model.md); a key of
            `STOCHASTIC_LAYER_MAPPING`; or a class's own name, as in `'vision_transformer.Block'`.
        drop_rate: Drop rate of the network, in [0, 1]; None keeps the rate of each drop path that is there.
        drop_distribution: `'linear'` or `'uniform'`: how it is spread over the blocks.
        use_same_gpu_seed: Block method: whether the ranks of a distributed run drop the same blocks.
        drop_warmup, drop_schedule: How the rate moves in training; see `set_training_progress`, too.
        scale_by_keep: Divide by the keep probability in training, instead of scaling by it at inference.
        skip_dropped, round_up, draw: Sample method: run a branch for the samples that keep it alone; how many that is.
        keep_function: Scale the weights in place, so that the model computes at inference what it computed before.
        settings: All but the model, target_layer_name and keep_function in one object, instead of one by one.

    Raises:
        TypeError: model is no module, a rate not a number, a flag not a bool, or settings no `Settings`.
        ValueError: A value is not one of those allowed, or settings are given in both ways. Or the branches of a block
            can only be masked, and are to be left out, or skip_dropped meets a SplitBatchNorm2d. Or no weights keep the
            function: a block is always dropped, or a branch ends in nothing to be scaled. The model stays as it was.

    Example:
        >>> import timm
        >>> from timm_stochdepth import drop_rates
        >>> model = timm.create_model('resnet18')
        >>> apply_stochastic_depth(model, 'block', 'ResNetBasicBlock', drop_rate=0.35)
        >>> drop_rates(model)['layer4.1']
        0.35
        >>> model = timm.create_model('test_vit', drop_path_rate=0.4)
        >>> apply_stochastic_depth(model, 'sample', 'DropPath', drop_rate=None, scale_by_keep=True, skip_dropped=True)
    """
    settings = settings or Settings(
        cast(str, stochastic_method), drop_rate, drop_distribution, use_same_gpu_seed, drop_warmup, drop_schedule,
        scale_by_keep, skip_dropped, round_up, draw)
    check_flag('keep_function', keep_function)
    apply_settings(model, target_layer_name, settings, keep_function)


def apply_settings(
        model: nn.Module,
        target_layer_name: Optional[str],
        settings: Settings,
        keep_function: bool = False,
        progress: Optional[TrainingProgress] = None,
) -> None:
    """`apply_stochastic_depth` for a network that is at some point of its training, at the end if progress is None."""
    factors, former = inference_factors(model), former_factors(model)
    check_target_layer_name(target_layer_name, model)
    assert target_layer_name is not None
    targets = find_targets(model, target_layer_name)
    refuse_targets(targets, settings)
    for target in targets:
        factors.update((target.full_name(name), peer.inference_scale) for name, peer in target.peers.items())
    if settings.drop_rate is not None and target_layer_name != 'DropPath':
        _warn_of_replaced(targets)
    settings, shares = _of_targets(targets, settings)
    _warn_of_what_stays(model, target_layer_name, targets)
    warn_of_no_effect(settings, shares if targets else None)
    progress = progress or TrainingProgress()
    scaling = _rescaling(model, targets, factors, settings, shares, progress.fraction) if keep_function else []

    install_all(targets, settings, shares, progress)
    multiply(scaling)
    note_change(
        model, factors, former, keep_function, advice=', scale_by_keep=True scales in training instead')


def _rescaling(
        model: nn.Module,
        targets: Sequence[Target],
        factors: Mapping[str, float],
        settings: Settings,
        shares: Sequence[Sequence[float]],
        progress: float,
) -> Rescaling:
    """What keeps the function of blocks that are to become stochastic ones, before any of them is changed."""
    blocks, after = [], {}
    for target, of_block in zip(targets, shares):
        block = _as_stochastic(target)
        for name, share in zip(target.drop_path_names, of_block):
            blocks.append((target.full_name(name), block))
            after[target.full_name(name)] = settings.inference_factor((settings.drop_rate or 0.) * share, progress)
    return rescaling(model, blocks, factors, after)


def _as_stochastic(target: Target) -> nn.Module:
    """What a block is going to be, made of the same tensors."""
    if target.stochastic_class is None:
        return target.block
    block: nn.Module = target.stochastic_class.__new__(target.stochastic_class)
    attributes = {name: value for name, value in vars(target.block).items() if name not in target.drop_path_names}
    attributes['_modules'] = {**target.block._modules, **{name: nn.Identity() for name in target.drop_path_names}}
    object.__setattr__(block, '__dict__', attributes)
    return block


def _of_targets(targets: Sequence[Target], settings: Settings) -> Tuple[Settings, List[List[float]]]:
    """The settings with what is taken over from the drop paths that are there, and each one's share of the rate."""
    block_shares = depth_shares(len(targets), settings.drop_distribution)
    shares = [[share] * len(target.drop_path_names) for target, share in zip(targets, block_shares)]
    if settings.drop_rate is not None:
        return replace(settings, scale_by_keep=bool(settings.scale_by_keep)), shares
    scale_by_keep = settings.scale_by_keep
    if scale_by_keep is None:
        conventions = set().union(*(target.conventions() for target in targets))
        if len(conventions) > 1:
            raise ValueError(
                'scale_by_keep must be given with drop_rate=None where some drop paths of the model divide by the keep'
                ' probability in training, and others do not, but got None.')
        scale_by_keep = False not in conventions  # none says anything at a rate of 0, where timm's would be True
    rates = [target.rates() for target in targets]
    drop_rate = max((rate for of_block in rates for rate in of_block), default=0.)
    if drop_rate > 0.:
        shares = [[rate / drop_rate for rate in of_block] for of_block in rates]
    return replace(settings, drop_rate=drop_rate, scale_by_keep=scale_by_keep), shares


def refuse_targets(targets: Sequence[Target], settings: Settings) -> None:
    """Refuse settings by which branches are to be left out that can only be masked."""
    reasons: Dict[str, Target] = {}
    for target in targets:
        if settings.skip_dropped:
            refuse_split_norms(target.block)
        if settings.round_up:
            refuse_rounding(target.block)
        if target.stochastic_class is None:
            reasons.setdefault(class_name(target.block), target)
    if reasons and (settings.skip_dropped or settings.stochastic_method == 'block'):
        name, value = ('skip_dropped', 'False') if settings.skip_dropped else ('stochastic_method', "'sample'")
        blocks = '; '.join(f'{c} ({target.name}): {target.reason}' for c, target in reasons.items())
        raise ValueError(
            f'{name} must be {value} for blocks whose branches cannot be left out, but got'
            f' {getattr(settings, name)!r}: {blocks}.')


def apply_recorded(model: nn.Module, recorded: Mapping[str, RecordedDropPath]) -> None:
    """Give the drop paths of a plain network the settings that they had in another one like it.

    Args:
        model: A plain network.
        recorded: What they had, by the name of the drop path; others stay as they are.

    Raises:
        ValueError: The network has none of that name.
    """
    keys = ('DropPath', *STOCHASTIC_LAYER_MAPPING)
    targets = {target.name: target for key in keys for target in find_targets(model, key)}
    names = {target.full_name(name) for target in targets.values() for name in target.drop_path_names}
    missing = [name for name in recorded if name not in names]
    if missing:
        raise ValueError(
            f'model must have the drop paths that its weights were trained with, but {type(model).__name__} lacks'
            f' {", ".join(missing)}.')
    groups: Dict[Settings, List[Tuple[Target, List[float]]]] = {}
    for target in targets.values():
        said = [recorded.get(target.full_name(name)) for name in target.drop_path_names]
        settings = next((s.settings for s in said if s is not None), None)
        if settings is not None:
            groups.setdefault(settings, []).append((target, [0. if s is None else s.depth_scale for s in said]))
    for settings, group in groups.items():
        install_all([target for target, _ in group], settings, [shares for _, shares in group], TrainingProgress())
    for name, drop_path in drop_paths(model):
        if name in recorded and recorded[name].own_rate is not None:
            drop_path.set_drop_rate(drop_path.settings.drop_rate or 0., recorded[name].own_rate)


def _warn_of_replaced(targets: Sequence[Target]) -> None:
    """Warn of others' drop paths in blocks that were asked for by their kind, whose rates are lost."""
    peers = [
        f'{target.full_name(name)} ({type(getattr(target.block, name)).__name__})'
        for target in targets for name in target.peers]
    if peers:
        warn_user(f'A block is not given stochastic depth twice, these are replaced: {", ".join(peers)}.')


def _warn_of_what_stays(model: nn.Module, target_layer_name: str, targets: Sequence[Target]) -> None:
    """Warn of a model without targets, and of drop paths in it that are not taken over."""
    kinds: Dict[Tuple[str, str], List[str]] = {}
    for name, kind in drop_paths_left(model, target_layer_name, targets).items():
        kinds.setdefault(kind, []).append(name)
    left = '; '.join(
        f'{class_name} ({names[0]}{f" and {len(names) - 1} more" if names[1:] else ""}), as {reason}'
        for (class_name, reason), names in kinds.items())
    left = left and f'These stay what they are: {left}. timm.layers.DropPath in their places is.'
    found = f'No {target_layer_name} found in {type(model).__name__}'
    if targets and left:
        warn_user(f'Not all drop paths of {type(model).__name__} are taken over. {left}')
    elif left:
        warn_user(f'{found} that can be taken over: nothing changes. {left}')
    elif not targets:
        fitting = ', '.join(names_that_fit(model))
        fits = f'the names that fit it are {fitting}.' if fitting else (
            f'none of its blocks has a drop path. {HOW_TO_ADD_BLOCKS}')
        warn_user(f'{found}: nothing is dropped, {fits}')


def warn_of_no_effect(settings: Settings, shares: Optional[Sequence[Sequence[float]]]) -> None:
    """Warn of settings without an effect on drop paths with these shares of the rate."""
    if shares and settings.drop_rate == 0.:
        warn_user('drop_rate is 0: stochastic depth has no effect until set_drop_rate sets another.')
    elif shares and not any(share for of_block in shares for share in of_block):
        warn_user(
            f"drop_rate={settings.drop_rate} has no effect: with drop_distribution='linear' the first block has the"
            f" rate 0, and it is the only one. 'uniform' gives it drop_rate.")
    if settings.stochastic_method == 'sample' and not settings.use_same_gpu_seed:
        warn_user(
            "use_same_gpu_seed=False has no effect with stochastic_method='sample': every sample has a draw of its"
            ' own.')
    if settings.round_up and not settings.skip_dropped:
        warn_user('round_up=True has no effect without skip_dropped=True: all samples run.')
    if settings.stochastic_method == 'block' and settings.skip_dropped:
        warn_user(
            "skip_dropped=True has no effect with stochastic_method='block', which never computes what it drops.")
