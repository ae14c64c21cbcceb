"""Strip wrappers off the names of weights, and read what a state_dict's metadata says of them."""
from collections import OrderedDict
from typing import Any, Dict, Iterable, Mapping, NamedTuple, Optional

import torch

from ..settings import Settings

__all__ = [
    'RecordedDropPath',
    'check_finite',
    'merge_hint',
    'factors_in_metadata',
    'settings_in_metadata',
    'strip_module_name',
    'strip_name',
    'strip_wrappers',
]

# what torch.compile, activation checkpointing and FSDP put into the names of tensors
_WRAPPERS = ('_orig_mod.', '_checkpoint_wrapped_module.', '_fsdp_wrapped_module.')


def strip_name(name: str) -> str:
    """The name of a tensor without the wrappers in the middle of it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, '')
    return name


def strip_module_name(name: str) -> str:
    """The name of a module without the wrappers in the middle and at the end of it."""
    return strip_name(f'{name}.')[:-1]


def _strip_names(names: Iterable[str]) -> Dict[str, str]:
    """The names of tensors or modules (these with a dot at the end), by what is left of them without wrappers."""
    stripped = {strip_name(name): name for name in names}
    while stripped and all(short.startswith('module.') or not short for short in stripped):
        # DistributedDataParallel, an EMA or AveragedModel around the whole
        stripped = {short[len('module.'):]: name for short, name in stripped.items() if short}
    return stripped


def strip_wrappers(state_dict: Mapping[str, Any]) -> Dict[str, Any]:
    """A state_dict, and its metadata, under the names that the network itself has.

    Left out is what wrappers add (torch.compile, DistributedDataParallel, FSDP, activation checkpointing, an EMA,
    `torch.optim.swa_utils.AveragedModel`), and the auxiliary norms of timm's split BatchNorm, which only train. What is
    pruned is multiplied with its mask.
    """
    keys = [key for key in state_dict if key != 'n_averaged' and '.aux_bn.' not in key]
    stripped: Dict[str, Any] = OrderedDict((short, state_dict[key]) for short, key in _strip_names(keys).items())
    for key in [key for key in stripped if key.endswith('_mask') and f'{key[:-len("_mask")]}_orig' in stripped]:
        name = key[:-len('_mask')]
        stripped[name] = stripped.pop(f'{name}_orig') * stripped.pop(key)
    metadata = getattr(state_dict, '_metadata', None)
    if metadata is not None:
        names = _strip_names(f'{name}.' if name else '' for name in metadata)
        stripped._metadata = OrderedDict(  # type: ignore[attr-defined]
            (short.rstrip('.'), metadata[name.rstrip('.')]) for short, name in names.items())
    return stripped


def merge_hint(names: Iterable[str]) -> str:
    """How a network becomes a plain one again whose tensors have names that only a wrapper of weights gives."""
    names = list(names)
    if any('.parametrizations.' in name for name in names):
        return ' Parametrized tensors are made plain first: torch.nn.utils.parametrize.remove_parametrizations.'
    if any('lora_' in name or '.base_layer.' in name for name in names):
        return ' Adapters are merged first, in peft by model.merge_and_unload().'
    return ''


def factors_in_metadata(state_dict: Mapping[str, Any], full: bool = False) -> Optional[Dict[str, float]]:
    """What each branch was multiplied with at inference when it gave its weights, by its drop path's name.

    With `full` it is that of the end of the warm-up. None if the metadata does not say, or is lost as after timm's
    `clean_state_dict`.
    """
    key = 'full_inference_scale' if full else 'inference_scale'
    metadata = getattr(state_dict, '_metadata', {})
    return {name: m[key] for name, m in metadata.items() if isinstance(m.get(key), (int, float))} or None


class RecordedDropPath(NamedTuple):
    """How a drop path dropped when its network gave its weights; see `StochasticDropPath`."""
    settings: Settings
    depth_scale: float
    own_rate: Optional[float]


def settings_in_metadata(state_dict: Mapping[str, Any]) -> Dict[str, RecordedDropPath]:
    """How each drop path of the network that gave its weights dropped, by name; none if the metadata does not say.

    Raises:
        ValueError: The settings are those of another version of this package.
    """
    found = {}
    for name, said in getattr(state_dict, '_metadata', {}).items():
        if 'settings' in said:
            try:
                found[name] = RecordedDropPath(
                    Settings(**said['settings']), float(said['depth_scale']), said['own_rate'])
            except (KeyError, TypeError, ValueError) as e:
                raise ValueError(
                    'state_dict must have settings of stochastic depth that this version knows in its metadata, but'
                    f' {name} has {said["settings"]!r}.') from e
    return found


def check_finite(state_dict: Mapping[str, Any], name: str) -> None:
    """Refuse weights with NaN or infinite values; the message says which, and by name where they come from."""
    for key, value in state_dict.items():
        if not torch.isfinite(value).all():
            raise ValueError(f'{name} must hold finite weights, but {key} holds values that are not finite.')
