"""What is told of weights that were trained, where what they compute changes."""
import warnings
from typing import Any, Dict, Iterator, List, Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..inspection import drop_paths, inference_scales

__all__ = ['former_scales', 'shows_training', 'tell_of_kept_function', 'tell_of_other_function']

# what the names of parameters hold that scale or shift each channel, whatever shape they have
_SCALES = ('alpha', 'beta', 'gain', 'gamma', 'scale')


def shows_training(model: nn.Module) -> bool:
    """Whether a network's parameters are not what they were initialised to.

    Matrices are random from the start, and so are the biases beside them. What scales or shifts each channel, in norms,
    LayerScale and gains, starts with one value for all, which the first step of an optimizer ends. A norm of the batch,
    which may start at random, has statistics that start with one value. What is on the meta device, or a fake, shows
    nothing.
    """
    return any(bool((x != x.flatten()[0]).any()) for module in model.modules() for x in _values_of_channels(module))


def _values_of_channels(module: nn.Module) -> Iterator[Tensor]:
    """The tensors of a module with a value for each channel that are all alike when it is made."""
    running_mean: Any = getattr(module, 'running_mean', None)
    if isinstance(running_mean, Tensor):
        tensors: List[Any] = [] if is_lazy(running_mean) else [running_mean]
    else:
        own = module.named_parameters(recurse=False)
        parameters: Dict[str, Any] = {name: p for name, p in own if not is_lazy(p)}
        if getattr(module, '_is_fsdp_managed_module', False):  # FSDP1 has parts of them, without their shape
            parameters = {name: p for name, p in parameters.items() if hasattr(p, 'to_local')}
        has_matrix = any(p.ndim > 1 for p in parameters.values())
        tensors = [
            p for name, p in parameters.items()
            if any(n in name for n in _SCALES) or (name in ('weight', 'bias') and not has_matrix)]
    for tensor in tensors:
        to_local: Any = getattr(tensor, 'to_local', None)  # FSDP2 has a part of it on each rank
        local: Tensor = to_local() if to_local else tensor
        has_values = not local.is_meta and not hasattr(local, 'fake_mode')
        if has_values and local.ndim and local.numel() == max(local.shape) > 0:
            yield local.detach()


def former_scales(model: nn.Module) -> Dict[str, float]:
    """What branches were multiplied with at inference when the weights were trained, where that is not so any more."""
    return {
        name: place.former_scale for name, place in drop_paths(model)
        if place.former_scale not in (None, place.inference_scale()) and not place.progress.has_stepped}


def tell_of_other_function(
        model: nn.Module,
        scales: Mapping[str, float],
        trained_scales: Mapping[str, float],
        stacklevel: int,
        advice: str = '',
        undo: str = '',
) -> None:
    """Warn if a network that was trained computes something else at inference than before, and note it at its places.

    Args:
        model: A network whose drop rates have changed, and not its weights.
        scales: What each branch was multiplied with before, by the name of its drop path; 1 where it is not in it.
        trained_scales: The same when the weights were trained, as of `former_scales`.
        stacklevel: As of `warnings.warn`, seen from the caller.
        advice: What else to do than to keep the function.
        undo: The call that undoes the change, where it is another one than that of a plain network.
    """
    trained_scales = {**scales, **trained_scales}
    places = dict(drop_paths(model))
    differing = {name for name, place in places.items() if place.inference_scale() != trained_scales.get(name, 1.)}
    is_trained = bool(differing) and shows_training(model)
    for name, place in places.items():
        place.former_scale = trained_scales.get(name, 1.) if is_trained and name in differing else None
    if is_trained and any(scale != scales.get(name, 1.) for name, scale in inference_scales(model).items()):
        warnings.warn(
            'The network has been trained, and computes something else at inference from now on, as its branches are'
            f' scaled there. keep_function=True scales the weights with it{advice}: call again with that, after'
            f' {undo or _undo(trained_scales)} has undone this.', stacklevel=stacklevel + 1)


def tell_of_kept_function(trained_scales: Mapping[str, float], has_scaled: bool, stacklevel: int) -> None:
    """Warn if the function that is kept is not that of the weights.

    Args:
        trained_scales: As of `former_scales`, before the call.
        has_scaled: Whether weights were scaled to keep it, and not only settings changed.
        stacklevel: As of `warnings.warn`, seen from the caller.
    """
    if not trained_scales:
        return
    undo = _undo(trained_scales)
    remedy = (
        f'Before this one, {undo} would have undone that; now the weights have to be loaded again.' if has_scaled else
        f'Call again with it after {undo} has undone that.')
    warnings.warn(
        'What is kept is what the network computes now, and not what it computed when it was trained, as a call'
        f' without keep_function=True has changed that. {remedy}', stacklevel=stacklevel + 1)


def _undo(trained_scales: Mapping[str, float]) -> str:
    is_of_plain_network = set(trained_scales.values()) <= {1.}
    return 'set_drop_rate(model, 0.)' if is_of_plain_network else 'a call with the rates and scale_by_keep of before'
