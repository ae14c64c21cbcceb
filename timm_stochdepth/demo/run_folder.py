"""What is written of a run: the trained network, and how it was trained, in one folder."""
import hashlib
import json
import platform
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict

import timm
import torch
from torch import nn

from ..bench.report import device_name
from ..folding.fold import fold_stochastic_depth
from ..output.files import write_beside
from ..version import __version__
from .images import Images
from .methods import METHODS
from .network import Network
from .recipe import Recipe
from .train import Result, evaluate

__all__ = ['is_run', 'read_result', 'result_of', 'run_name', 'write_run']

RESULT = 'run.json'


def run_settings(network: Network, recipe: Recipe, seed: int) -> Dict[str, Any]:
    """All that decides what a run gives."""
    return json.loads(json.dumps(dict(network=asdict(network), recipe=asdict(recipe), seed=seed)))


def run_name(network: Network, recipe: Recipe, seed: int) -> str:
    """Name of a run's folder, another one for other settings."""
    digest = hashlib.sha256(json.dumps(run_settings(network, recipe, seed), sort_keys=True).encode()).hexdigest()
    parts = [network.model_name, network.method, f'seed{seed}', digest[:8]]
    return re.sub(r'[^\w.-]+', '_', '-'.join(part for part in parts if part))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run that was written before."""
    return (folder / RESULT).is_file()


def read_result(folder: Path) -> Result:
    """What a run showed that was written before.

    Raises:
        ValueError: It was written by another version, of other fields, or by somebody else.
    """
    path = folder / RESULT
    try:
        return result_of(json.loads(path.read_text(encoding='utf-8')))
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f'{path} is not the result of a run of this version: {e}') from e


def result_of(record: Dict[str, Any]) -> Result:
    """The result in what was read of a run's file."""
    result = Result(**record['result'])
    result.top1s = {int(epoch): top1 for epoch, top1 in result.top1s.items()}
    return result


def write_run(
        path: Path,
        model: nn.Module,
        result: Result,
        network: Network,
        recipe: Recipe,
        images: Images,
) -> None:
    """Write a new folder that `timm.create_model('local-dir:...')` takes, and note what it scores when read back.

    A network that was given stochastic depth by hand is written as the plain one that computes the same, which is what
    its name stands for.

    Args:
        path: The folder.
        model: The trained network.
        result: What its training showed.
        network: What was trained.
        recipe: How.
        images: What it is scored on.
    """
    model_args = {k: v for k, v in network.model_args.items() if k != 'pretrained_cfg_overlay'}
    result.saved_top1 = result.top1
    applied = METHODS.get(network.method or '')
    if applied:
        model = fold_stochastic_depth(model)
        if not applied.get('scale_by_keep'):  # the weights are others
            result.saved_top1 = evaluate(model, images, recipe)
    with write_beside(path) as folder:
        timm.models.save_for_hf(model, str(folder), model_args=model_args or None, safe_serialization=True)
        reloaded = timm.create_model(f'local-dir:{folder}', pretrained=True).to(recipe.device)
        result.reloaded_top1 = evaluate(reloaded, images, recipe)
        record = dict(
            settings=run_settings(network, recipe, result.seed),
            machine=device_name(torch.device(recipe.device)),
            versions=dict(
                python=platform.python_version(), torch=torch.__version__, timm=timm.__version__,
                timm_stochdepth=__version__),
            result=asdict(result),
        )
        (folder / RESULT).write_text(json.dumps(record) + '\n', encoding='utf-8')
