"""Train one network on the digits, with timm's own loader, task, optimizer and scheduler."""
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import AverageMeter, accuracy
from torch import nn
from tqdm import tqdm

from ..files import write_beside
from ..surgery import drop_paths, stochastic_depth_args
from .digits import IMG_SIZE, NUM_CLASSES
from .drops import DropCounter

__all__ = ['Result', 'check_network', 'evaluate', 'reload', 'save', 'train']

BATCH_SIZE = 64
LR = 2e-3
WEIGHT_DECAY = 0.02


@dataclass
class Result:
    """What a training run showed, a value for each epoch where there is a list."""
    model_name: str
    label: str
    losses: List[float] = field(default_factory=list)
    top1s: List[float] = field(default_factory=list)
    epoch_seconds: List[float] = field(default_factory=list)
    drop_rates: Dict[str, float] = field(default_factory=dict)
    drop_frequencies: Dict[str, float] = field(default_factory=dict)
    reloaded_top1: float = float('nan')


def _create_loader(data_dir: Path, split: str, **kwargs: Any) -> Any:
    dataset = create_dataset('', root=str(data_dir), split=split)
    return create_loader(
        dataset,
        input_size=(3, IMG_SIZE, IMG_SIZE),
        batch_size=BATCH_SIZE,
        interpolation='bicubic',
        crop_pct=1.0,
        num_workers=0,
        persistent_workers=False,
        device=torch.device('cpu'),
        **kwargs,
    )


def check_network(model_name: str, model_kwargs: Dict[str, Any]) -> None:
    """Refuse, before anything is trained, a network that cannot be made or does not take the digits.

    Raises:
        ValueError: The network does not take these arguments, or images of this size.
    """
    with torch.device('meta'):
        try:
            model = timm.create_model(model_name, num_classes=NUM_CLASSES, **model_kwargs)
        except (TypeError, ValueError) as e:
            raise ValueError(f'--model-kwargs must be arguments of {model_name}, but got {model_kwargs}: {e}') from e
        try:
            model.eval()(torch.empty(1, 3, IMG_SIZE, IMG_SIZE))
        except (AssertionError, RuntimeError) as e:
            raise ValueError(
                f'--models must be networks that take images of {IMG_SIZE} x {IMG_SIZE} pixels, but got'
                f' {model_name!r}: {e}') from e


def evaluate(model: nn.Module, data_dir: Path) -> float:
    """Top-1 accuracy on the held-out digits, in percent."""
    top1 = AverageMeter()
    model.eval()
    with torch.inference_mode():
        for x_NCHW, target_N in _create_loader(data_dir, 'validation'):
            top1.update(accuracy(model(x_NCHW), target_N)[0].item(), len(target_N))
    return top1.avg


def train(
        model_name: str,
        data_dir: Path,
        epochs: int,
        seed: int,
        model_kwargs: Optional[Dict[str, Any]] = None,
        label: Optional[str] = None,
) -> 'tuple[nn.Module, Result]':
    """Train a network from scratch.

    Args:
        model_name: A name of timm's registry.
        data_dir: Image folder as `write_digits` makes it.
        epochs: Number of passes over the training images.
        seed: Seed of initial weights, data order and draws.
        model_kwargs: Arguments of the network.
        label: What to call the run, by default model_name.
    """
    timm.utils.random_seed(seed)
    model = timm.create_model(model_name, num_classes=NUM_CLASSES, **model_kwargs or {})
    loader = _create_loader(data_dir, 'train', is_training=True, scale=(0.8, 1.0), hflip=0., color_jitter=0.)
    task = ClassificationTask(model, criterion_kwargs=dict(smoothing=0.1), verbose=False)
    optimizer = create_optimizer_v2(model, opt='adamw', lr=LR, weight_decay=WEIGHT_DECAY)
    scheduler, _ = create_scheduler_v2(
        optimizer, num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-4, step_on_epochs=False,
        updates_per_epoch=len(loader))
    result = Result(model_name, label or model_name)

    num_updates = 0
    with DropCounter(model) as drops, tqdm(total=epochs * len(loader), desc=result.label, unit='step') as progress:
        for _ in range(epochs):
            losses = AverageMeter()
            started = time.perf_counter()
            task.train()
            for x_NCHW, target_N in loader:
                loss = task(x_NCHW, target_N)['loss']
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                num_updates += 1
                scheduler.step_update(num_updates)
                losses.update(loss.item(), len(target_N))
                progress.set_postfix(loss=f'{losses.avg:.3f}', top1=f'{result.top1s[-1]:.1f}' if result.top1s else '-')
                progress.update()
            result.epoch_seconds.append(time.perf_counter() - started)
            result.losses.append(losses.avg)
            result.top1s.append(evaluate(model, data_dir))
        progress.set_postfix(loss=f'{losses.avg:.3f}', top1=f'{result.top1s[-1]:.1f}')
    result.drop_rates, result.drop_frequencies = drops.rates(), drops.frequencies()
    return model, result


def save(model: nn.Module, path: Path) -> None:
    """Save a network with timm's `save_for_hf`, as a new folder that `timm.create_model('local-dir:...')` takes."""
    model_args = stochastic_depth_args(model) if any(drop_paths(model)) else None
    with write_beside(path) as folder:
        timm.models.save_for_hf(model, str(folder), model_args=model_args, safe_serialization=True)


def reload(path: Path) -> nn.Module:
    return timm.create_model(f'local-dir:{path}', pretrained=True)
