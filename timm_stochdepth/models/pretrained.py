"""What were these weights trained for? Pretrained weights are folded on load, from those rates to the ones in force.

What decides, the first rule that holds:

1. The argument `fold_pretrained` of `timm.create_model`: True, they are a plain network's; False, they are loaded as
   they are.
2. Weights of a tag, from timm's repository for the plain architecture: a plain network's.
3. Weights beside a config.json (`hf-hub:`, `local-dir:`): its `model_args` are what they were trained with.
4. A file (`pretrained_cfg_overlay=dict(file=...)`, timm's `--pretrained-path`), or a state_dict: what it says, see
   `weights_file`.
5. Anything else does not say. It is taken for a plain network's, as most weights are, and a warning says so and how to
   say otherwise. A config, checkpoint or file that names a stochastic network and no rate is taken for one with the
   rates in force, with a warning, too.

`checkpoint_path` and `load_state_dict` load what they are given as it is: they resume what a stochastic model wrote. A
state_dict whose metadata does not confirm that gets a warning.
"""
import warnings
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from torch import Tensor, nn

from ..fold import as_weights_of, fold_weights, inference_scales
from ..weights import scales_in_metadata, strip_wrappers
from ..weights_file import create_on_meta, is_stochastic_architecture, read_weights_file, says_rate

__all__ = ['checkpoint_filter_fn']

_HOW_TO_SAY = (
    'Pass fold_pretrained=False to load them as they are, or fold_pretrained=True for those of a plain network.')


def checkpoint_filter_fn(
        state_dict: Mapping[str, Tensor],
        model: nn.Module,
        fold_pretrained: Optional[bool] = None,
) -> Dict[str, Tensor]:
    """Fold pretrained weights into model, from the rates that they were trained for; see the module's rules."""
    pretrained_cfg: Any = model.pretrained_cfg
    state_dict = strip_wrappers(state_dict)
    if fold_pretrained is False:
        return as_weights_of(model, state_dict)
    if fold_pretrained is True or _is_timms_repository(pretrained_cfg, model):
        return fold_weights(state_dict, model, {})
    if pretrained_cfg.get('source') in ('hf-hub', 'local-dir'):
        return _fold_from_config(state_dict, model)
    return _fold_from_file(state_dict, model)


def _is_timms_repository(pretrained_cfg: Dict[str, Any], model: nn.Module) -> bool:
    if any(pretrained_cfg.get(key) for key in ('source', 'state_dict', 'file')):
        return False
    return (pretrained_cfg.get('hf_hub_id') or '').startswith(f'timm/{model.plain_architecture}.')


def _fold_from_config(state_dict: Mapping[str, Tensor], model: nn.Module) -> Dict[str, Tensor]:
    pretrained_cfg: Any = model.pretrained_cfg
    trained_args: Any = model.pretrained_model_args
    if not says_rate(trained_args):
        warnings.warn(
            'config.json does not say the drop_path_rate that its weights were trained with (timm leaves it out unless'
            ' model_args=timm_stochdepth.stochastic_depth_args(model) is given on saving). It is assumed to be the one'
            f' of this network. {_HOW_TO_SAY}', stacklevel=2)
        return as_weights_of(model, state_dict)
    trained_args = {k: v for k, v in trained_args.items() if k != 'fold_pretrained'}
    trained = create_on_meta(pretrained_cfg['architecture'], **trained_args)
    return fold_weights(state_dict, model, inference_scales(trained))


def _fold_from_file(state_dict: Mapping[str, Tensor], model: nn.Module) -> Dict[str, Tensor]:
    pretrained_cfg: Any = model.pretrained_cfg
    file = pretrained_cfg.get('file')
    said = read_weights_file(Path(file)) if file and not pretrained_cfg.get('state_dict') else None
    trained_scales = said.trained_scales() if said else scales_in_metadata(state_dict)
    if trained_scales is not None:
        return fold_weights(state_dict, model, trained_scales)
    if said and said.architecture and is_stochastic_architecture(said.architecture):
        warnings.warn(
            f'{file} does not say the drop_path_rate that its weights were trained with. It is assumed to be the one of'
            f' this network. {_HOW_TO_SAY}', stacklevel=2)
        return as_weights_of(model, state_dict)
    folded = fold_weights(state_dict, model, {})
    if any(folded[key] is not state_dict[key] for key in folded):
        warnings.warn(
            'The pretrained weights do not say whether they were trained with stochastic depth. It is assumed that they'
            f' were not, and they are folded. {_HOW_TO_SAY}', stacklevel=2)
    return folded
