"""The files of a repository: weights, config and card."""
import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Dict, Optional

from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.models import get_arch_name, get_pretrained_cfg
from timm.models._hub import save_config_for_hf
from torch import nn

from ..plots import plot_rates
from ..surgery import drop_rates, stochastic_depth_args
from .card import PICTURE, create_card
from .record import TrainingRecord
from .sources import is_stochastic

__all__ = ['hub_config', 'save_weights', 'write_folder']


# arguments that timm recorded when the model was created, and that a folded network has no use for
_STOCHASTIC_ARGS = (
    'drop_path_rate',
    'drop_distribution',
    'drop_warmup',
    'use_same_gpu_seed',
    'scale_by_keep',
    'skip_dropped',
)


def hub_config(architecture: str) -> Dict[str, Any]:
    """The config.json that a model of this package starts from on the Hub."""
    package = files('timm_stochdepth')
    for folder in (package / 'hub_configs', package / '..' / 'hub_configs'):  # of a wheel, of a checkout
        path = folder / architecture / 'config.json'
        if path.is_file():
            return json.loads(path.read_text(encoding='utf-8'))
    raise FileNotFoundError(f'architecture must have a config in hub_configs, but {architecture!r} has none.')


def save_weights(model: nn.Module, path: Path) -> None:
    """Save a model's weights as safetensors, and in their metadata which architecture they are for."""
    pretrained_cfg: Any = model.pretrained_cfg
    state_dict = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state_dict, path, metadata={'format': 'pt', 'architecture': pretrained_cfg['architecture']})


def write_folder(model: nn.Module, folder: Path, repo_id: str, record: Optional[TrainingRecord] = None) -> None:
    """Write what a repository holds: model.safetensors, config.json, README.md and a picture of the drop rates.

    Args:
        model: A network of this package's names, or a folded one.
        folder: Where to write, it has to exist.
        repo_id: The repository that the card speaks of.
        record: What is known of the training.
    """
    record = record or TrainingRecord()
    pretrained_cfg: Any = model.pretrained_cfg
    config: Dict[str, Any] = {}
    model_args: Dict[str, Any] = {}
    if is_stochastic(model):
        config = hub_config(pretrained_cfg['architecture'])
        model_args = stochastic_depth_args(model)
        plot_rates(repo_id.split('/')[-1], drop_rates(model), folder / PICTURE)
    labels = dict(label_names=record.label_names) if record.label_names else {}
    data_config = resolve_data_config(record.args, pretrained_cfg=pretrained_cfg) if record.args else None
    save_config_for_hf(
        model, folder / 'config.json', model_config=labels, model_args=model_args, data_config=data_config)  # type: ignore
    config.update(json.loads((folder / 'config.json').read_text(encoding='utf-8')))
    for name in ('fold_pretrained', *(() if model_args else _STOCHASTIC_ARGS)):
        config.get('model_args', {}).pop(name, None)
    license = record.license or _license(pretrained_cfg)
    config['pretrained_cfg']['license'] = license
    if not record.base_model:
        for name in ('tag', 'origin_url', 'paper_ids'):  # of weights that these are not
            config['pretrained_cfg'].pop(name, None)
    if record.label_names:
        config['label_names'] = record.label_names
    (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
    save_weights(model, folder / 'model.safetensors')
    create_card(model, repo_id, record, license).save(folder / 'README.md')


def _license(pretrained_cfg: Dict[str, Any]) -> str:
    """Licence of the tag that the model was made by, so that non-commercial weights stay that."""
    default = get_pretrained_cfg(get_arch_name(pretrained_cfg['architecture']))
    return pretrained_cfg.get('license') or (default and default.license) or 'apache-2.0'
