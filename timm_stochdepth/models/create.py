"""Create a registered model: timm's own network, its drop paths made stochastic, its weights scaled to their rates."""
from contextlib import nullcontext
from dataclasses import fields, replace
from fractions import Fraction
from math import isclose
from typing import Any, Callable, ContextManager, Dict, List, Mapping, Optional, Tuple, Union

from timm.layers import DropPath
from timm.models import FeatureGraphNet, PretrainedCfg, get_pretrained_cfg, model_entrypoint
from torch import nn

from ..apply import refuse_targets, warn_of_no_effect
from ..checkpoints.file import create_on_meta
from ..checkpoints.offline import offline_hint
from ..inspection import drop_paths
from ..layers.guards import looks_at_batch
from ..layers.install import install_all
from ..layers.progress import TrainingProgress
from ..layers.targets import Target, find_targets
from ..messages import shown
from ..settings import Settings, check_flag, check_fraction, depth_shares
from ..zoo.exceptions import methods_of, refuse_settings
from ..zoo.names import stochastic_name
from ..zoo.rates import default_rate, scales_by_keep_by_default
from ..zoo.without_drop_paths import default_distribution, target_layer_of
from .pretrained import given_weights, said_of_this_load, scale_pretrained

__all__ = ['create_stochastic']

# of timm's network, which is asked for its share of each drop path: half, so that they lose nothing by rounding
_TIMM_RATE = 0.5

# what timm makes features of a network by
_OF_FEATURES = ('features_only', 'out_indices', 'feature_cls', 'feature_cfg', 'feature_location')

_SETTINGS = {field.name for field in fields(Settings)} - {'drop_rate', 'stochastic_method'}


def create_stochastic(
        plain_name: str,
        method: str,
        /,
        pretrained: bool = False,
        pretrained_cfg: Optional[Union[str, Dict[str, Any], PretrainedCfg]] = None,
        pretrained_cfg_overlay: Optional[Mapping[str, Any]] = None,
        fold_pretrained: Optional[bool] = None,
        **kwargs: Any,
) -> nn.Module:
    """Create a network of timm with stochastic depth.

    Args:
        plain_name: Name of timm's network.
        method: `'sample'` or `'block'`.
        pretrained: Load pretrained weights.
        pretrained_cfg: As in `timm.create_model`.
        pretrained_cfg_overlay: As in `timm.create_model`.
        fold_pretrained: Whether the weights are a plain network's, see `models.pretrained`. None: as found.
        **kwargs: `drop_path_rate` (the rate of stochastic depth), all other `Settings`, and those of timm's network.

    Raises:
        TypeError: A setting is of another kind, or timm's network does not take an argument.
        ValueError: A setting is not one of those allowed, or none that this network can have.
        RuntimeError: timm has no such tag.
    """
    name = stochastic_name(plain_name, method)
    settings, skips_by_default = _take_settings(plain_name, method, kwargs)
    target_layer = target_layer_of(model_entrypoint(plain_name).__module__)
    is_part = bool(kwargs.get('features_only'))
    if fold_pretrained is not None:
        check_flag('fold_pretrained', fold_pretrained)
        fold_pretrained = said_of_this_load(fold_pretrained, kwargs.get('pretrained_model_args'))
    if isinstance(pretrained_cfg, str):
        get_pretrained_cfg(f'{name}.{pretrained_cfg}')  # refuses a tag by this name, where timm would by its own
    overlay = {**(pretrained_cfg_overlay or {}), 'architecture': name}
    cfg = vars(pretrained_cfg) if isinstance(pretrained_cfg, PretrainedCfg) else pretrained_cfg
    given = {**(cfg if isinstance(cfg, dict) else {}), **overlay}
    weights = given_weights(given) if pretrained else None

    def make_stochastic(model: nn.Module) -> None:
        _make_stochastic(model, target_layer, _num_blocks(plain_name, target_layer, kwargs), settings, skips_by_default)
        if pretrained:
            model_args = kwargs.get('pretrained_model_args')
            scale_pretrained(model, fold_pretrained, kwargs.get('cache_dir'), weights, model_args, is_part=is_part)

    with _offline_hint(name) if pretrained else nullcontext():
        model: Any = model_entrypoint(plain_name)(
            pretrained=pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay if weights is None else {**overlay, 'state_dict': weights.state_dict},
            **({'drop_path_rate': _TIMM_RATE} if target_layer == 'DropPath' else {}),
            **_with_graph_of(make_stochastic, kwargs),
        )
    if not any(drop_paths(model)):
        make_stochastic(model)
    if weights is not None and not given.get('state_dict'):
        for module in model.modules():  # of features, the network within them, too
            vars(module).get('pretrained_cfg', {}).pop('state_dict', None)
    return model


def _offline_hint(name: str) -> ContextManager[None]:
    return offline_hint(
        name,
        "pretrained_cfg_overlay=dict(file=...), or train.py's --pretrained-path, takes weights that are on this"
        ' machine.')


