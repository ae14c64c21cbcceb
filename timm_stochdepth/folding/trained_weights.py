"""Warn where what a trained network computes changes, and note what factors its weights were trained for."""
from typing import Any, Dict, Iterator, List, Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..inspection import drop_paths, inference_factors
from ..messages import warn_user

__all__ = ['former_factors', 'note_change', 'shows_training']

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
    tensors: List[Any] = [getattr(module, 'running_mean', None)]
    if not isinstance(tensors[0], Tensor):
        own: Dict[str, Any] = dict(module.named_parameters(recurse=False))
        if getattr(module, '_is_fsdp_managed_module', False):  # FSDP1 has parts of them, without their shape
            own = {name: p for name, p in own.items() if hasattr(p, 'to_local')}
        has_matrix = any(not is_lazy(p) and p.ndim > 1 for p in own.values())
        tensors = [
            p for name, p in own.items()
            if any(n in name for n in _SCALES) or (name in ('weight', 'bias') and not has_matrix)]
    for tensor in tensors:
        if is_lazy(tensor):
            continue
        local: Tensor = tensor.to_local() if hasattr(tensor, 'to_local') else tensor  # FSDP2's, of this rank
        has_values = not local.is_meta and not hasattr(local, 'fake_mode')
        if has_values and local.ndim and local.numel() == max(local.shape) > 0:
            yield local.detach()


def former_factors(model: nn.Module) -> Dict[str, float]:
    """What branches were multiplied with at inference when the weights were trained, where that is not so any more."""
    return {
        name: drop_path.former_scale for name, drop_path in drop_paths(model)
        if drop_path.former_scale not in (None, drop_path.inference_scale()) and not drop_path.progress.has_stepped}


def note_change(
        model: nn.Module,
        before: Mapping[str, float],
        former: Mapping[str, float],
        keep_function: bool,
        advice: str = '',
        undo: str = '',
) -> None:
    """Warn if a network that was trained computes something else at inference than its weights are for, and note it.

    Args:
        model: A network whose drop rates have changed, its weights with them if keep_function.
        before: What each branch was multiplied with before, by the name of its drop path; 1 where it is not in it.
        former: The same when the weights were trained, as of `former_factors` before the change.
        keep_function: Whether the weights were scaled to keep what the network computed before the change.
        advice: What else to do than to keep the function.
        undo: The call that undoes the change; None for that of a plain network, or of the rates of before.
    """
    after = inference_factors(model)
    has_changed = any(factor != before.get(name, 1.) for name, factor in after.items())
    trained = after if keep_function and has_changed else {**before, **former}
    differing = {name for name, factor in after.items() if factor != trained.get(name, 1.)}
    is_trained = bool(differing) and shows_training(model)
    for name, drop_path in drop_paths(model):
        drop_path.former_scale = trained.get(name, 1.) if is_trained and name in differing else None
    trained_at = former if keep_function else trained
    undo = undo or (
        'set_drop_rate(model, 0.)' if set(trained_at.values()) <= {1.} else
        'a call with the rates and scale_by_keep of before')
    if keep_function and former:
        remedy = (
            f'Before this one, {undo} would have undone that; now the weights have to be loaded again.'
            if has_changed else f'Call again with it after {undo} has undone that.')
        warn_user(
            'What is kept is what the network computes now, and not what it computed when it was trained, as a call'
            f' without keep_function=True has changed that. {remedy}')
    elif is_trained and has_changed and not keep_function:
        warn_user(
            'The network has been trained, and computes something else at inference from now on, as its branches are'
            f' scaled there. keep_function=True scales the weights with it{advice}: call again with that, after {undo}'
            ' has undone this.')
