"""What a network, and whatever holds it, say of how it is built: after folding, a plain network."""
import argparse
from dataclasses import fields, is_dataclass
from typing import Any, Dict, MutableMapping, Set

from timm.models import is_model_in_modules, split_model_name_tag
from torch import nn

from ..settings import Settings

__all__ = ['make_config_plain', 'plain_architecture']

# what timm.create_model is given, under the names that timm and transformers have for it
_ARGUMENTS = ('_model_args', 'model_args', 'backbone_kwargs')
_OURS = {'drop_path_rate', 'fold_pretrained', *(f.name for f in fields(Settings) if f.name != 'drop_rate')}


def plain_architecture(name: str) -> str:
    """The network of timm that a registered one is without stochastic depth, with its tag; other names as they are."""
    architecture, tag = split_model_name_tag(name)
    if not is_model_in_modules(architecture, ['resnet_sd']):
        return name
    plain = architecture.rpartition('_sd_')[0]
    return f'{plain}.{tag}' if tag else plain


def make_config_plain(module: nn.Module) -> None:
    """Have the attributes of a module name plain networks, in place: timm's, and configurations of what holds one.

    Args:
        module: A network, or what holds networks, all of which are plain now.
    """
    attributes = vars(module)
    for name, value in list(attributes.items()):
        if name not in ('_parameters', '_buffers', '_modules'):
            attributes[name] = _plain(name, value, set())


def _plain(name: str, value: Any, seen: Set[int]) -> Any:
    """A plain name for that of a network; what holds settings is changed in place."""
    if isinstance(value, str):
        return plain_architecture(value)
    if id(value) in seen:
        return value
    seen.add(id(value))
    if type(value) in (list, tuple):
        items = [_plain('', item, seen) for item in value]
        if type(value) is tuple:
            return value if all(a is b for a, b in zip(items, value)) else tuple(items)
        value[:] = items
        return value
    entries = _entries(value)
    names_ours = False
    for key, entry in list(entries.items()):
        plain = _plain(str(key), entry, seen)
        if plain is not entry:
            entries[key] = plain
            names_ours |= isinstance(entry, str)
    for key in _OURS & entries.keys():
        if name in _ARGUMENTS:
            del entries[key]
        elif names_ours:  # a class of one's own, that is built from them, may ask for the rate
            entries.pop(key) if key != 'drop_path_rate' else entries.update(drop_path_rate=0.)
    return value


def _entries(value: Any) -> MutableMapping[Any, Any]:
    """What a dictionary or an object that holds settings has; nothing of other objects."""
    if isinstance(value, MutableMapping):
        return value
    is_config = isinstance(value, argparse.Namespace) or is_dataclass(value) or hasattr(value, 'to_diff_dict')
    if is_config and not isinstance(value, (type, nn.Module)) and hasattr(value, '__dict__'):
        return vars(value)
    nothing: Dict[Any, Any] = {}
    return nothing
