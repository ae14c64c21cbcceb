"""Rates that change while a model trains."""
from torch import nn

from .places import drop_paths
from .rates import check_fraction
from .scales import fold_weights, inference_scales

__all__ = ['set_drop_rate', 'set_training_progress', 'start_warmup']


def set_drop_rate(model: nn.Module, drop_rate: float) -> None:
    """Set the drop rate of a network: spread over the depth, and warmed up, as before.

    It takes effect with the next forward pass. Copies made by deepcopy, an EMA's for instance, follow.

    Args:
        model: Model with stochastic depth; others stay as they are.
        drop_rate: Drop rate of the network, in [0, 1].

    Raises:
        TypeError: model is no module, or drop_rate not a number.
        ValueError: drop_rate is outside [0, 1].
    """
    drop_rate = check_fraction('drop_rate', drop_rate)
    for _, drop_path in drop_paths(model):
        drop_path.progress.tell_rate(drop_path.place_idx, drop_rate)


def set_training_progress(model: nn.Module, fraction: float) -> None:
    """Say how far training is: this drives `drop_warmup` and `drop_schedule`.

    A model that nobody tells stands at 1, where a warm-up is over. Copies made by deepcopy, an EMA's for instance,
    follow. Weights stay as they are: `start_warmup` begins a training run that is given weights.

    Args:
        model: Model with stochastic depth; others stay as they are.
        fraction: Share of training that is done, from 0 at its start to 1 at its end.

    Raises:
        TypeError: model is no module, or fraction not a number.
        ValueError: fraction is outside [0, 1].

    Example:
        >>> import timm
        >>> model = timm.create_model('resnet18')
        >>> apply_stochastic_depth(model, 'block', 'ResNetBasicBlock', drop_rate=0.2, drop_warmup=0.5)
        >>> set_training_progress(model, 0.25)
        >>> drop_rates(model)['layer4.1']
        0.1
    """
    fraction = check_fraction('fraction', fraction)
    for progress in {drop_path.progress for _, drop_path in drop_paths(model)}:
        progress.tell(fraction)


def start_warmup(model: nn.Module) -> None:
    """Set the progress of training to 0, and the weights so that the model computes at inference what it computed.

    To be called once, after weights are loaded and before a training run with `drop_warmup`. Without it, weights that
    were right at the full rate would be scaled by the rate at the start, which is 0. Drop rates without a warm-up and
    their weights stay as they are.

    Args:
        model: Model with stochastic depth; its weights are changed in place.

    Raises:
        TypeError: model is no module.
        ValueError: The rate at the start of the schedule is 1, and that at its end is not: no weights make a branch
            count that is always dropped.

    Example:
        >>> import timm
        >>> model = timm.create_model('resnet50_sd_block', drop_warmup=0.1)
        >>> start_warmup(model)
        >>> max(drop_rates(model).values())
        0.0
    """
    scales = inference_scales(model)
    set_training_progress(model, 0.)
    model.load_state_dict(fold_weights(model.state_dict(), model, scales))
