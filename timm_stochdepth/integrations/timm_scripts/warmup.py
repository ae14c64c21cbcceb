"""Warm-up under a script of timm's: the scheduler that the script creates tells the model how far training is."""
import logging
from contextlib import contextmanager
from functools import wraps
from typing import Any, Callable, Dict, Generator, Optional, Tuple

import timm.optim
import timm.scheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ...checkpoints.drop_options import LauncherError
from ...control import set_training_progress, start_warmup
from ...inspection import drop_paths, drop_rates
from .replaced import replaced
from .script_run import ScriptRun, log_line

__all__ = ['follow_scheduler', 'warmup_from_scheduler']


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
        log_line(f'Epoch {epoch}: drop rate {max(drop_rates(model).values()):.4f} at its start')

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


@contextmanager
def warmup_from_scheduler(run: ScriptRun) -> Generator[None, None, None]:
    """Context in which timm's factories connect the model that an optimizer is made for with its scheduler.

    The optimizer is made after weights are loaded and before a checkpoint is resumed and an EMA copy is taken: the
    point where the warm-up has to start.
    """
    followers: Dict[Optimizer, Tuple[nn.Module, RemovableHandle]] = {}

    def wrap_optimizer(create_optimizer: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
        def create_and_start(model_or_params: Any, *args: Any, **kwargs: Any) -> Optimizer:
            schedule = _schedule_name(model_or_params)
            if schedule:
                start_warmup(model_or_params)
            optimizer = create_optimizer(model_or_params, *args, **kwargs)
            if isinstance(model_or_params, nn.Module):
                run.trains(model_or_params)
            if schedule:
                followers[optimizer] = model_or_params, _tell_at_first_step(optimizer, schedule)
            return optimizer

        return create_and_start

    def wrap_scheduler(create_scheduler: Callable[..., Tuple[Any, int]]) -> Callable[..., Tuple[Any, int]]:
        def create_and_follow(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Tuple[Any, int]:
            scheduler, num_epochs = create_scheduler(optimizer, *args, **kwargs)
            if optimizer in followers:
                model, handle = followers[optimizer]
                if scheduler is None:
                    raise LauncherError(
                        f"--sched must not be 'none' with {_schedule_name(model)}, which follows the scheduler.")
                handle.remove()
                follow_scheduler(model, scheduler, num_epochs, kwargs.get('updates_per_epoch', 0))
            return scheduler, num_epochs

        return create_and_follow

    with replaced('create_optimizer_v2', wrap_optimizer, timm.optim), \
            replaced('create_scheduler_v2', wrap_scheduler, timm.scheduler):
        yield


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
