"""Handle tensors that a module computes from others: pruning, parametrizations, PyTorch's older norms of weights."""
from copy import deepcopy
from typing import Any, Iterator, Tuple

from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.prune import remove as remove_pruning
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from ..layers.sharding import refuse_sharded

__all__ = ['ComputedTensor', 'copy_plain', 'is_reparametrized', 'own_tensor', 'own_tensors']

_REMOVE = {BasePruningMethod: remove_pruning, WeightNorm: remove_weight_norm, SpectralNorm: remove_spectral_norm}
# what layers that were frozen hold as buffers, beside statistics, which no factor goes into
_FROZEN = ('weight', 'bias')


class ComputedTensor(ValueError):
    """A tensor is computed from others in a way that a factor may not pass through."""


def _computed(module: nn.Module) -> Iterator[Tuple[str, type]]:
    """Names of the tensors that a module computes before each forward pass, and what computes them."""
    for hook in list(module._forward_pre_hooks.values()):
        for kind in _REMOVE:
            if isinstance(hook, kind):
                hook_of_tensor: Any = hook
                yield getattr(hook_of_tensor, '_tensor_name', None) or hook_of_tensor.name, kind


def is_reparametrized(model: nn.Module) -> bool:
    """Whether any tensor of a model is computed from others."""
    return any(parametrize.is_parametrized(m) or any(_computed(m)) for m in model.modules())


def copy_plain(model: nn.Module) -> nn.Module:
    """A deepcopy in which each tensor that is computed is a parameter, with the value that it has; never of a shard."""
    refuse_sharded(model)
    # a deepcopy refuses tensors with a history
    values = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf]
    copied = deepcopy(model, {id(v): v.detach().clone() for v in values})
    for module in copied.modules():
        if parametrize.is_parametrized(module):
            _make_parameters(module)
        for name, kind in list(_computed(module)):
            _REMOVE[kind](module, name)
            if kind is SpectralNorm:  # torch leaves its hook behind, which asks a state_dict for more
                for key, hook in list(module._load_state_dict_pre_hooks.items()):
                    if isinstance(getattr(hook, 'hook', hook), SpectralNormLoadStateDictPreHook):
                        del module._load_state_dict_pre_hooks[key]
    return copied


def _make_parameters(module: nn.Module) -> None:
    # torch's remove_parametrizations takes them from the class, which a deepcopy shares with its original
    parametrizations: Any = module.parametrizations
    values = {name: getattr(module, name).detach() for name in parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        setattr(module, name, nn.Parameter(value))


def own_tensor(module: nn.Module, name: str, path: str) -> Tensor:
    """What a factor on the tensor that a module at some path computes with by some name goes into.

    Raises:
        ComputedTensor: A parametrization computes it, or a norm of its own, or no state_dict holds it.
    """
    kind = dict(_computed(module)).get(name)
    tensors = {**module._buffers, **module._parameters}
    if name in module._non_persistent_buffers_set:
        raise ComputedTensor(
            f'{path}.{name} must be in the state_dict to be scaled, but is a buffer that is not persistent.')
    tensor = tensors.get(f'{name}_orig' if kind is BasePruningMethod else name)  # pruned, times a mask
    if tensor is None:
        raise ComputedTensor(
            f'{path}.{name} must be a parameter of its module to be scaled, but is computed by a'
            f' {"parametrization" if kind is None else kind.__name__}: make it one, for instance by'
            f' torch.nn.utils.parametrize.remove_parametrizations, or fold_stochastic_depth(model), which does.')
    return tensor


def own_tensors(module: nn.Module, path: str) -> Iterator[Tensor]:
    """What a factor on the result of a norm, a scale or a linear layer goes into: its parameters, frozen or not."""
    names = {n for n, p in module._parameters.items() if p is not None}
    names |= {n for n in _FROZEN if module._buffers.get(n) is not None}  # refused, where it is not persistent
    for name, _ in _computed(module):
        names = {n for n in names if not n.startswith(f'{name}_')} | {name}
    if parametrize.is_parametrized(module):
        parametrizations: Any = module.parametrizations
        names |= set(parametrizations)
    for name in sorted(names):
        yield own_tensor(module, name, path)
