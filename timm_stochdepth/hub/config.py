"""Read and check config.json, before anything is built from it."""
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
    """Read the config.json of a folder, its label_names as a list.

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
    if 'pretrained_cfg' not in config:
        raise ValueError(f'{path} must hold a pretrained_cfg, as timm writes it, but has {", ".join(config)}.')

    def check(holds: bool, name: str, allowed: str, found: Any) -> None:
        if not holds:
            raise ValueError(f'{name} in {path} must be {allowed}, but is {found!r:.200}.')

    cfg, num_classes, names = config['pretrained_cfg'], config.get('num_classes'), config.get('label_names')
    check(isinstance(config.get('model_args', {}), dict), 'model_args', 'a dictionary', config.get('model_args'))
    check(isinstance(cfg, dict), 'pretrained_cfg', 'a dictionary', cfg)
    unknown = [name for name in cfg if name not in _CFG_FIELDS]
    if unknown:
        raise ValueError(
            f'pretrained_cfg in {path} must have keys of {", ".join(_CFG_FIELDS)}, but has {", ".join(unknown)}.')
    size = cfg.get('input_size', [3, 224, 224])
    is_size = isinstance(size, list) and len(size) == 3 and all(isinstance(n, int) for n in size)
    check(is_size, 'input_size', 'three whole numbers, channels first', size)
    is_number = isinstance(num_classes, int) and not isinstance(num_classes, bool) and num_classes >= 0
    check(is_number, 'num_classes', 'a whole number, 0 or more', num_classes)
    if isinstance(names, dict) and all(str(index).isdecimal() for index in names):  # by index, which timm takes as well
        names = [names[index] for index in sorted(names, key=int)]
    if names is not None:
        are_names = isinstance(names, list) and len(names) == num_classes and all(isinstance(n, str) for n in names)
        check(are_names, 'label_names', f'{num_classes} names, as num_classes says', names)
    return {**config, 'label_names': names}
