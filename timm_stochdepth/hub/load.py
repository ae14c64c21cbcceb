"""Networks from files: a folder as on the Hub, a checkpoint of timm's scripts, or weights alone."""
import warnings
from dataclasses import replace
from math import isclose
from pathlib import Path
from types import MappingProxyType
from typing import Any, Dict, Mapping, Optional, Union

import timm
from safetensors import SafetensorError
from timm.models import get_arch_name
from timm.models._hub import load_state_dict_from_path
from torch import Tensor, nn

from ..apply import apply_recorded, apply_settings
from ..checkpoints.drop_options import DropOptions
from ..checkpoints.file import WeightsFile, read_weights_file, says_rate
from ..checkpoints.names import check_finite, settings_in_metadata, strip_wrappers
from ..checkpoints.offline import says_how_to_go_on
from ..folding.rescale import as_weights_of, fold_weights
from ..inspection import drop_paths, inference_factors
from ..output.files import as_path
from ..output.terminal import one_line
from .config import read_config
from .download import download_network
from .location import NetworkSource, find_network
from .named_models import build_model, check_model_name, create_model, is_stochastic
from .record import TrainingRecord, record_of_run
from .signed_card import read_card

__all__ = ['TrainingRecord', 'check_goes_with', 'load_model', 'load_state_dict', 'load_structure']

_WITHOUT_NETWORK = 'give a folder or a file of weights that is on this machine.'


