"""Warm up under a script of timm's: the scheduler that it creates tells the model how far training is."""
import logging
from functools import wraps
from typing import Any, Callable, Optional, Tuple

from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ...checkpoints.drop_options import LauncherError
from ...control import set_training_progress, start_warmup
from ...inspection import drop_paths, drop_rates
from .script_run import ScriptRun, log_line

__all__ = ['create_optimizer', 'create_scheduler', 'follow_scheduler']


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
    current, has_begun = 0, False

    def log_rate() -> None:
        log_line(f'Epoch {current}: drop rate {max(drop_rates(model).values()):.4f} at its start')

    def tell(progress: float) -> None:
        nonlocal current
        set_training_progress(model, min(progress / num_epochs, 1.))
        if current != int(progress) < num_epochs:
            current = int(progress)
            if has_begun:
                log_rate()

    @wraps(train)
    def begin(mode: bool = True) -> nn.Module:
        nonlocal has_begun
        if mode and not has_begun:
            has_begun = True
            log_rate()
            del model.train  # the instance's, that of its class stays
        return train(mode)

    @wraps(step)
    def step_and_tell(epoch: int, *args: Any, **kwargs: Any) -> None:
        step(epoch, *args, **kwargs)
        tell(epoch)

    @wraps(step_update)
    def step_update_and_tell(num_updates: int, *args: Any, **kwargs: Any) -> None:
        step_update(num_updates, *args, **kwargs)
        if updates_per_epoch:
            tell(num_updates / updates_per_epoch)

    model.train = begin  # type: ignore[method-assign]
    scheduler.step, scheduler.step_update = step_and_tell, step_update_and_tell  # type: ignore[method-assign]


def create_optimizer(
        run: ScriptRun,
        original: Callable[..., Optimizer],
        model_or_params: Any,
        *args: Any,
        **kwargs: Any,
) -> Optimizer:
    """timm's `create_optimizer_v2`, which starts the warm-up of the model that it is given.

    The optimizer is made after weights are loaded and before a checkpoint is resumed and an EMA copy is taken: the
    point where a warm-up has to start.
    """
    schedule = _schedule_name(model_or_params)
    if schedule:
        start_warmup(model_or_params)
    optimizer = original(model_or_params, *args, **kwargs)
    if isinstance(model_or_params, nn.Module):
        run.trains(model_or_params)
    if schedule:
        run.warming_up[optimizer] = model_or_params, _tell_at_first_step(optimizer, schedule)
    return optimizer


def create_scheduler(
        run: ScriptRun,
        original: Callable[..., Tuple[Any, int]],
        optimizer: Optimizer,
        *args: Any,
        **kwargs: Any,
) -> Tuple[Any, int]:
    """timm's `create_scheduler_v2`, connected with the model that the optimizer was made for."""
    scheduler, num_epochs = original(optimizer, *args, **kwargs)
    if optimizer in run.warming_up:
        model, handle = run.warming_up[optimizer]
        if scheduler is None:
            raise LauncherError(
                f"--sched must not be 'none' with {_schedule_name(model)}, which follows the scheduler.")
        handle.remove()
        follow_scheduler(model, scheduler, num_epochs, kwargs.get('updates_per_epoch', 0))
    return scheduler, num_epochs


def _schedule_name(model: Any) -> Optional[str]:
    """The setting by which the rates of a model change, if they do."""
    for _, drop_path in drop_paths(model) if isinstance(model, nn.Module) else ():
        if drop_path.settings.schedule:
            return 'drop_warmup' if drop_path.settings.drop_schedule is None else 'drop_schedule'
    return None


def _tell_at_first_step(optimizer: Optimizer, schedule: str) -> RemovableHandle:
    def tell(*args: Any) -> None:
        handle.remove()
        log_line(
            f'{schedule} follows a scheduler of timm.scheduler.create_scheduler_v2, and the script steps without one:'
            ' drop rates stay those of the start, unless it calls set_training_progress.', logging.WARNING)

    handle = optimizer.register_step_pre_hook(tell)
    return handle
