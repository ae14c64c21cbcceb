"""Whose weights are these? A plain network's are folded on load, a stochastic network's are loaded as they are.

What decides, the first rule that holds:

1. The argument `fold_pretrained`, True or False, of `timm.create_model`.
2. Weights beside a config.json (`hf-hub:`, `local-dir:`): its architecture, one of ours, says that they were trained
   with stochastic depth. They are loaded as they are.
3. Weights of a tag, from timm's repository for the plain architecture: a plain network's. They are folded.
4. Anything else (a file or a state_dict in `pretrained_cfg_overlay`, another repository) does not say. It is taken
   for a plain network's, as most weights are, and a warning says so and how to say otherwise.

`checkpoint_path` and `load_state_dict` load what they are given as it is: they resume what a stochastic model wrote.
"""
import warnings
from typing import Any, Dict, Mapping, Optional

from torch import Tensor, nn

from ..fold import fold_plain_weights

__all__ = ['checkpoint_filter_fn']


def checkpoint_filter_fn(
        state_dict: Mapping[str, Tensor],
        model: nn.Module,
        fold_pretrained: Optional[bool] = None,
) -> Mapping[str, Tensor]:
    """Fold pretrained weights into model where they were made for a plain network; see the module's rules."""
    pretrained_cfg: Any = model.pretrained_cfg
    plain_architecture: Any = model.plain_architecture
    if fold_pretrained is None and pretrained_cfg.get('source') in ('hf-hub', 'local-dir'):
        fold_pretrained = False
    if fold_pretrained is False:
        return state_dict

    folded = fold_plain_weights(state_dict, model)
    changed = any(folded[key] is not state_dict[key] for key in folded)
    if changed and fold_pretrained is None and not _is_timm_tag(pretrained_cfg, plain_architecture):
        warnings.warn(
            'The pretrained weights do not say whether they were trained with stochastic depth. It is assumed that they'
            ' were not, and they are folded. Pass fold_pretrained=False to load them as they are, or'
            ' fold_pretrained=True to confirm.', stacklevel=2)
    return folded


def _is_timm_tag(pretrained_cfg: Dict[str, Any], plain_architecture: str) -> bool:
    overridden = pretrained_cfg.get('file') or pretrained_cfg.get('state_dict')
    return not overridden and (pretrained_cfg.get('hf_hub_id') or '').startswith(f'timm/{plain_architecture}.')
