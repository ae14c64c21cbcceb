"""Build the network of a name, a repository, a folder or a file."""
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import timm
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from timm.models import get_arch_name
from timm.models._hub import load_state_dict_from_path
from torch import nn

from ..checkpoints.file import read_weights_file, says_rate
from ..checkpoints.names import check_finite, strip_wrappers
from ..checkpoints.offline import offline_hint
from ..messages import warn_user
from ..output.terminal import one_line
from .card import read_card
from .config import read_config
from .load_file import build_from_file, check_is_of, first_that_fits, load_file, load_state_dict
from .location import NetworkLocation, find_network
from .named_models import check_model_name, create_model, is_stochastic
from .record import TrainingRecord

__all__ = ['TrainingRecord', 'check_goes_with', 'load_model', 'load_state_dict', 'load_structure']

_WITHOUT_NETWORK = 'give a folder or a file of weights that is on this machine.'


def load_model(
        network: Union[str, Path, NetworkLocation],
        use_ema: bool = False,
        model_name: Optional[str] = None,
        model_args: Optional[Dict[str, Any]] = None,
) -> Tuple[nn.Module, TrainingRecord]:
    """Build the network that is somewhere, at its full drop rate.

    It computes at inference what the weights computed where they come from, see `models.pretrained`.

    Args:
        network: A name of timm, whose pretrained weights are loaded; a repository of the Hub; a folder with a
            config.json and weights; a checkpoint of timm's train.py, or a file of weights alone. See `find_network`.
        use_ema: Take a checkpoint's EMA weights.
        model_name: Name of the network, for a file that does not say it.
        model_args: Arguments of the network, for a name, or for a file that does not say them.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ConnectionError: The Hub is out of reach.
        ValueError: The file is broken, its architecture unknown or not to be rebuilt, it has no EMA weights, or says
            something else of its weights than is given.
    """
    location = _locate(network)
    check_goes_with(location, dict(model_name=model_name, model_args=model_args, use_ema=use_ema))
    if location.kind == 'name':
        return _load_name(location.name, model_args or {})
    if location.kind == 'hub':
        model, record = _load_folder(_download(location.name, 'README.md', 'model.safetensors'))
        # its card is its owner's, who is not to speak for others
        return model, replace(record, card=None, args=dict(pretrained=True, model=f'hf-hub:{location.name}'))
    if location.kind == 'folder':
        return _load_folder(location.path)
    return load_file(location.path, use_ema, model_name, model_args or {})


def load_structure(
        network: Union[str, Path, NetworkLocation],
        model_name: Optional[str] = None,
        model_args: Optional[Dict[str, Any]] = None,
) -> nn.Module:
    """As `load_model`, without memory for the weights, which are not downloaded of a name or a repository.

    `model_args` take the place of what is said of the network.
    """
    location, model_args = _locate(network), model_args or {}
    check_goes_with(location, dict(model_name=model_name))
    if location.kind == 'name':
        return _with_image_size(create_model(location.name, model_args, on_meta=True), model_args)
    if location.kind == 'file':
        file = read_weights_file(location.path)
        name = model_name or file.architecture or first_that_fits(file, location.path)
        model = build_from_file(file, name, model_args, on_meta=True)
        if model_name:
            check_is_of(model, file, location.path, model_name)
        return _with_image_size(model, {**file.model_args, **model_args}, file.args)
    folder = _download(location.name) if location.kind == 'hub' else location.path
    model_args = {**read_config(folder).get('model_args', {}), **model_args}
    return _with_image_size(create_model(f'local-dir:{folder}', model_args, on_meta=True), model_args)


def _locate(network: Union[str, Path, NetworkLocation]) -> NetworkLocation:
    if isinstance(network, NetworkLocation):
        return network
    if not isinstance(network, (str, Path)):
        raise TypeError(f'network must be a name or a path, but got {network!r} ({type(network).__name__}).')
    if isinstance(network, Path) and not network.exists():
        raise FileNotFoundError(f'{network} does not exist.')
    try:
        return find_network(str(network))
    except ValueError as e:
        raise ValueError(f'network {e}') from e


