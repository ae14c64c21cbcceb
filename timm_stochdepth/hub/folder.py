"""Write the files of a repository: weights, config and card."""
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Optional, Tuple, Union

import torch
from safetensors.torch import save_file
from timm.data.model_config import resolve_input_data_config
from timm.layers import DropPath
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from ..checkpoints.names import check_finite, merge_hint, strip_module_name, strip_wrappers
from ..folding.rescale import weights_at_full_rate
from ..inspection import drop_paths, stochastic_depth_args
from ..layers.sharding import refuse_sharded
from ..output.files import check_folder, write_into
from ..output.plots import can_plot, draw_rates, save_figure
from .card import PICTURE, create_card, for_repository, full_drop_rates
from .named_models import create_model, is_stochastic
from .record import TrainingRecord

__all__ = ['FILES', 'check_is_built', 'create_config', 'save_weights', 'write_folder']

FILES = ('README.md', 'config.json', PICTURE, 'model.safetensors')

# of a pretrained_cfg: what timm says of the weights that it has for the name of a network
_OF_OTHER_WEIGHTS = ('tag', 'license', 'description', 'origin_url', 'paper_name', 'paper_ids', 'notes')


def save_weights(model: nn.Module, path: Path) -> None:
    """Save a model's weights for its full rates, and what they are for, in the format of the path's suffix.

    Args:
        model: A network of timm's registry or of this package.
        path: File to write: safetensors with what they are for in their metadata, or with another suffix of
            `output.files.WEIGHTS` a checkpoint of torch.save, which timm's loaders and scripts take.

    Raises:
        ValueError: A tensor is not finite; the message names it.
    """
    state_dict = strip_wrappers(weights_at_full_rate(model))
    check_finite(state_dict, 'model')
    pretrained_cfg: Any = model.pretrained_cfg
    architecture: str = pretrained_cfg['architecture']
    if path.suffix == '.safetensors':
        metadata = dict(format='pt', architecture=architecture)
        if is_stochastic(model):
            metadata['model_args'] = json.dumps(create_config(model, TrainingRecord())['model_args'])
        tensors: Dict[str, Tensor] = {key: value.contiguous() for key, value in state_dict.items()}
        save_file(tensors, path, metadata=metadata)
    else:
        with path.open('wb') as file:  # whose errors say what a full disk is
            torch.save(dict(arch=architecture, state_dict=state_dict), file)


def write_folder(
        model: nn.Module,
        folder: Union[str, Path],
        repo_id: str,
        record: Optional[TrainingRecord] = None,
        force: bool = False,
) -> None:
    """Write what a repository holds: model.safetensors, config.json, README.md and a picture of the drop rates.

    Args:
        model: A network of this package's names, or one that was folded.
        folder: Where to write, a new or empty folder.
        repo_id: The repository that the card speaks of.
        record: What is known of the training.
        force: Write to a folder that holds something, in place of files of the same names.

    Raises:
        ValueError: A tensor is not finite, or timm does not build the network from its config; the message names it.
        FileExistsError: folder holds something.
    """
    refuse_sharded(model)
    record = record or TrainingRecord()
    config = create_config(model, record)
    _check_rebuilds(config, model)
    with write_into(check_folder(folder, 'folder', force), force, 'folder') as beside:
        (beside / 'config.json').write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
        has_picture = is_stochastic(model) and can_plot()
        if has_picture:
            save_figure(draw_rates(repo_id.split('/')[-1], full_drop_rates(model)), beside / PICTURE)
        card = for_repository(record.card, repo_id) if record.card else create_card(model, repo_id, record, has_picture)
        (beside / 'README.md').write_text(card, encoding='utf-8')
        save_weights(model, beside / 'model.safetensors')


def create_config(model: nn.Module, record: TrainingRecord) -> Dict[str, Any]:
    """Create the config.json of a repository: timm's own, with the settings of stochastic depth in its `model_args`.

    What differs from what timm writes: what timm says of its own weights of that name is left out, and the licence is
    there if it is known.
    """
    model_args = stochastic_depth_args(model) if is_stochastic(model) else {}
    labels = dict(label_names=record.label_names, label_descriptions=record.label_descriptions)
    data_config = resolve_input_data_config(model, record.args) if record.args else None
    with TemporaryDirectory() as name:
        path = Path(name) / 'config.json'
        save_config_for_hf(model, path, model_config=labels, model_args=model_args, data_config=data_config)  # type: ignore
        config = json.loads(path.read_text(encoding='utf-8'))
    for name in ('fold_pretrained', 'num_classes'):  # of an earlier load; transformers would pass it twice
        config.get('model_args', {}).pop(name, None)
    for name in _OF_OTHER_WEIGHTS:
        config['pretrained_cfg'].pop(name, None)
    license = record.license or record.base_license
    if license:
        config['pretrained_cfg']['license'] = license
    return config


def _check_rebuilds(config: Dict[str, Any], model: nn.Module) -> None:
    """Refuse a network that others could not build from its config.json: one with layers of one's own, for instance."""
    model_args = {**config.get('model_args', {}), 'num_classes': config['num_classes']}
    check_is_built(create_model(config['architecture'], model_args, on_meta=True), model)


def check_is_built(rebuilt: nn.Module, model: nn.Module) -> None:
    """Refuse a network that is another one than what timm builds of its name and arguments.

    Args:
        rebuilt: What timm builds.
        model: The network.

    Raises:
        ValueError: They differ in a tensor, an activation or a drop rate; the message names it.
    """
    cfg: Any = rebuilt.pretrained_cfg
    one, other = _structure(rebuilt), _structure(model)
    differing = sorted(key for key in {**one, **other} if one.get(key) != other.get(key))
    if differing:
        raise ValueError(
            f'model must be what timm builds as {cfg["architecture"]}, so that others can load it, but'
            f' {", ".join(differing[:3])} {"differs" if len(differing) == 1 else "differ"}.{merge_hint(differing)}')
    if _rates(rebuilt) != _rates(model):
        raise ValueError(
            'model must have one drop rate and distribution, which config.json can say, but its blocks were given'
            ' others: set_drop_rate or apply_stochastic_depth on the whole network, or push it with plain=True.')


def _structure(model: nn.Module) -> Dict[str, Any]:
    """Shapes of the tensors, and classes of modules without any that do something at inference: activations."""
    # a norm that was frozen has no counter, and inference no use for one
    tensors = {k: v for k, v in strip_wrappers(model.state_dict()).items() if not k.endswith('.num_batches_tracked')}
    others = {
        strip_module_name(name): type(module) for name, module in model.named_modules()
        if not any(True for _ in (*module.parameters(), *module.buffers(), *module.children()))
        and not isinstance(module, (nn.Identity, DropPath))
    }
    return {**{key: value.shape for key, value in tensors.items()}, **others}


def _rates(model: nn.Module) -> Dict[str, Tuple[float, float]]:
    """The rate of each drop path, and what its branch is multiplied with at inference, but for rounding."""
    return {
        strip_module_name(name): (round(drop_path.full_drop_prob, 6), round(drop_path.inference_scale(full=True), 6))
        for name, drop_path in drop_paths(model)}