def load_model(
        source: Union[str, Path, NetworkSource],
        use_ema: bool = False,
        model_name: Optional[str] = None,
        model_args: Optional[Dict[str, Any]] = None,
) -> 'tuple[nn.Module, TrainingRecord]':
    """Build the network that is somewhere, at its full drop rate.

    It computes at inference what the weights computed where they come from, see `models.pretrained`.

    Args:
        source: A name of timm, whose pretrained weights are loaded; a repository of the Hub; a folder with a
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
    source = _as_source(source)
    check_goes_with(source, dict(model_name=model_name, model_args=model_args, use_ema=use_ema))
    if source.kind == 'name':
        return _load_name(source.place, model_args or {})
    if source.kind == 'hub':
        with says_how_to_go_on(source.place, _WITHOUT_NETWORK):
            folder = download_network(source.place)
        model, record = _load_folder(folder)
        # its card is its owner's, who is not to speak for others
        return model, replace(record, card=None, args=dict(pretrained=True, model=f'hf-hub:{source.place}'))
    if source.kind == 'folder':
        return _load_folder(source.path)
    return _load_file(source.path, use_ema, model_name, model_args or {})


def load_structure(
        source: Union[str, Path, NetworkSource],
        model_name: Optional[str] = None,
        model_args: Optional[Dict[str, Any]] = None,
) -> nn.Module:
    """The network that is somewhere, without memory for its weights.

    Args:
        source: As in `load_model`; of a name or a repository, weights are not downloaded.
        model_name: Name of the network, for a file that does not say it.
        model_args: Arguments of the network, in place of what is said of it.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: As in `load_model`.
    """
    source, model_args = _as_source(source), model_args or {}
    check_goes_with(source, dict(model_name=model_name))
    if source.kind == 'name':
        return _with_image_size(create_model(source.place, model_args, on_meta=True), model_args)
    if source.kind == 'file':
        file = read_weights_file(source.path)
        name = model_name or file.architecture or _first_that_fits(file, source.path)
        model = _build(file, name, model_args, on_meta=True)
        if model_name:
            _check_is_of(model, file, source.path, model_name)
        return _with_image_size(model, {**file.model_args, **model_args}, file.args)
    folder = source.path
    if source.kind == 'hub':
        with says_how_to_go_on(source.place, _WITHOUT_NETWORK):
            folder = download_network(source.place, with_weights=False)
    model_args = {**read_config(folder).get('model_args', {}), **model_args}
    return _with_image_size(_create_as_config_says(folder, model_args, on_meta=True), model_args)


def _check_is_of(model: nn.Module, file: WeightsFile, path: Path, model_name: str) -> None:
    """Refuse a network whose tensors have other names than the weights that it is said to be of."""
    others = sorted(
        key for key in set(model.state_dict()) ^ set(file.state_dict) if not key.endswith('.num_batches_tracked'))
    if others:
        raise ValueError(
            f'--model and --model-kwargs must be of the network that {path} holds the weights of, but got'
            f' {model_name!r}: not both have {", ".join(others[:3])}{", ..." if len(others) > 3 else ""}.')


def _with_image_size(
        model: nn.Module,
        model_args: Mapping[str, Any],
        run_args: Mapping[str, Any] = MappingProxyType({}),
) -> nn.Module:
    """The network; its configuration says the size of its images, where its arguments or those of its run say it."""
    for said in (model_args.get('img_size'), run_args.get('input_size'), run_args.get('img_size')):
        edges = said[-2:] if isinstance(said, (list, tuple)) else (said, said)
        if len(edges) == 2 and all(isinstance(edge, int) and edge > 0 for edge in edges):
            timms: Any = model
            channels = timms.pretrained_cfg['input_size'][0]
            timms.pretrained_cfg = {**timms.pretrained_cfg, 'input_size': (channels, *edges)}
            break
    return model


def _as_source(source: Union[str, Path, NetworkSource]) -> NetworkSource:
    if isinstance(source, NetworkSource):
        return source
    if isinstance(source, str):
        try:
            return find_network(source)
        except ValueError as e:
            raise ValueError(f'source {e}') from e
    path = as_path('source', source)
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist.')
    return NetworkSource('folder' if path.is_dir() else 'file', str(path))


_OF_A_NAME = ('model_args', '--drop-path', '--model-kwargs')


def check_goes_with(source: NetworkSource, given: Mapping[str, Any]) -> None:
    """Refuse what says something of a file of weights where something else says it: it would have no effect.

    Args:
        source: Where the network is.
        given: What was given, by the names of `load_model`'s arguments or those of the command line.

    Raises:
        ValueError: The message has the name of what was given.
    """
    for name, value in given.items():
        if value in (None, False, {}, []) or source.kind == 'file' or source.kind == 'name' and name in _OF_A_NAME:
            continue
        says = 'which is a name of timm' if source.kind == 'name' else 'whose config.json says it'
        raise ValueError(f'{name} must be left out for {source}, {says}, but got {value!r}.')


def _load_name(name: str, model_args: Dict[str, Any]) -> 'tuple[nn.Module, TrainingRecord]':
    check_model_name('source', name)
    cfg: Any = timm.models.get_pretrained_cfg(name)
    if not (cfg and cfg.has_weights):
        raise ValueError(f'source must be a network with weights, but timm has none for {name!r}.')
    tagged = f'{get_arch_name(name)}.{cfg.tag}' if cfg.tag else name  # the default tag spelled out
    with says_how_to_go_on(tagged, _WITHOUT_NETWORK):
        model = create_model(tagged, model_args, pretrained=True)
    return model, TrainingRecord(args=dict(pretrained=True, model=tagged))


def _create_as_config_says(folder: Path, model_args: Dict[str, Any], on_meta: bool = False) -> nn.Module:
    config = read_config(folder)
    model_args = {**config.get('model_args', {}), **model_args}
    return create_model(config['architecture'], model_args, on_meta, place=f'local-dir:{folder}')


def _load_file(
        path: Path,
        use_ema: bool,
        model_name: Optional[str],
        model_args: Dict[str, Any],
) -> 'tuple[nn.Module, TrainingRecord]':
    file = read_weights_file(path, use_ema)
    check_finite(file.state_dict, str(path))
    record = record_of_run(path, file, use_ema)
    name = model_name or file.architecture or _first_that_fits(file, path)
    model = _build(file, name, model_args)
    if model_name or model_args:
        _check_agrees(model, file, path, model_args)
    trained_scales = file.trained_scales()
    weights = file.state_dict if trained_scales is None else fold_weights(file.state_dict, model, trained_scales)
    load_state_dict(model, weights, path)
    if 'drop_path_rate' in model_args and not any(drop_paths(model)):
        record.args.setdefault('drop_path', model_args['drop_path_rate'])  # for the card, as the run would have said it
    says_all = file.architecture and (trained_scales is not None or file.says_rate() or says_rate(model_args))
    if is_stochastic(model) and not says_all and not model_name:
        record.assumed = (
            f'{_says_no_network(file, path)}. It is assumed to be {name} at its default drop rate: say which it is with'
            ' --model NAME, and its rate with --drop-path RATE.')
        warnings.warn(record.assumed, stacklevel=3)
    return model, record


def _build(file: WeightsFile, name: str, model_args: Dict[str, Any], on_meta: bool = False) -> nn.Module:
    """The network of a file, with the stochastic depth that it was trained with."""
    model = build_model(name, {**file.model_args, **model_args}, file.state_dict, on_meta)
    if not is_stochastic(model):
        _give_stochastic_depth(file, model)
    return model


def _check_agrees(model: nn.Module, file: WeightsFile, path: Path, model_args: Dict[str, Any]) -> None:
    """Refuse what somebody says of weights that say something else themselves."""
    for name, value in model_args.items():
        if file.model_args.get(name, value) != value:
            raise ValueError(
                f'{name} must be {file.model_args[name]!r}, as {path} says: what is given must agree with what {path}'
                f' says of its weights, but got {value!r}.')
    rates = sorted({drop_path.settings.drop_rate or 0. for _, drop_path in drop_paths(model)})
    given_rate = model_args.get('drop_path_rate')
    if given_rate is not None and rates and not any(isclose(given_rate, rate, abs_tol=1e-6) for rate in rates):
        raise ValueError(
            f'drop_path_rate must be {rates[-1]:.4g}, as {path} says of its weights, but got {given_rate}.')
    trained_scales = file.trained_scales(full=True)
    if trained_scales is None:
        return
    scales = inference_factors(model, full=True)
    if any(trained_scales.get(name, 1.) != scales.get(name, 1.) for name in {**trained_scales, **scales}):
        said = 'a plain network' if not trained_scales else f'rates up to {1. - min(trained_scales.values()):.4g}'
        raise ValueError(
            f'--model, --drop-path and --model-kwargs must agree with what {path} says of its weights, that they were'
            f' trained with {said}, but do not: leave out what the file says.')


def _first_that_fits(file: WeightsFile, path: Path) -> str:
    shapes = {key: value.shape for key, value in file.state_dict.items()}
    names = timm.list_models(module='resnet_sd')
    for name in sorted(names, key=lambda n: not n.endswith('_sample')):
        model = build_model(name, file.model_args, file.state_dict, on_meta=True)
        fits = {k: v.shape for k, v in model.state_dict().items()}
        if fits == shapes:
            return name
    raise ValueError(
        f'{_says_no_network(file, path)}, and its tensors are those of none of {", ".join(names)}: say which it is with'
        ' --model NAME.')


def _says_no_network(file: WeightsFile, path: Path) -> str:
    if file.architecture is not None:
        return f'{path} does not say the drop rate that its {file.architecture} was trained with'
    if file.other_name is None:
        return f'{path} does not say which network it is for'
    return f'{path} says that its network is {file.other_name!r}, a name that timm does not know'


def load_state_dict(model: nn.Module, state_dict: Dict[str, Tensor], path: Path) -> None:
    """Load weights that were trained with this very model.

    Raises:
        ValueError: A tensor is missing, superfluous or of another shape.
    """
    try:
        model.load_state_dict(as_weights_of(model, state_dict))
    except RuntimeError as e:
        raise ValueError(f'{path} does not fit the model: {one_line(e):.400}') from e


def _load_folder(folder: Path) -> 'tuple[nn.Module, TrainingRecord]':
    config = read_config(folder)
    model = _create_as_config_says(folder, {})
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
        warnings.warn(
            f'{folder}/config.json does not say the drop_path_rate of its network in model_args. It is assumed to be'
            ' the default one.', stacklevel=4)
    label_names = config.get('label_names')
    if isinstance(label_names, dict):  # by index, which timm takes as well
        label_names = [label_names[index] for index in sorted(label_names, key=int)]
    card, license = read_card(folder)
    return model, TrainingRecord(
        label_names=label_names, label_descriptions=config.get('label_descriptions'), license=license, card=card)


def _give_stochastic_depth(file: WeightsFile, model: nn.Module) -> None:
    """Give the plain network that timm builds the stochastic depth that the weights were trained with.

    The first that says it: the metadata of the state_dict; the launcher, in the arguments of a run.

    Raises:
        ValueError: What is said is not for a network like this one.
    """
    recorded = settings_in_metadata(file.state_dict)
    if recorded:
        apply_recorded(model, recorded)
    elif file.args.get('stochastic_depth'):
        options = DropOptions.from_args(file.args['stochastic_depth'])
        apply_settings(model, 'DropPath', options.at_rate(file.args.get('drop_path')))