def _download(name: str, *files: str) -> Path:
    """Download the config.json of a repository and other files that it has; without safetensors, torch's."""
    repo_id, _, revision = name.partition('@')

    def download(*names: str) -> Path:
        return Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=list(names)))

    with offline_hint(name, _WITHOUT_NETWORK):
        folder = download('config.json', *files)
        if files and not (folder / 'model.safetensors').exists():
            download('pytorch_model.bin')
    return folder


_OF_A_NAME = ('model_args', '--drop-path', '--model-kwargs')


def check_goes_with(location: NetworkLocation, given: Mapping[str, Any]) -> None:
    """Refuse arguments or options without effect: where something else says what the network is.

    Raises:
        ValueError: The message has the name of what was given.
    """
    for name, value in given.items():
        if value in (None, False, {}, []) or location.kind == 'file' or location.kind == 'name' and name in _OF_A_NAME:
            continue
        says = 'which is a name of timm' if location.kind == 'name' else 'whose config.json says it'
        raise ValueError(f'{name} must be left out for {location}, {says}, but got {value!r}.')


def _with_image_size(
        model: nn.Module,
        model_args: Mapping[str, Any],
        run_args: Mapping[str, Any] = MappingProxyType({}),
) -> nn.Module:
    """Set the input size in a network's configuration, if its arguments or those of its run say one."""
    for said in (model_args.get('img_size'), run_args.get('input_size'), run_args.get('img_size')):
        edges = said[-2:] if isinstance(said, (list, tuple)) else (said, said)
        if len(edges) == 2 and all(isinstance(edge, int) and edge > 0 for edge in edges):
            timms: Any = model
            channels = timms.pretrained_cfg['input_size'][0]
            timms.pretrained_cfg = {**timms.pretrained_cfg, 'input_size': (channels, *edges)}
            break
    return model


def _load_name(name: str, model_args: Dict[str, Any]) -> Tuple[nn.Module, TrainingRecord]:
    check_model_name('network', name)
    cfg: Any = timm.models.get_pretrained_cfg(name)
    if not (cfg and cfg.has_weights):
        raise ValueError(f'network must be one with weights, but timm has none for {name!r}.')
    tagged = f'{get_arch_name(name)}.{cfg.tag}' if cfg.tag else name  # the default tag spelled out
    with offline_hint(tagged, _WITHOUT_NETWORK):
        model = create_model(tagged, model_args, pretrained=True)
    return model, TrainingRecord(args=dict(pretrained=True, model=tagged))


def _load_folder(folder: Path) -> Tuple[nn.Module, TrainingRecord]:
    config = read_config(folder)
    model = create_model(f'local-dir:{folder}')
    if any(folder.glob('*.index.json')):
        raise ValueError(f'{folder} must hold its weights in one file, but holds an index of several.')
    try:
        state_dict = strip_wrappers(load_state_dict_from_path(folder, weights_only=True))
    except SafetensorError as e:
        raise ValueError(f'the weights in {folder} are truncated or altered, or no safetensors: {one_line(e)}') from e
    except (OSError, RuntimeError) as e:
        raise ValueError(f'{folder} must hold weights, as model.safetensors, but: {one_line(e) or "no file"}') from e
    check_finite(state_dict, str(folder))
    # strictly, where timm would give a network of other classes a new classifier
    load_state_dict(model, state_dict, folder)
    if is_stochastic(model) and not says_rate(config.get('model_args', {})):
        warn_user(
            f'{folder}/config.json does not say the drop_path_rate of its network in model_args. It is assumed to be'
            ' the default one.')
    card, license = read_card(folder)
    return model, TrainingRecord(
        label_names=config['label_names'], label_descriptions=config.get('label_descriptions'), license=license,
        card=card)
