"""Control how a model drops while it trains: rates, progress, warm-up, and no drops at all."""
from contextlib import contextmanager
from typing import Dict, Generator

from torch import nn

from .folding.rescale import multiply, own_rescaling
from .folding.trained_weights import former_factors, note_change
from .inspection import drop_paths, inference_factors
from .layers.drop_path import StochasticDropPath
from .messages import warn_user
from .settings import check_flag, check_fraction

__all__ = ['no_drop', 'set_drop_rate', 'set_training_progress', 'start_warmup']

DropPaths = Dict[str, StochasticDropPath]


def _drop_paths(model: nn.Module, caller: str, needs_schedule: bool = False) -> DropPaths:
    """The drop paths of a model, with a warning if there are none that the caller can change."""
    found = dict(drop_paths(model))
    if not found:
        warn_user(
            f'{caller} has no effect: {type(model).__name__} has no stochastic depth, which'
            ' apply_stochastic_depth gives it.')
    elif needs_schedule and not any(d.settings.schedule or d.progress.is_told for d in found.values()):
        # once a network, whose progress is told from then on: loops call it for each step
        warn_user(
            f'{caller} has no effect: the drop rates of {type(model).__name__} do not move, as it was given neither'
            ' drop_warmup nor drop_schedule.')
    return found


def set_drop_rate(model: nn.Module, drop_rate: float, keep_function: bool = False) -> None:
    """Set the drop rate of a network: spread over the depth, and warmed up, as before.

    It takes effect with the next forward pass. Copies made by deepcopy, an EMA's for instance, follow. So does what the
    network computes at inference, unless it was made with `scale_by_keep=True`: branches are scaled by the new rate
    there, for which the weights were not trained. That is right for a rate that changes in the course of training. To
    train on from finished weights at another rate, `keep_function=True` scales the weights with it. To evaluate, no
    rate has to be changed: `model.eval()` drops nothing.

    Args:
        model: Model with stochastic depth; others stay as they are, with a warning. Or a part of one: its blocks keep
            their shares of the rate, and a single block gets the rate itself, until a rate is set for the whole again.
        drop_rate: Drop rate of the network, in [0, 1].
        keep_function: Scale the weights that the model has, at the end of each branch, so that it computes at inference
            what it computed before. Those of copies are not scaled: make copies afterwards.

    Raises:
        TypeError: model is no module, drop_rate not a number, or keep_function not a bool.
        ValueError: drop_rate is outside [0, 1]. Or no weights keep the function, as a block is always dropped (rate 1);
            the rate is then the old one.

    Example:
        >>> import timm
        >>> model = timm.create_model('resnet50_sd_block', num_classes=10, drop_path_rate=0.2)
        >>> set_drop_rate(model, 0.1, keep_function=True)
        >>> set_drop_rate(model.layer1[0], 0.3)
    """
    drop_rate = check_fraction('drop_rate', drop_rate)
    check_flag('keep_function', keep_function)
    found = _drop_paths(model, 'set_drop_rate')
    before, former = inference_factors(model), former_factors(model)
    rates_before = {d.own_rate if d.own_rate is not None else d.settings.drop_rate or 0. for d in found.values()}
    is_single_block = len({name.rpartition('.')[0] for name in found}) == 1
    has_own_rate = {
        name: is_single_block and (d.depth_scale < 1. or d.progress.num_drop_paths() > len(found))
        for name, d in found.items()}
    rates = {name: drop_rate if has_own_rate[name] else drop_rate * d.depth_scale for name, d in found.items()}
    after = {name: d.settings.inference_factor(rates[name], d.progress.fraction) for name, d in found.items()}
    scaling = own_rescaling(model, before, after) if keep_function else []

    for name, d in found.items():
        if has_own_rate[name]:
            d.progress.tell_rate(d.drop_path_idx, d.settings.drop_rate or 0., own_rate=drop_rate)
        else:
            d.progress.tell_rate(d.drop_path_idx, drop_rate)
    multiply(scaling)
    if found and drop_rate > 0. and not any(rates.values()):
        warn_user(
            f'drop_rate={drop_rate} has no effect: the share of the rate that each of these blocks has is 0, as'
            ' apply_stochastic_depth gave it. Set the rate of a single block, or apply stochastic depth anew.')
    # in the course of training the rate may move
    if keep_function or not any(d.progress.has_stepped or d.progress.is_told for d in found.values()):
        undo = f'set_drop_rate(model, {min(rates_before)})' if len(rates_before) == 1 and not former else ''
        note_change(model, before, former, keep_function, undo=undo)