def _take_settings(plain_name: str, method: str, kwargs: Dict[str, Any]) -> Tuple[Settings, bool]:
    """Take the settings out of the arguments of a model, and whether it skips samples by default.

    Raises:
        ValueError: They are none that the model can have.
    """
    name, module = stochastic_name(plain_name, method), model_entrypoint(plain_name).__module__
    other = kwargs.pop('stochastic_method', method)
    if other != method:
        names = ', '.join(stochastic_name(plain_name, m) for m in methods_of(plain_name, module))
        raise ValueError(
            f'stochastic_method must be what the name of the model says, {method!r} for {name}, but got {shown(other)}.'
            f' The names are {names}.')
    rate = kwargs.pop('drop_path_rate', None)
    if rate is None:
        rate = default_rate(plain_name, method).rate
    given = {setting: kwargs.pop(setting) for setting in _SETTINGS & kwargs.keys()}
    given = {setting: value for setting, value in given.items() if value is not None}
    defaults = dict(scale_by_keep=scales_by_keep_by_default(name), drop_distribution=default_distribution(module))
    settings = Settings(method, check_fraction('drop_path_rate', rate), **{**defaults, **given})
    refuse_settings(plain_name, module, settings)
    return settings, method == 'sample' and 'skip_dropped' not in given


def _num_blocks(plain_name: str, target_layer: str, kwargs: Mapping[str, Any]) -> Optional[int]:
    """Number of residual blocks of a network whose features are asked for, which may go without the last of them.

    None where that does not matter: the whole network is asked for, or timm gives its drop paths their rates.
    """
    if target_layer == 'DropPath' or not kwargs.get('features_only'):
        return None
    of_whole = {name: value for name, value in kwargs.items() if name not in _OF_FEATURES}
    return len(find_targets(create_on_meta(plain_name, **of_whole), target_layer))


def _make_stochastic(
        model: nn.Module,
        target_layer: str,
        num_blocks: Optional[int],
        settings: Settings,
        skips_by_default: bool,
) -> None:
    """Give a network of timm, which was made at a rate of its own, stochastic depth by timm's rule for the family.

    Args:
        model: The network, or the features of one.
        target_layer: What its blocks are asked for by.
        num_blocks: How many the whole network has, if that is not what model has, and timm has no rates for them.
        settings: Those asked for.
        skips_by_default: Whether to skip samples where that is the same function as to mask them.
    """
    targets = find_targets(model, target_layer)
    if skips_by_default:
        settings = replace(settings, skip_dropped=_skips_exactly(targets))
    refuse_targets(targets, settings)
    shares = _shares(targets, num_blocks, settings.drop_distribution)
    warn_of_no_effect(settings, shares)
    install_all(targets, settings, shares, TrainingProgress())
    for module in model.modules():
        if isinstance(module, DropPath):  # that no forward calls: as timm would show it
            module.drop_prob *= (settings.drop_rate or 0.) / _TIMM_RATE


def _skips_exactly(targets: List[Target]) -> bool:
    """Whether to skip the dropped samples is to mask them, in every block."""
    return all(target.stochastic_class is not None and not looks_at_batch(target.block) for target in targets)


def _shares(targets: List[Target], num_blocks: Optional[int], drop_distribution: str) -> List[List[float]]:
    """The share of the rate that each drop path gets: by timm's rule, linear in most families, or all of it."""
    if drop_distribution == 'uniform':
        return [[1.] * len(target.drop_path_names) for target in targets]
    rates = [target.rates() for target in targets]
    if not any(map(any, rates)):  # timm gives them none
        shares = depth_shares(num_blocks or len(targets), drop_distribution)
        return [[share] * len(target.drop_path_names) for target, share in zip(targets, shares)]
    return [[_without_rounding(rate / _TIMM_RATE) for rate in of_block] for of_block in rates]


def _without_rounding(share: float) -> float:
    """A share, most are a block's number by the number of blocks, which timm has computed in single precision."""
    fraction = float(Fraction(share).limit_denominator(1000))
    return fraction if isclose(fraction, share, rel_tol=1e-6) else share


def _with_graph_of(make_stochastic: Callable[[nn.Module], None], kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments by which timm traces the features of a stochastic network, where it is to trace them (`'fx'`)."""
    def traced(model: nn.Module, **feature_cfg: Any) -> nn.Module:
        make_stochastic(model)
        return FeatureGraphNet(model, **feature_cfg)

    def replaced(args: Mapping[str, Any]) -> Dict[str, Any]:
        feature_cls = args.get('feature_cls')
        is_traced = feature_cls is FeatureGraphNet or str(feature_cls).lower() == 'fx'
        return {**args, 'feature_cls': traced} if is_traced else dict(args)

    kwargs = replaced(kwargs)
    return {**kwargs, 'feature_cfg': replaced(kwargs['feature_cfg'])} if 'feature_cfg' in kwargs else kwargs
