"""Apply stochastic depth to a model that exists."""
import warnings
from dataclasses import replace
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from torch import nn

from .checkpoints.names import RecordedDropPath
from .folding.rescale import scale_own_branches
from .folding.trained_weights import former_scales, tell_of_kept_function, tell_of_other_function
from .inspection import drop_paths, inference_scales
from .layers.guards import refuse_split_norms
from .layers.install import install_all, undone_after_an_error
from .layers.progress import TrainingProgress
from .layers.target_names import HOW_TO_ADD_BLOCKS, check_target_layer_name, names_that_fit
from .layers.targets import STOCHASTIC_LAYER_MAPPING, Target, class_name, drop_paths_left, find_targets
from .settings import Settings, check_flag, depth_scales

__all__ = ['apply_recorded', 'apply_settings', 'apply_stochastic_depth', 'tell_of_no_effect', 'tell_of_replaced']


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
        scale_by_keep: Optional[bool] = None,
        skip_dropped: bool = False,
        keep_function: bool = False,
) -> None:
    """Give the residual blocks of a model stochastic depth (https://arxiv.org/abs/1603.09382), in place.

    Parameters, buffers, their names, hooks and the optimizer's references stay the same objects. Where a block has
    stochastic depth already, the new settings take the place of the old ones.

    A network that was trained computes something else at inference afterwards, as its branches are scaled there by what
    its weights do not know of: `keep_function=True` scales the weights for it. With `scale_by_keep=True` inference is
    that of the plain network, and nothing has to be scaled.

    Args:
        model: Any model that holds blocks of the target layer's classes; the first dimension of their input is the
            batch.
        stochastic_method: `'sample'`, an independent draw for each sample and branch, or `'block'`, one draw for a
            branch and the whole batch, a dropped branch is then not computed.
        target_layer_name: `'DropPath'`, every place where timm has a drop path, torchvision a `StochasticDepth`, or
            somebody else, under a name with `drop_path`, a class that is called so and does the same; a key of
            `STOCHASTIC_LAYER_MAPPING`; or a class's own name, as in `'vision_transformer.Block'`.
        drop_rate: Drop rate of the network, in [0, 1]; None keeps the rate of each drop path that is there.
        drop_distribution: `'linear'`, block l of 0 to L - 1 gets drop_rate * l / (L - 1), or `'uniform'`, each gets
            drop_rate. The branches of one block share its rate, and draw each for itself.
        use_same_gpu_seed: Block method: whether the ranks of a distributed run drop the same blocks.
        drop_warmup: Fraction of training over which the rate rises from 0, in [0, 1]; see `set_training_progress`.
        drop_schedule: Instead of drop_warmup, points (progress of training, share of the rate), linear in between:
            early stochastic depth is `[(0, 1), (0.2, 0)]`, late `[(0.2, 0), (0.2001, 1)]`
            (https://arxiv.org/abs/2303.01500).
        scale_by_keep: Divide by the keep probability in training, as timm's DropPath does, instead of scaling the
            branch by it at inference, as the paper does. None for the latter, or with a drop_rate of None for what the
            drop paths that are there do: timm's divide.
        skip_dropped: Sample method: run a branch for the samples that keep it alone, which saves the time of the
            others. With norms that do not look at the batch this is masking, to rounding. A BatchNorm trains on the
            statistics of the kept samples, and uses its running statistics where it is given one value per channel.
        keep_function: Scale the weights that the model has, at the end of each branch, so that it computes at inference
            what it computed before: for weights that were trained. Values change in place, tensors stay the same.

    Raises:
        TypeError: model is no module, a rate not a number, or a flag not a bool.
        ValueError: A value is not one of those allowed; the message names the argument, the value and them. Or the
            branches of a block can't be left out, only masked: the message names the block's class and the reason. Or
            skip_dropped meets a SplitBatchNorm2d. Or no weights keep the function, as a block is always dropped (rate
            1), or a branch ends in nothing that can be scaled. The model is left as it was.

    Example:
        >>> import timm
        >>> from timm_stochdepth import drop_rates
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
    check_flag('keep_function', keep_function)
    apply_settings(model, target_layer_name, settings, keep_function=keep_function)


def apply_settings(
        model: nn.Module,
        target_layer_name: str,
        settings: Settings,
        keep_function: bool = False,
        progress: Optional[TrainingProgress] = None,
) -> None:
    """`apply_stochastic_depth`, for who has its settings as one object.

    Args:
        model: As there.
        target_layer_name: As there.
        settings: All that is set.
        keep_function: As there.
        progress: How far training is; at its end if None.
    """
    scales, trained_scales = inference_scales(model), former_scales(model)
    check_target_layer_name(target_layer_name, model)
    targets = find_targets(model, target_layer_name)
    _refuse_targets(targets, settings)  # before any change
    for target in targets:
        scales.update((target.full_name(place), peer.inference_scale) for place, peer in target.peers.items())
    if settings.drop_rate is not None and target_layer_name != 'DropPath':
        tell_of_replaced(targets, stacklevel=3)
    settings, depth_shares = _of_targets(targets, settings)
    tell_of_no_effect(model, target_layer_name, targets, settings, depth_shares, stacklevel=3)

    with undone_after_an_error(targets):
        install_all(targets, settings, depth_shares, progress or TrainingProgress())
        if keep_function:
            scale_own_branches(model, scales, inference_scales(model))
    if keep_function:
        has_scaled = any(scale != scales.get(name, 1.) for name, scale in inference_scales(model).items())
        tell_of_kept_function(trained_scales, has_scaled, stacklevel=3)
        if has_scaled:
            trained_scales = scales = inference_scales(model)
    tell_of_other_function(
        model, scales, trained_scales, stacklevel=3, advice=', scale_by_keep=True scales in training instead')


def _of_targets(targets: Sequence[Target], settings: Settings) -> Tuple[Settings, List[List[float]]]:
    """The settings, with what is taken over from the drop paths that are there, and each place's share of the rate."""
    block_shares = depth_scales(len(targets), settings.drop_distribution)
    shares = [[share] * len(target.places) for target, share in zip(targets, block_shares)]
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
    names = {target.full_name(place) for target in targets.values() for place in target.places}
    missing = [name for name in recorded if name not in names]
    if missing:
        raise ValueError(
            f'model must have the drop paths that its weights were trained with, but {type(model).__name__} lacks'
            f' {", ".join(missing)}.')
    groups: Dict[Settings, List[Tuple[Target, List[float]]]] = {}
    for target in targets.values():
        said = [recorded.get(target.full_name(place)) for place in target.places]
        settings = next((s.settings for s in said if s is not None), None)
        if settings is not None:
            groups.setdefault(settings, []).append((target, [0. if s is None else s.depth_scale for s in said]))
    for settings, group in groups.items():
        install_all([target for target, _ in group], settings, [shares for _, shares in group], TrainingProgress())
    for name, drop_path in drop_paths(model):
        if name in recorded and recorded[name].own_rate is not None:
            drop_path.set_drop_rate(drop_path.settings.drop_rate or 0., recorded[name].own_rate)


