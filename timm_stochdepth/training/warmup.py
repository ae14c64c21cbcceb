"""Warm-up under a script of timm's: the scheduler that the script creates tells the model how far training is."""
import logging
from contextlib import contextmanager
from functools import wraps
from typing import Any, Dict, Generator, Optional, Tuple

import timm.optim
import timm.scheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from ..places import drop_paths, drop_rates
from ..rate_changes import set_training_progress, start_warmup

__all__ = ['follow_scheduler', 'warmup_from_scheduler']

_logger = logging.getLogger(__name__)


def follow_scheduler(model: nn.Module, scheduler: Scheduler, num_epochs: int, updates_per_epoch: int) -> None:
    """Let the epochs and updates that a scheduler is told set the progress of a model, and log each epoch's rate.

    A resumed run tells its scheduler where it goes on, and so the rate goes on there too. Epochs are counted from 0, as
    timm counts them.

    Args:
        model: Model with stochastic blocks; its `train` is wrapped until the first epoch begins.
        scheduler: timm's scheduler; its `step` and `step_update` are wrapped.
        num_epochs: Length of the training run.
        updates_per_epoch: Optimizer updates in an epoch, 0 if they are not known.
    """
    train, step, step_update = model.train, scheduler.step, scheduler.step_update
    first_epoch: Optional[int] = 0  # None once it has begun

    def log_rate(epoch: int) -> None:
        _logger.info(f'Epoch {epoch}: drop rate {max(drop_rates(model).values()):.4f} at its start')

    @wraps(train)
    def begin_first_epoch(mode: bool = True) -> nn.Module:
        nonlocal first_epoch
        if mode and first_epoch is not None:
            log_rate(first_epoch)
            first_epoch = None
            del model.train  # the instance's, that of its class stays
        return train(mode)

    @wraps(step)
    def step_and_tell(epoch: int, *args: Any, **kwargs: Any) -> None:
        nonlocal first_epoch
        step(epoch, *args, **kwargs)
        set_training_progress(model, min(epoch / num_epochs, 1.))
        if first_epoch is not None:  # of a resumed run
            first_epoch = epoch
        elif epoch < num_epochs:
            log_rate(epoch)

    @wraps(step_update)
    def step_update_and_tell(num_updates: int, *args: Any, **kwargs: Any) -> None:
        nonlocal first_epoch
        step_update(num_updates, *args, **kwargs)
        if updates_per_epoch:
            set_training_progress(model, min(num_updates / (num_epochs * updates_per_epoch), 1.))
            if first_epoch is not None:
                first_epoch = num_updates // updates_per_epoch

    model.train = begin_first_epoch  # type: ignore[method-assign]
    scheduler.step, scheduler.step_update = step_and_tell, step_update_and_tell  # type: ignore[method-assign]


def _has_warmup(model: Any) -> bool:
    return isinstance(model, nn.Module) and any(
        drop_path.settings.schedule for _, drop_path in drop_paths(model))


@contextmanager
def warmup_from_scheduler() -> Generator[None, None, None]:
    """Context in which timm's factories connect the model that an optimizer is made for with its scheduler.

    The optimizer is made after weights are loaded and before a checkpoint is resumed and an EMA copy is taken: the
    point where the warm-up has to start.
    """
    create_optimizer, create_scheduler = timm.optim.create_optimizer_v2, timm.scheduler.create_scheduler_v2
    models: Dict[Optimizer, nn.Module] = {}

    @wraps(create_optimizer)
    def create_optimizer_and_start(model_or_params: Any, *args: Any, **kwargs: Any) -> Optimizer:
        if _has_warmup(model_or_params):
            start_warmup(model_or_params)
        optimizer = create_optimizer(model_or_params, *args, **kwargs)
        if _has_warmup(model_or_params):
            models[optimizer] = model_or_params
        return optimizer

    @wraps(create_scheduler)
    def create_scheduler_and_follow(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Tuple[Any, int]:
        scheduler, num_epochs = create_scheduler(optimizer, *args, **kwargs)
        if optimizer in models:
            if scheduler is None:
                raise ValueError("sched must not be 'none' with drop_warmup: the warm-up follows the scheduler.")
            follow_scheduler(models[optimizer], scheduler, num_epochs, kwargs.get('updates_per_epoch', 0))
        return scheduler, num_epochs

    timm.optim.create_optimizer_v2 = create_optimizer_and_start
    timm.scheduler.create_scheduler_v2 = create_scheduler_and_follow
    try:
        yield
    finally:
        timm.optim.create_optimizer_v2 = create_optimizer
        timm.scheduler.create_scheduler_v2 = create_scheduler
