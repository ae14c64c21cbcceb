"""config.json, as timm reads it: checked before anything is built from it."""
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Dict

from timm.models import PretrainedCfg

__all__ = ['RESERVED_ARGS', 'read_config']

# what timm.create_model takes itself, or what makes another kind of thing of the network
RESERVED_ARGS = (
    'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'pretrained_model_args', 'checkpoint_path', 'cache_dir',
    'features_only',
)

_CFG_FIELDS = tuple(f.name for f in fields(PretrainedCfg))


def read_config(folder: Path) -> Dict[str, Any]:
    """The config.json of a folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not JSON, or one of its entries is not what timm takes; the message names file and entry.
    """
    path = folder / 'config.json'
    if not path.is_file():
        inner = sorted(path.parent.name for path in folder.glob('*/config.json'))
        hint = f', but a folder in it does: {", ".join(inner[:3])}.' if inner else '.'
        raise FileNotFoundError(f'{folder} must hold a file config.json{hint}')
    try:
        config = json.loads(path.read_text(encoding='utf-8-sig'))
    except ValueError as e:
        raise ValueError(f'{path} is not JSON: {e}') from e
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise ValueError(f'{path} must name an architecture.')
    for name in ('model_args', 'pretrained_cfg'):
        if not isinstance(config.get(name, {}), dict):
            raise ValueError(f'{name} in {path} must be a dictionary, but is {config[name]!r}.')
    if 'pretrained_cfg' not in config:
        raise ValueError(f'{path} must hold a pretrained_cfg, as timm writes it, but has {", ".join(config)}.')
    unknown = [name for name in config['pretrained_cfg'] if name not in _CFG_FIELDS]
    if unknown:
        raise ValueError(
            f'pretrained_cfg in {path} must have keys of {", ".join(_CFG_FIELDS)}, but has {", ".join(unknown)}.')
    input_size = config['pretrained_cfg'].get('input_size', [3, 224, 224])
    if not isinstance(input_size, list) or len(input_size) != 3 or not all(isinstance(n, int) for n in input_size):
        raise ValueError(f'input_size in {path} must be three whole numbers, channels first, but is {input_size!r}.')
    num_classes = config.get('num_classes')
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 0:
        raise ValueError(f'num_classes in {path} must be a whole number, 0 or more, but is {num_classes!r}.')
    label_names = config.get('label_names')
    if label_names is not None:
        names = list(label_names.values()) if isinstance(label_names, dict) else label_names
        indices = list(label_names) if isinstance(label_names, dict) else []
        if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(n, str) for n in names) \
                or not all(str(index).isdecimal() for index in indices):
            raise ValueError(
                f'label_names in {path} must be {num_classes} names, as num_classes says, but is {label_names!r:.200}.')
    return config