def tell_of_replaced(targets: Sequence[Target], stacklevel: int) -> None:
    """Warn of others' drop paths in blocks that were asked for by their kind, whose rates are lost.

    Args:
        targets: The blocks, before they are changed.
        stacklevel: As of `warnings.warn`, seen from the caller.
    """
    peers = [
        f'{target.full_name(place)} ({type(getattr(target.block, place)).__name__})'
        for target in targets for place in target.peers]
    if peers:
        warnings.warn(
            f'A block is not given stochastic depth twice, these are replaced: {", ".join(peers)}.',
            stacklevel=stacklevel + 1)


def tell_of_no_effect(
        model: nn.Module,
        target_layer_name: str,
        targets: Sequence[Target],
        settings: Settings,
        shares: Sequence[Sequence[float]],
        stacklevel: int,
) -> None:
    """Warn of what a model has that is not taken over, and of settings without an effect.

    Args:
        model: The model, before it is changed.
        target_layer_name: What its blocks are asked for by.
        targets: Those that were found.
        settings: What they are to be given.
        shares: Share of the rate of each of their places.
        stacklevel: As of `warnings.warn`, seen from the caller.
    """
    left = _listed(drop_paths_left(model, target_layer_name, targets))
    texts = []
    if not targets:
        found = f'No {target_layer_name} found in {type(model).__name__}'
        texts.append(
            f'{found} that can be taken over: nothing changes. {left}' if left else
            f'{found}: nothing is dropped, {_what_fits(model)}')
    elif left:
        texts.append(f'Not all drop paths of {type(model).__name__} are taken over. {left}')
    if targets and settings.drop_rate == 0.:
        texts.append('drop_rate is 0: stochastic depth has no effect until set_drop_rate sets another.')
    elif targets and not any(share for of_block in shares for share in of_block):
        texts.append(
            f"drop_rate={settings.drop_rate} has no effect: with drop_distribution='linear' the first block has the"
            f" rate 0, and it is the only one. 'uniform' gives it drop_rate.")
    if settings.stochastic_method == 'sample' and not settings.use_same_gpu_seed:
        texts.append(
            "use_same_gpu_seed=False has no effect with stochastic_method='sample': every sample has a draw of its"
            ' own.')
    if settings.stochastic_method == 'block' and settings.skip_dropped:
        texts.append(
            "skip_dropped=True has no effect with stochastic_method='block', which never computes what it drops.")
    for text in texts:
        warnings.warn(text, stacklevel=stacklevel + 1)


def _what_fits(model: nn.Module) -> str:
    fitting = names_that_fit(model)
    return (
        f'the names that fit it are {", ".join(fitting)}.' if fitting else
        f'none of its blocks has a drop path. {HOW_TO_ADD_BLOCKS}')


def _listed(left: Mapping[str, Tuple[str, str]]) -> str:
    """Drop paths by their classes and the reasons, one name for all of a kind."""
    kinds: Dict[Tuple[str, str], List[str]] = {}
    for name, kind in left.items():
        kinds.setdefault(kind, []).append(name)
    texts = [
        f'{class_name} ({names[0]}{f" and {len(names) - 1} more" if names[1:] else ""}), as {reason}'
        for (class_name, reason), names in kinds.items()]
    return f'These stay what they are: {"; ".join(texts)}. timm.layers.DropPath in their places is.' if left else ''