def set_training_progress(model: nn.Module, fraction: float) -> None:
    """Say how far training is: this drives `drop_warmup` and `drop_schedule`.

    A model that nobody tells stands at 1, where a warm-up is over. Copies made by deepcopy, an EMA's for instance,
    follow. Weights stay as they are: `start_warmup` begins a training run that is given weights.

    Args:
        model: Model with stochastic depth and a warm-up or schedule; others stay as they are, with a warning.
        fraction: Share of training that is done, from 0 at its start to 1 at its end.

    Raises:
        TypeError: model is no module, or fraction not a number.
        ValueError: fraction is outside [0, 1].

    Example:
        >>> import timm
        >>> from timm_stochdepth import apply_stochastic_depth, drop_rates
        >>> model = timm.create_model('resnet18')
        >>> apply_stochastic_depth(model, 'block', 'ResNetBasicBlock', drop_rate=0.2, drop_warmup=0.5)
        >>> set_training_progress(model, 0.25)
        >>> drop_rates(model)['layer4.1']
        0.1
    """
    fraction = check_fraction('fraction', fraction)
    for progress in {d.progress for d in _drop_paths(model, 'set_training_progress', needs_schedule=True).values()}:
        progress.tell(fraction)


def start_warmup(model: nn.Module) -> None:
    """Set the progress of training to 0, and the weights so that the model computes at inference what it computed.

    To be called once, after weights are loaded and before a training run with `drop_warmup`. Without it, weights that
    were right at the full rate would be scaled by the rate at the start, which is 0. Drop rates without a warm-up and
    their weights stay as they are. Weights that were there before `apply_stochastic_depth` are right at the full rate
    if that was called with `keep_function=True`.

    Args:
        model: Model with stochastic depth and a warm-up or schedule; its weights are changed in place. Others stay as
            they are, with a warning.

    Raises:
        TypeError: model is no module.
        ValueError: The rate at the start of the schedule is 1, and that at its end is not: no weights make a branch
            count that is always dropped. The progress is then what it was.

    Example:
        >>> import timm
        >>> model = timm.create_model('resnet50_sd_block', drop_warmup=0.1)
        >>> from timm_stochdepth import drop_rates
        >>> start_warmup(model)
        >>> max(drop_rates(model).values())
        0.0
    """
    found = _drop_paths(model, 'start_warmup', needs_schedule=True)
    before, former = inference_factors(model), former_factors(model)
    after = {name: d.settings.inference_factor(d.unscheduled_rate(), 0.) for name, d in found.items()}
    scaling = own_rescaling(model, before, after)

    for progress in {d.progress for d in found.values()}:
        progress.tell(0.)
    multiply(scaling)
    note_change(model, before, former, keep_function=True)


@contextmanager
def no_drop(model: nn.Module) -> Generator[None, None, None]:
    """Context in which a model drops nothing, and scales its branches as at inference, whatever mode it is in.

    In training mode its norms learn their statistics of each batch, those of blocks that would be dropped, too: to
    re-estimate them (`torch.optim.swa_utils.update_bn`), to calibrate, or to debug.

    Args:
        model: Model with stochastic depth, which may be wrapped (DistributedDataParallel, torch.compile, an
            `AveragedModel`). Copies of it are not meant.

    Raises:
        TypeError: model is no module.

    Example:
        >>> import timm
        >>> import timm_stochdepth
        >>> import torch
        >>> model = timm.create_model('resnet50_sd_block', num_classes=10)
        >>> averaged = torch.optim.swa_utils.AveragedModel(model)
        >>> with timm_stochdepth.no_drop(averaged):
        ...     torch.optim.swa_utils.update_bn([torch.randn(8, 3, 64, 64)], averaged)
    """
    before = [(drop_path, drop_path.is_paused) for _, drop_path in drop_paths(model)]
    for drop_path, _ in before:
        drop_path.is_paused = True
    try:
        yield
    finally:
        for drop_path, was_paused in before:
            drop_path.is_paused = was_paused
