"""Networks from files: a folder as on the Hub, or a checkpoint of timm's train.py."""
import argparse
import csv
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

import timm
import torch
from timm.models import PretrainedCfg, clean_state_dict
from timm.models._hub import load_state_dict_from_path
from torch import nn

from ..fold import as_weights_of
from ..models.pretrained import is_stochastic_architecture

__all__ = ['TrainingRecord', 'create_model', 'is_stochastic', 'load_checkpoint_file', 'load_model', 'load_state_dict']


@dataclass
class TrainingRecord:
    """What is known of how a network was trained."""
    args: Dict[str, Any] = field(default_factory=dict)
    epoch: Optional[int] = None
    results: Dict[str, float] = field(default_factory=dict)
    label_names: Optional[List[str]] = None

    def _base(self) -> Optional[PretrainedCfg]:
        return timm.models.get_pretrained_cfg(self.args.get('model', '')) if self.args.get('pretrained') else None

    @property
    def base_model(self) -> Optional[str]:
        """Repository of the weights that training started from."""
        base = self._base()
        return base.hf_hub_id if base else None

    @property
    def license(self) -> Optional[str]:
        """Licence of the weights that training started from."""
        base = self._base()
        return base.license if base else None


def load_checkpoint_file(path: Path) -> Dict[str, Any]:
    """Read a checkpoint of timm's train.py.

    Raises:
        ValueError: It is no checkpoint, or holds objects that are not safe to unpickle.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as e:
        unsafe = ', '.join(torch.serialization.get_unsafe_globals_in_checkpoint(path)) or 'what it holds'
        raise ValueError(
            f'{path} must hold weights and settings alone, but asks to load {unsafe}, which could run any code.') from e
    except (EOFError, RuntimeError) as e:
        raise ValueError(f'{path} is truncated or no checkpoint: {" ".join(str(e).split())}') from e
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise ValueError(f"{path} must be a checkpoint of timm's train.py, with a state_dict and the args of the run.")
    return checkpoint


def load_model(path: Path, use_ema: bool = False) -> 'tuple[nn.Module, TrainingRecord]':
    """Build the network that a folder or a checkpoint holds, at its full drop rate.

    Args:
        path: A folder with a config.json and weights, or a checkpoint of timm's train.py.
        use_ema: Take a checkpoint's EMA weights.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The file is broken, its architecture unknown or not to be rebuilt, or has no EMA weights.
    """
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist.')
    if path.is_dir():
        return _load_folder(path), TrainingRecord(label_names=_read_config(path).get('label_names'))

    checkpoint = load_checkpoint_file(path)
    args = vars(checkpoint['args']) if isinstance(checkpoint.get('args'), argparse.Namespace) else {}
    key = 'state_dict_ema' if use_ema else 'state_dict'
    if checkpoint.get(key) is None:
        raise ValueError(f'{path} has no EMA weights.')
    name = args.get('model') or checkpoint.get('arch')
    if not name:
        raise ValueError(f'{path} does not say which model it is for.')
    state_dict = clean_state_dict(checkpoint[key])
    model = create_model(
        name,
        num_classes=state_dict['fc.bias'].shape[0] if 'fc.bias' in state_dict else 0,
        in_chans=args.get('in_chans'),
        global_pool=args.get('gp'),
        drop_path_rate=args.get('drop_path'),
        **{k: v for k, v in (args.get('model_kwargs') or {}).items() if k != 'fold_pretrained'},
    )
    load_state_dict(model, state_dict, path)
    record = TrainingRecord(args=args, epoch=checkpoint.get('epoch'), results=_results(path, checkpoint))
    return model, record


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model`, for names and arguments from a file.

    Raises:
        ValueError: The architecture is unknown, or does not take the arguments.
    """
    architecture = timm.models.get_arch_name(name)
    if not timm.is_model(architecture):
        raise ValueError(f'architecture must be a name that timm knows, but got {architecture!r}.')
    try:
        return timm.create_model(name, **kwargs)
    except TypeError as e:
        raise ValueError(f'model_args must be arguments of {architecture}, but got {kwargs}: {e}') from e


def load_state_dict(model: nn.Module, state_dict: Dict[str, torch.Tensor], path: Path) -> None:
    """Load weights that were trained with this very model.

    Raises:
        ValueError: A tensor is missing, superfluous or of another shape.
    """
    try:
        model.load_state_dict(as_weights_of(model, state_dict))
    except RuntimeError as e:
        raise ValueError(f'{path} does not fit the model: {" ".join(str(e).split())}') from e


def _read_config(folder: Path) -> Dict[str, Any]:
    path = folder / 'config.json'
    if not path.is_file():
        raise FileNotFoundError(f'{folder} must hold a config.json.')
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as e:
        raise ValueError(f'{path} is no JSON: {e}') from e
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise ValueError(f'{path} must name an architecture.')
    return config


def _load_folder(folder: Path) -> nn.Module:
    config = _read_config(folder)
    create_model(config['architecture'], **config.get('model_args', {}))  # whose errors name what is wrong
    model = timm.create_model(f'local-dir:{folder}')
    # strictly, where timm would give a network of other classes a new classifier
    load_state_dict(model, load_state_dict_from_path(folder, weights_only=True), folder)
    return model


def _results(path: Path, checkpoint: Dict[str, Any]) -> Dict[str, float]:
    """Validation results of a checkpoint's epoch, from the summary.csv beside it or the checkpoint's metric."""
    summary = path.parent / 'summary.csv'
    if summary.is_file():
        with summary.open(newline='') as file:
            for row in csv.DictReader(file):
                if row.get('epoch') == str(checkpoint.get('epoch')):
                    return {k[len('eval_'):]: float(v) for k, v in row.items() if k.startswith('eval_') and v}
    metric = checkpoint.get('metric')
    name = getattr(checkpoint.get('args'), 'eval_metric', 'top1')
    return {name: float(metric)} if metric is not None else {}


def is_stochastic(model: nn.Module) -> bool:
    """Whether a model is one of this package's names, and not a plain or folded one."""
    cfg: Any = getattr(model, 'pretrained_cfg', {})
    return is_stochastic_architecture(cfg.get('architecture', ''))
