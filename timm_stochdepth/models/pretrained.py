"""Keep the function of pretrained weights, from the rates that they were trained for to the ones in force.

What says what they were trained for, the first rule that holds:

1. The argument `fold_pretrained` of `timm.create_model`: True, they are a plain network's; False, they are loaded as
   they are.
2. Weights of a tag, where timm has them for the plain architecture: a plain network's.
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

from timm.models import get_arch_pretrained_cfgs
from timm.models._hub import load_model_config_from_hf
from torch import Tensor, nn

from ..checkpoints.file import WeightsFile, read_weights_file
from ..checkpoints.names import strip_wrappers
from ..folding.rescale import as_weights_of, check_names, fold_weights, multiply, own_rescaling
from ..inspection import drop_paths, inference_factors
from ..zoo.names import is_stochastic_architecture

__all__ = ['fold_as_said', 'given_weights', 'said_of_this_load', 'scale_pretrained']

_HOW_TO_SAY = (
    'fold_pretrained=False loads them as they are, fold_pretrained=True folds those of a plain network: arguments of'
    " timm.create_model, and of timm's scripts with --model-kwargs.")


def given_weights(cfg: Mapping[str, Any]) -> Optional[WeightsFile]:
    """The weights that a caller's pretrained_cfg holds or that lie in its file, under the names of a network of timm.

    timm by itself hands on what wrappers have made of the names, and loses what a state_dict's metadata says.
    """
    if cfg.get('source') in ('hf-hub', 'local-dir'):
        return None
    if cfg.get('state_dict'):
        return WeightsFile(strip_wrappers(cfg['state_dict']))
    if cfg.get('file') and not cfg.get('custom_load'):
        with suppress(OSError, ValueError):  # of other formats, which timm knows, or refuses
            return read_weights_file(Path(cfg['file']))
    return None


def scale_pretrained(
        model: nn.Module,
        fold_pretrained: Optional[bool] = None,
        cache_dir: Optional[Union[str, Path]] = None,
        given: Optional[WeightsFile] = None,
        model_args: Optional[Mapping[str, Any]] = None,
        is_part: bool = False,
) -> None:
    """Scale the pretrained weights of a model in place, from the rates that they were trained for.

    Args:
        model: Network with stochastic depth, or the features of one, the weights in it as timm has loaded them.
        fold_pretrained: The first rule; None: see the others.
        cache_dir: The Hub's cache, where it is not the usual one.
        given: What `given_weights` has found.
        model_args: Those of the config.json that lies beside the weights.
        is_part: Whether the model is the features of one, with some of its blocks, under other names.
    """
    cfg: Any = model.pretrained_cfg
    if fold_pretrained is None and _is_of_timm(cfg):
        fold_pretrained = True
    trained = _trained_factors(model, lambda: given or _what_is_said(cfg, model_args, cache_dir), fold_pretrained)
    if trained and is_part:
        trained = _by_names_of(model, trained)
    elif trained:
        check_names(model, trained)
    if trained is not None:
        multiply(own_rescaling(model, trained, inference_factors(model)))


def fold_as_said(
        weights: Dict[str, Tensor],
        model: nn.Module,
        read: Callable[[], WeightsFile],
        fold_pretrained: Optional[bool] = None,
) -> Dict[str, Tensor]:
    """Fold weights into model, as fold_pretrained or what is read of them says; see the module's rules 1, 4 and 5."""
    trained = _trained_factors(model, read, fold_pretrained)
    return as_weights_of(model, weights) if trained is None else fold_weights(weights, model, trained)


def said_of_this_load(
        fold_pretrained: Optional[bool],
        pretrained_model_args: Optional[Mapping[str, Any]],
) -> Optional[bool]:
    """The argument `fold_pretrained`, but None where it is the one that a config.json has recorded.

    timm records every argument there: that one was about an earlier load, and other weights.
    """
    recorded = (pretrained_model_args or {}).get('fold_pretrained')
    return None if fold_pretrained == recorded else fold_pretrained


def _trained_factors(
        model: nn.Module,
        read: Callable[[], WeightsFile],
        fold_pretrained: Optional[bool],
) -> Optional[Dict[str, float]]:
    """What branches were multiplied with where the weights come from; None for those of model, which stay as they are.

    Rules 1, 4 and 5.
    """
    if fold_pretrained is not None:
        return {} if fold_pretrained else None
    said = read()
    trained = said.trained_factors()
    if trained is not None:
        return trained
    is_stochastic = said.architecture is not None and is_stochastic_architecture(said.architecture)
    if is_stochastic:
        warnings.warn(
            'The weights do not say the drop_path_rate that they were trained with (timm alone leaves it out of'
            f' config.json). It is assumed to be the one of this network. {_HOW_TO_SAY}', stacklevel=2)
    elif any(factor != 1. for factor in inference_factors(model).values()):
        warnings.warn(
            'The weights do not say whether they were trained with stochastic depth. It is assumed that they were not,'
            f' and they are folded. {_HOW_TO_SAY}', stacklevel=2)
    return None if is_stochastic else {}


def _is_of_timm(cfg: Mapping[str, Any]) -> bool:
    """Whether weights are those that timm has for a tag of the plain network."""
    if any(cfg.get(key) for key in ('source', 'state_dict', 'file')):
        return False
    tags = get_arch_pretrained_cfgs(cfg['architecture']).values()
    return (cfg.get('hf_hub_id') or cfg.get('url')) in {tag.hf_hub_id or tag.url for tag in tags}


def _by_names_of(model: nn.Module, factors: Mapping[str, float]) -> Dict[str, float]:
    """Factors by the names that the drop paths have in model, where timm's feature extractors give them others."""
    def whole(name: str) -> str:
        for wrapper in ('body', 'graph_module', 'model'):
            name = name.removeprefix(f'{wrapper}.')
        return name.replace('.', '_')

    names = {whole(name): name for name, _ in drop_paths(model)}
    return {names.get(whole(name), name): factor for name, factor in factors.items()}


def _what_is_said(
        cfg: Mapping[str, Any],
        model_args: Optional[Mapping[str, Any]],
        cache_dir: Optional[Union[str, Path]],
) -> WeightsFile:
    """What is said of weights in the repository or folder that timm takes them from."""
    architecture: Optional[str] = None
    if cfg.get('source') in ('hf-hub', 'local-dir'):
        architecture = cfg['architecture']
    elif cfg.get('hf_hub_id') and not cfg.get('file'):
        with suppress(Exception):  # weights without a config.json that timm reads: then nothing says it
            _, architecture, model_args = load_model_config_from_hf(cfg['hf_hub_id'], cache_dir)
    of_these = {k: v for k, v in (model_args or {}).items() if k != 'fold_pretrained'}  # which was about others
    return WeightsFile({}, architecture, model_args=of_these)
