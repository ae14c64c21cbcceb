"""Name plain networks in the configurations of folded ones, and of what holds them."""
from dataclasses import fields
from typing import Any, MutableMapping, Set

from torch import nn

from ..settings import Settings
from ..zoo.names import plain_architecture

__all__ = ['make_config_plain']

# what timm.create_model is given, under the names that timm and transformers have for it
_ARGUMENTS = ('_model_args', 'model_args', 'backbone_kwargs')
_OURS = {'drop_path_rate', 'fold_pretrained', *(f.name for f in fields(Settings) if f.name != 'drop_rate')}


def make_config_plain(module: nn.Module) -> None:
    """Have the attributes of a module name plain networks, in place: timm's, and configurations of what holds one.

    Configurations are dictionaries (timm, Lightning, the Hub's mixin) and transformers' objects, within others, too.
    """
    attributes = vars(module)
    for name in attributes.keys() - {'_parameters', '_buffers', '_modules'}:
        attributes[name] = _plain(name, attributes[name], set())


def _plain(name: str, value: Any, seen: Set[int]) -> Any:
    if isinstance(value, str):
        return plain_architecture(value)
    is_config = isinstance(value, MutableMapping) or hasattr(value, 'to_diff_dict')
    if not is_config or isinstance(value, type) or id(value) in seen:
        return value
    seen.add(id(value))
    entries = value if isinstance(value, MutableMapping) else vars(value)
    names_ours = False
    for key, entry in list(entries.items()):
        plain = _plain(str(key), entry, seen)
        if plain is not entry:
            entries[key] = plain
            names_ours = True
    for key in _OURS & entries.keys():
        if name in _ARGUMENTS or (names_ours and key != 'drop_path_rate'):
            del entries[key]
        elif names_ours:  # a class of one's own, that is built from them, may ask for the rate
            entries[key] = 0.
    return value
