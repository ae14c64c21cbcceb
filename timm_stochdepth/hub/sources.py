"""Networks from files: a folder as on the Hub, a checkpoint of timm's scripts, or weights alone."""
import difflib
import warnings
from pathlib import Path
from typing import Any, Dict, Optional, Union

import timm
import torch
from safetensors import SafetensorError
from timm.models import get_arch_name, parse_model_name
from timm.models._hub import load_state_dict_from_path
from torch import Tensor, nn

from ..files import as_path
from ..scales import as_weights_of, fold_weights, inference_scales
from ..terminal import one_line
from ..weights import check_finite, strip_wrappers
from ..weights_file import WeightsFile, create_on_meta, is_stochastic_architecture, read_weights_file, says_rate
from .config import RESERVED_ARGS, read_config
from .record import TrainingRecord, record_of_run

__all__ = ['TrainingRecord', 'build_model', 'create_model', 'is_stochastic', 'load_model', 'load_state_dict']


def load_model(
        path: Union[str, Path],
        use_ema: bool = False,
        model_name: Optional[str] = None,
        model_args: Optional[Dict[str, Any]] = None,
) -> 'tuple[nn.Module, TrainingRecord]':
    """Build the network that a folder or a file of weights holds, at its full drop rate.

    It computes at inference what the weights computed where they come from, see `models.pretrained`.

    Args:
        path: A folder with a config.json and weights, a checkpoint of timm's train.py, or a file of weights alone.
        use_ema: Take a checkpoint's EMA weights.
        model_name: Name of the network, for a file that does not say it.
        model_args: Arguments of the network, likewise; its shape comes from the weights.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The file is broken, its architecture unknown or not to be rebuilt, it has no EMA weights, or says
            something else of its weights than is given.
    """
    path = as_path('path', path)
    if path.is_dir():
        for name, value in (('model_name', model_name), ('model_args', model_args), ('use_ema', use_ema)):
            if value:
                raise ValueError(
                    f'{name} must be left out for a folder, whose config.json says it, but got {value!r} for {path}.')
        return _load_folder(path)

    file = read_weights_file(path, use_ema)
    check_finite(file.state_dict, str(path))
    record = record_of_run(path, file, use_ema)
    name = model_name or file.architecture or _first_that_fits(file, path)
    model = build_model(name, {**file.model_args, **(model_args or {})}, file.state_dict)
    if model_name or model_args:
        _check_agrees(model, file, path)
    trained_scales = file.trained_scales()
    weights = file.state_dict if trained_scales is None else fold_weights(file.state_dict, model, trained_scales)
    load_state_dict(model, weights, path)
    says_all = file.architecture and (trained_scales is not None or file.says_rate() or says_rate(model_args or {}))
    if is_stochastic(model) and not says_all and not model_name:
        record.assumed = (
            f'{_says_no_network(file, path)}. It is assumed to be {name} at its default drop rate: say which it is with'
            ' --model NAME, and its rate with --drop-path RATE.')
        warnings.warn(record.assumed, stacklevel=2)
    return model, record


def _check_agrees(model: nn.Module, file: WeightsFile, path: Path) -> None:
    """Refuse what somebody says of weights that say something else themselves."""
    trained_scales = file.trained_scales(full=True)
    if trained_scales is None:
        return
    scales = inference_scales(model, full=True)
    if any(trained_scales.get(name, 1.) != scales.get(name, 1.) for name in {**trained_scales, **scales}):
        said = 'a plain network' if not trained_scales else f'rates up to {1. - min(trained_scales.values()):.4g}'
        raise ValueError(
            f'--model, --drop-path and --model-kwargs must agree with what {path} says of its weights, that they were'
            f' trained with {said}, but do not: leave out what the file says.')


def build_model(name: str, model_args: Dict[str, Any], state_dict: Dict[str, Tensor]) -> nn.Module:
    """The network of that name, with as many classes and channels as its weights have."""
    probe: Any = create_model(name, on_meta=True, **model_args)
    classifier, first_conv = (probe.pretrained_cfg.get(key) for key in ('classifier', 'first_conv'))
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
    return create_model(name, **model_args)


def _first_that_fits(file: WeightsFile, path: Path) -> str:
    shapes = {key: value.shape for key, value in file.state_dict.items()}
    names = timm.list_models(module='resnet_sd')
    for name in sorted(names, key=lambda n: not n.endswith('_sample')):
        with torch.device('meta'):
            fits = {k: v.shape for k, v in build_model(name, file.model_args, file.state_dict).state_dict().items()}
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


def create_model(name: str, on_meta: bool = False, **kwargs: Any) -> nn.Module:
    """`timm.create_model`, for names and arguments from a file.

    Args:
        name: A name of timm's registry, or of a network with `hf-hub:` or `local-dir:`.
        on_meta: Without memory for the weights.
        **kwargs: Arguments of the network.

    Raises:
        ValueError: The architecture is unknown, its source is not there, or it does not take the arguments.
    """
    reserved = [key for key in kwargs if key in RESERVED_ARGS]
    if reserved:
        raise ValueError(f'model_args must be arguments of the network alone, but has {", ".join(reserved)}.')
    source, model_id = parse_model_name(name)
    if source == 'local-dir':
        read_config(Path(model_id))  # whose errors name what is wrong
    elif source is None and not timm.is_model(get_arch_name(name)):
        close = difflib.get_close_matches(get_arch_name(name), timm.list_models(), n=3)
        raise ValueError(
            f'architecture must be a name that timm knows, but got {get_arch_name(name)!r}'
            + (f', the closest are {", ".join(close)}.' if close else '.'))
    try:
        return (create_on_meta if on_meta else timm.create_model)(name, **kwargs)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise ValueError(f'model_args must be arguments of {name}, but got {kwargs}: {one_line(e)}') from e


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
    create_model(config['architecture'], on_meta=True, **config.get('model_args', {}))  # its errors name what is wrong
    if any(folder.glob('*.index.json')):
        raise ValueError(f'{folder} must hold its weights in one file, but holds an index of several.')
    try:
        state_dict = strip_wrappers(load_state_dict_from_path(folder, weights_only=True))
    except SafetensorError as e:
        raise ValueError(f'the weights in {folder} are truncated or altered, or no safetensors: {one_line(e)}') from e
    except (OSError, RuntimeError) as e:
        raise ValueError(f'{folder} must hold weights, as model.safetensors, but: {one_line(e) or "no file"}') from e
    check_finite(state_dict, str(folder))
    model = timm.create_model(f'local-dir:{folder}')
    # strictly, where timm would give a network of other classes a new classifier
    load_state_dict(model, state_dict, folder)
    if is_stochastic(model) and not says_rate(config.get('model_args', {})):
        warnings.warn(
            f'{folder}/config.json does not say the drop_path_rate of its network in model_args. It is assumed to be'
            ' the default one.', stacklevel=3)
    label_names = config.get('label_names')
    if isinstance(label_names, dict):  # by index, which timm takes as well
        label_names = [label_names[index] for index in sorted(label_names, key=int)]
    return model, TrainingRecord(label_names=label_names, label_descriptions=config.get('label_descriptions'))


def is_stochastic(model: nn.Module) -> bool:
    """Whether a model is one of this package's names, and not a plain or folded one."""
    cfg: Any = getattr(model, 'pretrained_cfg', {})
    return is_stochastic_architecture(cfg.get('architecture', ''))
