"""Build networks by name, with errors for names and arguments that users and files give."""
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import timm
from timm.models import parse_model_name
from timm.models._hub import load_model_config_from_hf
from torch import Tensor, nn

from ..checkpoints.file import create_on_meta
from ..output.terminal import closest, one_line
from ..zoo.exceptions import why_not_registered
from ..zoo.names import is_stochastic_architecture
from .config import RESERVED_ARGS, read_config

__all__ = ['build_model', 'check_model_name', 'create_model', 'is_stochastic']


def create_model(
        name: str,
        model_args: Optional[Mapping[str, Any]] = None,
        on_meta: bool = False,
        pretrained: bool = False,
) -> nn.Module:
    """`timm.create_model`, for names and arguments from a file.

    Args:
        name: A name of timm's registry, or of a network with `hf-hub:` or `local-dir:`.
        model_args: Arguments of the network, in place of those that its config.json says.
        on_meta: Without memory for the weights.
        pretrained: With the weights of the name.

    Raises:
        ValueError: The architecture is unknown, or does not take the arguments.
        OSError: There is no such folder, or the Hub is out of reach.
    """
    source, model_id = parse_model_name(name)
    config = read_config(Path(model_id)) if source == 'local-dir' else {}
    kwargs = {**config.get('model_args', {}), **(model_args or {})}
    reserved = [key for key in kwargs if key in RESERVED_ARGS]
    if reserved:
        raise ValueError(f'model_args must be arguments of the network alone, but has {", ".join(reserved)}.')
    architecture = config.get('architecture', name)
    if source != 'hf-hub':
        check_model_name('architecture', architecture)
    create = create_on_meta if on_meta else timm.create_model
    try:
        return create(name, pretrained=pretrained, **kwargs)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        if isinstance(e, OSError):  # of the Hub's client, whose older versions derive some from ValueError as well
            raise
        raise ValueError(f'model_args must be arguments of {architecture}, but got {kwargs}: {one_line(e)}') from e


def build_model(
        name: str,
        model_args: Dict[str, Any],
        state_dict: Dict[str, Tensor],
        on_meta: bool = False,
) -> nn.Module:
    """Build the network of that name, with as many classes and channels as its weights have."""
    cfg = _pretrained_cfg(name)
    classifier, first_conv = cfg.get('classifier'), cfg.get('first_conv')
    if isinstance(classifier, (tuple, list)) and classifier:  # distilled networks have two, of as many classes
        classifier = classifier[0]
    if isinstance(classifier, str):
        bias = state_dict.get(f'{classifier}.bias')
        num_classes = len(bias) if bias is not None and bias.ndim else 0
        if model_args.get('num_classes', num_classes) != num_classes:
            raise ValueError(
                f'num_classes must be {num_classes}, as the weights say, but got {model_args["num_classes"]}.')
        model_args = {**model_args, 'num_classes': num_classes}
    weight = state_dict.get(f'{first_conv}.weight')
    if weight is not None and weight.ndim == 4:
        model_args = {**model_args, 'in_chans': weight.shape[1]}
    return create_model(name, model_args, on_meta)


def check_model_name(argument: str, name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        ValueError: It names the closest names.
    """
    architecture, _, tag = name.partition('.')
    if not timm.is_model(architecture):
        reason = why_not_registered(architecture)
        hint = f': {reason}.' if reason else closest(architecture, timm.list_models())
        raise ValueError(f'{argument} must be a name that timm knows, but got {name!r}{hint}')
    names = timm.models.get_arch_pretrained_cfgs(architecture)
    if tag and name not in names:
        raise ValueError(f'{argument} must have a tag that timm knows, but got {name!r}{closest(name, names)}')


def _pretrained_cfg(name: str) -> Dict[str, Any]:
    """timm's pretrained_cfg of a name, without building the network."""
    source, model_id = parse_model_name(name)
    if source == 'local-dir':
        return read_config(Path(model_id))['pretrained_cfg']
    if source == 'hf-hub':
        return load_model_config_from_hf(model_id)[0]
    check_model_name('architecture', name)
    cfg = timm.models.get_pretrained_cfg(name)
    return cfg.to_dict() if cfg else {}


def is_stochastic(model: nn.Module) -> bool:
    """Whether a model is one of this package's names, and not a plain or folded one."""
    cfg: Any = getattr(model, 'pretrained_cfg', {})
    return is_stochastic_architecture(cfg.get('architecture', ''))
