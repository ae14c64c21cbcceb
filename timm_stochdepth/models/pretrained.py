"""Fold pretrained weights on load, from the rates that they were trained for to the ones in force.

What decides, the first rule that holds:

1. The argument `fold_pretrained` of `timm.create_model`: True, they are a plain network's; False, they are loaded as
   they are.
2. Weights of a tag, from timm's repository for the plain architecture: a plain network's.
3. Weights beside a config.json (`hf-hub:`, `local-dir:`, a tag's `hf_hub_id`): its architecture and `model_args`.
4. A file (`pretrained_cfg_overlay=dict(file=...)`, timm's `--pretrained-path`), or a state_dict: what it says, see
   `checkpoints.file`.
5. What names a stochastic network and no rate is taken for one with the rates in force. Anything else does not say: it
   is taken for a plain network's, as most weights are. In both cases a warning says so, and how to say otherwise.

`checkpoint_path` and `load_state_dict` load what they are given as it is: they resume what a stochastic model wrote. A
state_dict whose metadata does not confirm that gets a warning. Under the launcher rules 1, 4 and 5 hold for
`checkpoint_path` and timm's `load_checkpoint`, too: train.py's `--initial-checkpoint`, validate.py's `--checkpoint`.
"""
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Union

from timm.models._hub import load_model_config_from_hf
from torch import Tensor, nn

from ..checkpoints.file import WeightsFile, is_stochastic_architecture, read_weights_file
from ..checkpoints.names import strip_wrappers
from ..folding.rescale import as_weights_of, fold_weights

__all__ = ['checkpoint_filter_fn', 'fold_as_said', 'said_of_this_load']

_HOW_TO_SAY = (
    'fold_pretrained=False loads them as they are, fold_pretrained=True folds those of a plain network: arguments of'
    " timm.create_model, and of timm's scripts with --model-kwargs.")


def checkpoint_filter_fn(
        state_dict: Mapping[str, Tensor],
        model: nn.Module,
        fold_pretrained: Optional[bool] = None,
        cache_dir: Optional[Union[str, Path]] = None,
        given_state_dict: Optional[Mapping[str, Tensor]] = None,
) -> Dict[str, Tensor]:
    """Fold pretrained weights into model, from the rates that they were trained for; see the module's rules.

    Args:
        state_dict: The weights, as timm has loaded them.
        model: Network with stochastic depth that they are for.
        fold_pretrained: The first rule; None: see the others.
        cache_dir: The Hub's cache, where it is not the usual one.
        given_state_dict: The state_dict in the caller's `pretrained_cfg` or its overlay, of which timm copies the
            tensors and not the metadata.
    """
    cfg: Any = model.pretrained_cfg
    is_beside_config = cfg.get('source') in ('hf-hub', 'local-dir')
    weights = strip_wrappers(state_dict if given_state_dict is None or is_beside_config else given_state_dict)
    is_elsewhere = any(cfg.get(key) for key in ('source', 'state_dict', 'file'))
    of_timm = (cfg.get('hf_hub_id') or '').startswith(f'timm/{model.plain_architecture}.')
    if fold_pretrained is None and of_timm and not is_elsewhere:
        fold_pretrained = True
    return fold_as_said(weights, model, lambda: _what_is_said(weights, model, cache_dir), fold_pretrained)


def fold_as_said(
        weights: Dict[str, Tensor],
        model: nn.Module,
        read: Callable[[], WeightsFile],
        fold_pretrained: Optional[bool] = None,
) -> Dict[str, Tensor]:
    """Fold weights into model, as fold_pretrained or what is read of them says; see the module's rules 1, 4 and 5."""
    if fold_pretrained is not None:
        return fold_weights(weights, model, {}) if fold_pretrained else as_weights_of(model, weights)
    said = read()
    trained = said.trained_factors()
    if trained is not None:
        return fold_weights(weights, model, trained)
    if said.architecture and is_stochastic_architecture(said.architecture):
        warnings.warn(
            'The weights do not say the drop_path_rate that they were trained with (timm alone leaves it out of'
            f' config.json). It is assumed to be the one of this network. {_HOW_TO_SAY}', stacklevel=2)
        return as_weights_of(model, weights)
    folded = fold_weights(weights, model, {})
    if any(folded[key] is not value for key, value in weights.items()):
        warnings.warn(
            'The weights do not say whether they were trained with stochastic depth. It is assumed that they were not,'
            f' and they are folded. {_HOW_TO_SAY}', stacklevel=2)
    return folded


def said_of_this_load(
        fold_pretrained: Optional[bool],
        pretrained_model_args: Optional[Mapping[str, Any]],
) -> Optional[bool]:
    """The argument `fold_pretrained`, but None where it is the one that a config.json has recorded.

    timm records every argument there: that one was about an earlier load, and other weights.
    """
    recorded = (pretrained_model_args or {}).get('fold_pretrained')
    return None if fold_pretrained == recorded else fold_pretrained


def _what_is_said(
        weights: Dict[str, Tensor],
        model: nn.Module,
        cache_dir: Optional[Union[str, Path]],
) -> WeightsFile:
    """Weights with what is said of them where timm takes them from."""
    cfg: Any = model.pretrained_cfg
    architecture: Optional[str] = None
    model_args: Any = {}
    if cfg.get('source') in ('hf-hub', 'local-dir'):
        architecture, model_args = cfg['architecture'], model.pretrained_model_args
    elif cfg.get('state_dict'):
        pass
    elif cfg.get('file'):
        return read_weights_file(Path(cfg['file']))
    elif cfg.get('hf_hub_id'):
        with suppress(Exception):  # weights without a config.json that timm reads: then nothing says it
            _, architecture, model_args = load_model_config_from_hf(cfg['hf_hub_id'], cache_dir)
    of_these = {k: v for k, v in model_args.items() if k != 'fold_pretrained'}  # which was about others
    return WeightsFile(weights, architecture, model_args=of_these)
