"""The files of a repository: weights, config and card."""
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Optional

import torch
from safetensors.torch import save_file
from timm.data.model_config import resolve_input_data_config
from timm.models import get_arch_name, get_pretrained_cfg
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from ..fold import weights_at_full_rate
from ..output_folder import write_new_folder
from ..plots import can_plot, plot_rates
from ..surgery import stochastic_depth_args
from ..weights import check_finite, strip_wrappers
from .card import PICTURE, create_card, full_drop_rates
from .record import TrainingRecord
from .sources import create_model, is_stochastic

__all__ = ['create_config', 'save_weights', 'write_folder']


def save_weights(model: nn.Module, path: Path, note: Optional[str] = None) -> None:
    """Save a model's weights for its full rates, and what they are for, in the format of the path's suffix.

    Args:
        model: A network of timm's registry or of this package.
        path: File to write: safetensors with what they are for in their metadata, or with another suffix of
            `file_kinds.WEIGHTS` a checkpoint of torch.save, which timm's loaders and scripts take.
        note: What else to note beside the weights.

    Raises:
        ValueError: A tensor is not finite; the message names it.
    """
    state_dict = strip_wrappers(weights_at_full_rate(model))
    check_finite(state_dict, 'model')
    pretrained_cfg: Any = model.pretrained_cfg
    architecture: str = pretrained_cfg['architecture']
    notes = {} if note is None else dict(note=note)
    if path.suffix == '.safetensors':
        if is_stochastic(model):
            notes['model_args'] = json.dumps(create_config(model, TrainingRecord())['model_args'])
        tensors: Dict[str, Tensor] = {key: value.contiguous() for key, value in state_dict.items()}
        save_file(tensors, path, metadata=dict(format='pt', architecture=architecture, **notes))
        _sort_metadata(path)
    else:
        torch.save(dict(arch=architecture, state_dict=state_dict, **notes), path)


def _sort_metadata(path: Path) -> None:
    """Make equal networks equal files: safetensors' writer puts the metadata in any order."""
    with path.open('r+b') as file:
        size = int.from_bytes(file.read(8), 'little')
        header = json.loads(file.read(size))
        header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode().ljust(size))


def write_folder(model: nn.Module, folder: Path, repo_id: str, record: Optional[TrainingRecord] = None) -> None:
    """Write what a repository holds: model.safetensors, config.json, README.md and a picture of the drop rates.

    Args:
        model: A network of this package's names, or one that was folded.
        folder: Where to write: a new or empty folder, or one that holds these very files.
        repo_id: The repository that the card speaks of.
        record: What is known of the training.

    Raises:
        ValueError: A tensor is not finite, or timm does not build the network from its config; the message names it.
        FileExistsError: folder holds something else.
    """
    record = record or TrainingRecord()
    with write_new_folder(folder, name='folder') as beside:
        config = create_config(model, record)
        _check_rebuilds(config, model)
        (beside / 'config.json').write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
        has_picture = is_stochastic(model) and can_plot()
        if has_picture:
            plot_rates(repo_id.split('/')[-1], full_drop_rates(model), beside / PICTURE)
        license = config['pretrained_cfg']['license']
        create_card(model, repo_id, record, license, has_picture).save(beside / 'README.md')
        save_weights(model, beside / 'model.safetensors')


def create_config(model: nn.Module, record: TrainingRecord) -> Dict[str, Any]:
    """The config.json of a repository: timm's own, with the settings of stochastic depth in its `model_args`.

    What differs from what timm writes: `num_classes` stands in its place at the top alone, as transformers passes it to
    `timm.create_model` beside `model_args`; licence, tag and papers are those of these weights.
    """
    pretrained_cfg: Any = model.pretrained_cfg
    model_args = stochastic_depth_args(model) if is_stochastic(model) else {}
    labels = dict(label_names=record.label_names) if record.label_names else {}
    data_config = resolve_input_data_config(model, record.args) if record.args else None
    with TemporaryDirectory() as name:
        path = Path(name) / 'config.json'
        save_config_for_hf(model, path, model_config=labels, model_args=model_args, data_config=data_config)  # type: ignore
        config = json.loads(path.read_text(encoding='utf-8'))
    for name in ('num_classes', 'fold_pretrained'):
        config.get('model_args', {}).pop(name, None)
    config['pretrained_cfg']['license'] = record.license or _license(pretrained_cfg)
    if not record.base_model:
        for name in ('tag', 'origin_url', 'paper_ids'):  # of weights that these are not
            config['pretrained_cfg'].pop(name, None)
    return config


def _check_rebuilds(config: Dict[str, Any], model: nn.Module) -> None:
    """Refuse a network that others could not build from its config.json: one with layers of one's own, for instance."""
    rebuilt = create_model(
        config['architecture'], on_meta=True, num_classes=config['num_classes'], **config.get('model_args', {}))
    expected = {key: value.shape for key, value in rebuilt.state_dict().items()}
    shapes = {key: value.shape for key, value in strip_wrappers(model.state_dict()).items()}
    differing = sorted(key for key in {**expected, **shapes} if expected.get(key) != shapes.get(key))
    if differing:
        raise ValueError(
            f'model must be what timm builds as {config["architecture"]}, so that others can load it, but'
            f' {", ".join(differing[:3])} {"differs" if len(differing) == 1 else "differ"}.')


def _license(pretrained_cfg: Dict[str, Any]) -> str:
    """Licence of the tag that the model was made by, so that non-commercial weights stay that."""
    default = get_pretrained_cfg(get_arch_name(pretrained_cfg['architecture']))
    return pretrained_cfg.get('license') or (default and default.license) or 'apache-2.0'
