"""Build the network of a checkpoint of timm's scripts, or of a file of weights alone."""
from math import isclose
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from torch import Tensor, nn

from ..apply import apply_recorded, apply_settings
from ..checkpoints.drop_options import DropOptions
from ..checkpoints.file import WeightsFile, read_weights_file, says_rate
from ..checkpoints.names import check_finite, settings_in_metadata
from ..folding.rescale import as_weights_of, fold_weights
from ..inspection import drop_paths, inference_factors
from ..messages import warn_user
from ..output.terminal import one_line
from ..settings import METHODS
from ..zoo.names import stochastic_name
from .named_models import build_model, is_stochastic
from .record import TrainingRecord, record_of_run

__all__ = ['build_from_file', 'check_is_of', 'first_that_fits', 'load_file', 'load_state_dict']

# networks that a file may be of that does not say of which
_UNNAMED = ('resnet50', 'resnet101')


def load_file(
        path: Path,
        use_ema: bool,
        model_name: Optional[str],
        model_args: Dict[str, Any],
) -> Tuple[nn.Module, TrainingRecord]:
    """As `load.load_model`, of a checkpoint or weights alone."""
    file = read_weights_file(path, use_ema)
    check_finite(file.state_dict, str(path))
    record = record_of_run(path, file, use_ema)
    name = model_name or file.architecture or first_that_fits(file, path)
    model = build_from_file(file, name, model_args)
    if model_name or model_args:
        _check_agrees(model, file, path, model_args)
    trained_factors = file.trained_factors()
    weights = file.state_dict if trained_factors is None else fold_weights(file.state_dict, model, trained_factors)
    load_state_dict(model, weights, path)
    if 'drop_path_rate' in model_args and not any(drop_paths(model)):
        record.args.setdefault('drop_path', model_args['drop_path_rate'])  # for the card, as the run would have said it
    says_all = file.architecture and (trained_factors or file.says_rate() or says_rate(model_args))
    if is_stochastic(model) and not says_all and not model_name:
        record.assumed = (
            f'{_says_no_network(file, path)}. It is assumed to be {name} at its default drop rate: say which it is with'
            ' --model NAME, and its rate with --drop-path RATE.')
        warn_user(record.assumed)
    return model, record


def build_from_file(file: WeightsFile, name: str, model_args: Dict[str, Any], on_meta: bool = False) -> nn.Module:
    """Build the network of a file, with the stochastic depth that it was trained with.

    The first that says it: the network's name; the metadata of the state_dict; the launcher, in the arguments of a run.
    """
    model = build_model(name, {**file.model_args, **model_args}, file.state_dict, on_meta)
    recorded = settings_in_metadata(file.state_dict)
    if is_stochastic(model):
        return model
    if recorded:
        apply_recorded(model, recorded)
    elif file.args.get('stochastic_depth'):
        options = DropOptions.from_args(file.args['stochastic_depth'])
        apply_settings(model, 'DropPath', options.at_rate(file.args.get('drop_path')))
    return model


def check_is_of(model: nn.Module, file: WeightsFile, path: Path, model_name: str) -> None:
    """Refuse a network whose tensors have other names than a file's."""
    others = sorted(
        key for key in set(model.state_dict()) ^ set(file.state_dict) if not key.endswith('.num_batches_tracked'))
    if others:
        raise ValueError(
            f'--model and --model-kwargs must be of the network that {path} holds the weights of, but got'
            f' {model_name!r}: not both have {", ".join(others[:3])}{", ..." if len(others) > 3 else ""}.')


def _check_agrees(model: nn.Module, file: WeightsFile, path: Path, model_args: Dict[str, Any]) -> None:
    """Refuse arguments that contradict what a file says of its weights."""
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
    trained_factors = file.trained_factors(full=True)
    if trained_factors is None:
        return
    factors = inference_factors(model, full=True)
    if any(trained_factors.get(name, 1.) != factors.get(name, 1.) for name in {**trained_factors, **factors}):
        said = 'a plain network' if not trained_factors else f'rates up to {1. - min(trained_factors.values()):.4g}'
        raise ValueError(
            f'--model, --drop-path and --model-kwargs must agree with what {path} says of its weights, that they were'
            f' trained with {said}, but do not: leave out what the file says.')


def first_that_fits(file: WeightsFile, path: Path) -> str:
    """Find the first name of this package whose tensors have the names and shapes of a file's."""
    shapes = {key: value.shape for key, value in file.state_dict.items()}
    names = [stochastic_name(plain_name, method) for plain_name in _UNNAMED for method in METHODS]
    for name in sorted(names, key=lambda n: not n.endswith('_sample')):
        model = build_model(name, file.model_args, file.state_dict, on_meta=True)
        if {key: value.shape for key, value in model.state_dict().items()} == shapes:
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
        ValueError: A tensor is missing, superfluous or of another shape, or holds whole numbers.
    """
    own = model.state_dict()
    for key, value in state_dict.items():
        if key in own and own[key].is_floating_point() and not value.is_floating_point():
            raise ValueError(f'{path} does not fit the model: {key} must be {own[key].dtype}, but is {value.dtype}.')
    try:
        model.load_state_dict(as_weights_of(model, state_dict))
    except RuntimeError as e:
        raise ValueError(f'{path} does not fit the model: {one_line(e):.400}') from e
