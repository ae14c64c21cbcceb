"""Read files of weights, and what they say of themselves: checkpoints of timm's scripts, state_dicts, safetensors."""
import argparse
import json
import pickle
import warnings
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.models import parse_model_name, split_model_name_tag
from torch import Tensor, nn

from ..inspection import inference_factors
from ..output.terminal import one_line
from ..zoo.names import is_stochastic_architecture
from ..zoo.rates import scales_by_keep_by_default
from .names import factors_in_metadata, merge_hint, strip_wrappers

__all__ = ['WeightsFile', 'create_on_meta', 'read_weights_file', 'says_rate']


def create_on_meta(name: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model` without memory for the weights: structure, names, shapes and settings."""
    with torch.device('meta'), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # they are for who trains the network
        return timm.create_model(name, **kwargs)


def says_rate(model_args: Mapping[str, Any]) -> bool:
    """Whether arguments of a network of this package say by how much its branches are scaled at inference."""
    return model_args.get('drop_path_rate') is not None or bool(model_args.get('scale_by_keep'))


@dataclass
class WeightsFile:
    """Weights, and what their file says of them.

    Attributes:
        state_dict: Tensors under the names that the network itself has.
        architecture: Name of their network, as `timm.create_model` takes it; None if the file does not say.
        other_name: What the file says instead, a class's name for instance.
        model_args: Arguments of the network, as far as the file says.
        args: Arguments of the run of timm's train.py that wrote it.
        epoch: Epoch after which it was written.
        metric: What that run measured after that epoch, by `args['eval_metric']`.
    """
    state_dict: Dict[str, Tensor]
    architecture: Optional[str] = None
    other_name: Optional[str] = None
    model_args: Dict[str, Any] = field(default_factory=dict)
    args: Dict[str, Any] = field(default_factory=dict)
    epoch: Optional[int] = None
    metric: Optional[float] = None

    def says_rate(self) -> bool:
        """Whether the arguments of the network say its drop rate: train.py has always one, None for the default."""
        return says_rate(self.model_args) or 'drop_path' in self.args

    def trained_factors(self, full: bool = False) -> Optional[Dict[str, float]]:
        """What each branch was multiplied with at inference where the weights come from, None if nothing says.

        The first that is there: the metadata of the state_dict, as a stochastic network gave it at that very moment;
        the network's name and arguments; metadata without factors, which a plain network gave. A plain network has no
        entries, its factors are 1. With `full` they are those of the end of the warm-up.
        """
        factors = factors_in_metadata(self.state_dict, full)
        if factors is not None:
            return factors
        if self.architecture is None:
            return {} if getattr(self.state_dict, '_metadata', None) else None
        source, name = parse_model_name(self.architecture)
        if source is None and not is_stochastic_architecture(name):
            return {}
        scale_by_keep = self.model_args.get('scale_by_keep')
        if scale_by_keep or (scale_by_keep is None and source is None and scales_by_keep_by_default(name)):
            return {}  # at whatever rate
        if not self.says_rate() or (self._is_amid_warmup() and not full):
            return None
        with suppress(Exception):  # a folder that is gone, a Hub out of reach: then nothing says it
            return inference_factors(create_on_meta(self.architecture, **self.model_args))
        return None

    def _is_amid_warmup(self) -> bool:
        epochs, warmup = self.args.get('epochs'), self.model_args.get('drop_warmup')
        if not epochs or not warmup or self.epoch is None:
            return False
        return (self.epoch + 1) / epochs < warmup


def read_weights_file(path: Path, use_ema: Optional[bool] = None) -> WeightsFile:
    """Read weights, and what is said of them.

    Args:
        path: Safetensors, or what torch.save wrote: a checkpoint or a bare state_dict.
        use_ema: Take a checkpoint's EMA weights, or not; None: where there are, as timm does.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: path is a folder, it is broken, holds no weights or no EMA weights, or objects that are not safe to
            unpickle.
    """
    if path.is_dir():
        raise ValueError(f'{path} must be a file of weights, but is a folder.')
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist.')
    _refuse_others_files(path)
    if path.suffix == '.safetensors' or _is_safetensors(path):
        if use_ema:
            raise ValueError(f'{path} has no EMA weights.')
        file = _read_safetensors(path)
    else:
        file = _read_checkpoint(path, use_ema)
    hint = merge_hint(file.state_dict)
    if hint:
        raise ValueError(f'{path} must hold the weights of a network as timm builds it.{hint}')
    return file


def _refuse_others_files(path: Path) -> None:
    """Say what a file is that people often have in place of the weights."""
    with path.open('rb') as file:
        start = file.read(64)
    held = ''
    if not start:
        held = 'is empty.'
    elif start.startswith(b'version https://git-lfs'):
        held = 'is a pointer of Git LFS: `git lfs pull` brings the file.'
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith('/constants.pkl') for name in archive.namelist()):
                held = 'is a TorchScript archive: save model.state_dict().'
    if held:
        raise ValueError(f'{path} must hold weights, but {held}')


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins with a header of safetensors, whatever its name."""
    with path.open('rb') as file:
        header_size = int.from_bytes(file.read(8), 'little')
        if header_size > path.stat().st_size - 8:
            return False
        try:
            return isinstance(json.loads(file.read(header_size)), dict)
        except (ValueError, RecursionError):
            return False


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(str(path), framework='pt') as file:
            metadata = file.metadata() or {}
        state_dict = strip_wrappers(load_file(path))
    except SafetensorError as e:
        raise ValueError(f'{path} is truncated or altered, or no safetensors: {one_line(e)}') from e
    model_args: Any = {}
    with suppress(ValueError):
        model_args = json.loads(metadata.get('model_args', '{}'))
    names = _first_model_name([metadata.get('architecture')])
    return WeightsFile(state_dict, *names, model_args if isinstance(model_args, dict) else {})


def _read_checkpoint(path: Path, use_ema: Optional[bool]) -> WeightsFile:
    checkpoint = _load_pickle(path)
    state_dict = _find_state_dict(checkpoint, path, use_ema)
    args = checkpoint.get('args')
    args = dict(vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {})
    return WeightsFile(
        strip_wrappers(state_dict),
        *_first_model_name([args.get('model'), checkpoint.get('arch')]),
        model_args=_model_args_of_run(args),
        args=args,
        epoch=checkpoint.get('epoch'),
        metric=checkpoint.get('metric'),
    )


def _load_pickle(path: Path) -> Dict[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # without reading the tensors before they are used, where the file's format allows it
            checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as e:
        unsafe: List[str] = []
        with suppress(Exception):  # it reads zip files alone
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if not unsafe:
            raise ValueError(f'{path} must be a checkpoint or state_dict of torch.save, but is something else.') from e
        raise ValueError(
            f'{path} must hold weights and settings alone, as torch.save(model.state_dict()) writes them, but asks to'
            f' load {", ".join(unsafe[:3])}{", ..." if len(unsafe) > 3 else ""}, which could run any code.') from e
    except (EOFError, RuntimeError, ValueError) as e:
        raise ValueError(f'{path} is truncated or no checkpoint: {one_line(e) or type(e).__name__}') from e
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} must hold a checkpoint or a state_dict, but holds a {type(checkpoint).__name__}.')
    return checkpoint


def _find_state_dict(checkpoint: Dict[str, Any], path: Path, use_ema: Optional[bool]) -> Dict[str, Tensor]:
    """The weights in a checkpoint, under the keys that timm looks for, in its order."""
    raw_keys, ema_keys = ('state_dict', 'model'), ('state_dict_ema', 'model_ema')
    keys = {None: ema_keys + raw_keys, True: ema_keys, False: raw_keys}[use_ema]
    key = next((k for k in keys if checkpoint.get(k) is not None), None)
    if key is None and use_ema:
        raise ValueError(f'{path} has no EMA weights.')
    state_dict = checkpoint if key is None else checkpoint[key]
    if not isinstance(state_dict, dict):
        raise ValueError(f'{path} must hold a state_dict, but its {key!r} is a {type(state_dict).__name__}.')
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f'{path} must hold a state_dict of tensors, alone or as one of {", ".join(raw_keys + ema_keys)}, but'
                f' {name!r} is a {type(value).__name__}.')
    if not state_dict:
        raise ValueError(f'{path} must hold weights, but its state_dict is empty.')
    return state_dict


def _model_args_of_run(args: Dict[str, Any]) -> Dict[str, Any]:
    """What timm's train.py gave `timm.create_model`, but for the number of classes, which the weights say."""
    model_args = dict(
        in_chans=args.get('in_chans') or (args.get('input_size') or [None])[0],
        global_pool=args.get('gp'),
        drop_path_rate=args.get('drop_path'),
    )
    model_kwargs = args.get('model_kwargs')
    model_args.update(model_kwargs if isinstance(model_kwargs, dict) else {})
    return {k: v for k, v in model_args.items() if v is not None and k != 'fold_pretrained'}


def _first_model_name(names: Sequence[Any]) -> Tuple[Optional[str], Optional[str]]:
    """The first name that `timm.create_model` takes, or if there is none the first that it does not."""
    said = [name for name in names if isinstance(name, str) and name]
    for name in said:
        with suppress(ValueError):
            source, model_id = parse_model_name(name)
            if source is not None or timm.is_model(split_model_name_tag(model_id)[0]):
                return name, None
    return None, said[0] if said else None
