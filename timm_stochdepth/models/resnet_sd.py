"""ResNets with stochastic depth: timm's own networks, their blocks made stochastic.

Methods and default rates are those of the method cards of Composer's StochasticDepth
(https://github.com/mosaicml/composer/tree/main/composer/algorithms/stochastic_depth). The names are registered at the
end of an import of timm, which a part of this package may wait for: what networks need is imported when one is made.
"""
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from typing import Any, Dict, List, Optional

from timm.models import DefaultCfg, build_model_with_cfg, register_model
from timm.models.resnet import Bottleneck, ResNet
from timm.models.resnet import default_cfgs as _timm_default_cfgs

from ..messages import shown
from ..settings import METHODS, Settings, check_flag, check_fraction

__all__: List[str] = []  # model_registry will add each entrypoint fn to this


def _build_resnet_sd(
        plain_architecture: str,
        stochastic_method: str,
        drop_path_rate: float,
        **kwargs: Any,
) -> ResNet:
    from ..apply import apply_settings

    check_fraction('drop_path_rate', drop_path_rate)
    names = {f.name for f in fields(Settings)} & kwargs.keys() - {'drop_rate'}
    settings = Settings(stochastic_method, drop_path_rate, **{name: kwargs.pop(name) for name in names})
    block: Any = Bottleneck
    model: Any = ResNet(block=block, **kwargs)
    model.plain_architecture = plain_architecture
    apply_settings(model, 'ResNetBottleneck', settings)
    return model


def _create_resnet_sd(
        plain_architecture: str,
        method: str,
        /,
        pretrained: bool = False,
        fold_pretrained: Optional[bool] = None,
        **kwargs: Any,
) -> ResNet:
    """Create a ResNet with stochastic depth.

    Args:
        plain_architecture: Name of timm's model without stochastic depth.
        method: `'sample'` or `'block'`.
        pretrained: Load pretrained weights.
        fold_pretrained: Whether those are a plain network's, to be folded, see `models.pretrained`. None: as found.
        **kwargs: `drop_path_rate` (the rate of stochastic depth), all other `Settings`, and arguments of timm's ResNet.
    """
    from ..checkpoints.offline import offline_hint
    from .pretrained import checkpoint_filter_fn, said_of_this_load

    name = f'{plain_architecture}_sd_{method}'
    given = kwargs.pop('stochastic_method', method)
    if given != method:
        names = ', '.join(f'{plain_architecture}_sd_{m}' for m in METHODS)
        raise ValueError(
            f'stochastic_method must be what the name of the model says, {method!r} for {name}, but got {shown(given)}.'
            f' The names are {names}.')
    if fold_pretrained is not None:
        check_flag('fold_pretrained', fold_pretrained)
        fold_pretrained = said_of_this_load(fold_pretrained, kwargs.get('pretrained_model_args'))
    cfgs = [cfg for key in ('pretrained_cfg_overlay', 'pretrained_cfg') if isinstance(cfg := kwargs.get(key), dict)]
    filter_fn = partial(
        checkpoint_filter_fn,
        fold_pretrained=fold_pretrained,
        cache_dir=kwargs.get('cache_dir'),
        given_state_dict=next((cfg['state_dict'] for cfg in cfgs if cfg.get('state_dict')), None),
    )
    build = partial(_build_resnet_sd, plain_architecture, method)
    with offline_hint(
            name,
            "pretrained_cfg_overlay=dict(file=...), or train.py's --pretrained-path, takes weights that are on this"
            ' machine.') if pretrained else nullcontext():
        return build_model_with_cfg(build, name, pretrained, pretrained_filter_fn=filter_fn, **kwargs)


def _cfgs(plain_architecture: str) -> DefaultCfg:
    """timm's pretrained tags of a plain ResNet, its weights' place on the Hub spelled out."""
    plain = _timm_default_cfgs[plain_architecture]
    cfgs = {tag: replace(cfg, hf_hub_id=f'timm/{plain_architecture}.{tag}') for tag, cfg in plain.cfgs.items()}
    return DefaultCfg(tags=plain.tags.copy(), cfgs=cfgs, is_pretrained=plain.is_pretrained)


default_cfgs: Dict[str, DefaultCfg] = {
    'resnet50_sd_sample': _cfgs('resnet50'),
    'resnet50_sd_block': _cfgs('resnet50'),
    'resnet101_sd_sample': _cfgs('resnet101'),
    'resnet101_sd_block': _cfgs('resnet101'),
}


@register_model
def resnet50_sd_sample(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50, each sample drops its own blocks. The default rate is 0.1, linear."""
    model_args = dict(layers=(3, 4, 6, 3), drop_path_rate=0.1)
    return _create_resnet_sd('resnet50', 'sample', pretrained, **dict(model_args, **kwargs))


@register_model
def resnet50_sd_block(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50, the batch drops a block, which is not computed. The default rate is 0.2, linear."""
    model_args = dict(layers=(3, 4, 6, 3), drop_path_rate=0.2)
    return _create_resnet_sd('resnet50', 'block', pretrained, **dict(model_args, **kwargs))


@register_model
def resnet101_sd_sample(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-101, each sample drops its own blocks. The default rate is 0.1, linear."""
    model_args = dict(layers=(3, 4, 23, 3), drop_path_rate=0.1)
    return _create_resnet_sd('resnet101', 'sample', pretrained, **dict(model_args, **kwargs))


@register_model
def resnet101_sd_block(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-101, the batch drops a block, which is not computed. The default rate is 0.4, linear."""
    model_args = dict(layers=(3, 4, 23, 3), drop_path_rate=0.4)
    return _create_resnet_sd('resnet101', 'block', pretrained, **dict(model_args, **kwargs))
