"""Names of the registered models: those of timm, with the method. They are put together without importing timm."""
from typing import Dict, Tuple

__all__ = [
    'REGISTRY_MODULE',
    'is_stochastic_architecture',
    'plain_architecture',
    'split_stochastic_name',
    'stochastic_name',
    'timm_modules',
]

# what timm's registry files the models under: `timm.list_models(module='stochastic_depth')`
REGISTRY_MODULE = 'stochastic_depth'

_INFIX = '_sd_'


def timm_modules(filter: str = '') -> Dict[str, str]:
    """The module, as in `'timm.models.resnet'`, that each of timm's own names is from, or of those that match."""
    import timm
    from timm.models import model_entrypoint

    modules = {name: model_entrypoint(name).__module__ for name in timm.list_models(filter)}
    return {name: module for name, module in modules.items() if module.startswith('timm.models.')}


def stochastic_name(plain_name: str, method: str) -> str:
    """The name of a network of timm with stochastic depth."""
    return f'{plain_name}{_INFIX}{method}'


def split_stochastic_name(name: str) -> Tuple[str, str]:
    """The plain network's name and the method, of a name of this package without a tag."""
    plain_name, _, method = name.rpartition(_INFIX)
    return plain_name, method


def is_stochastic_architecture(name: str) -> bool:
    """Whether a name of timm's registry, with or without a tag, is one of this package."""
    from timm.models import get_arch_name, is_model_in_modules

    return is_model_in_modules(get_arch_name(name), REGISTRY_MODULE)


def plain_architecture(name: str) -> str:
    """The network of timm that a registered one is without stochastic depth, with its tag; other names as they are."""
    from timm.models import split_model_name_tag

    if not is_stochastic_architecture(name):
        return name
    architecture, tag = split_model_name_tag(name)
    plain_name, _ = split_stochastic_name(architecture)
    return f'{plain_name}.{tag}' if tag else plain_name
