"""Whose weights are these? A plain network's are folded on load, a stochastic network's are loaded as they are.

What decides, the first rule that holds:

1. The argument `fold_pretrained`, True or False, of `timm.create_model`.
2. Weights beside a config.json (`hf-hub:`, `local-dir:`): its architecture, one of ours, says that they were trained
   with stochastic depth. They are loaded as they are.
3. Weights of a tag, from timm's repository for the plain architecture: a plain network's. They are folded.
4. A file (`pretrained_cfg_overlay=dict(file=...)`, timm's `--pretrained-path`) that names its architecture: a
   checkpoint of timm's train.py, or safetensors that this package wrote.
5. Anything else does not say. It is taken for a plain network's, as most weights are, and a warning says so and how to
   say otherwise.

`checkpoint_path` and `load_state_dict` load what they are given as it is: they resume what a stochastic model wrote. A
state_dict whose metadata does not confirm that gets a warning.
"""
import argparse
import warnings
import zipfile
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import torch
from safetensors import safe_open
from timm.models import is_model_in_modules, split_model_name_tag
from torch import Tensor, nn

from ..fold import as_weights_of, fold_plain_weights

__all__ = ['checkpoint_filter_fn', 'is_stochastic_architecture']


def is_stochastic_architecture(name: str) -> bool:
    """Whether a name of timm's registry, with or without a tag, is one of this package."""
    return is_model_in_modules(split_model_name_tag(name)[0], ['resnet_sd'])


def checkpoint_filter_fn(
        state_dict: Mapping[str, Tensor],
        model: nn.Module,
        fold_pretrained: Optional[bool] = None,
) -> Dict[str, Tensor]:
    """Fold pretrained weights into model where they were made for a plain network; see the module's rules."""
    pretrained_cfg: Any = model.pretrained_cfg
    plain_architecture: Any = model.plain_architecture
    if fold_pretrained is None:
        fold_pretrained = _is_plain(pretrained_cfg, plain_architecture)
    if fold_pretrained is False:
        return as_weights_of(model, state_dict)

    folded = fold_plain_weights(state_dict, model)
    if fold_pretrained is None and any(folded[key] is not state_dict[key] for key in folded):
        warnings.warn(
            'The pretrained weights do not say whether they were trained with stochastic depth. It is assumed that they'
            ' were not, and they are folded. Pass fold_pretrained=False to load them as they are, or'
            ' fold_pretrained=True to confirm.', stacklevel=2)
    return folded


def _is_plain(pretrained_cfg: Dict[str, Any], plain_architecture: str) -> Optional[bool]:
    """Whether weights are a plain network's, None if that is not said."""
    if pretrained_cfg.get('source') in ('hf-hub', 'local-dir'):
        return False
    if pretrained_cfg.get('state_dict'):
        return None
    if pretrained_cfg.get('file'):
        architecture = _architecture_of_file(Path(pretrained_cfg['file']))
        return None if architecture is None else not is_stochastic_architecture(architecture)
    if (pretrained_cfg.get('hf_hub_id') or '').startswith(f'timm/{plain_architecture}.'):
        return True
    return None


def _architecture_of_file(path: Path) -> Optional[str]:
    if path.suffix == '.safetensors':
        with safe_open(str(path), framework='pt') as file:
            return (file.metadata() or {}).get('architecture')
    with torch.serialization.safe_globals([argparse.Namespace]):
        # without reading the tensors, where the file's format allows it
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    architecture = checkpoint.get('arch') if isinstance(checkpoint, dict) else None
    return architecture if isinstance(architecture, str) else None
