"""Sharded modules: by FSDP2, whose `fully_shard` changes their class, or by FSDP1's wrapper."""
import sys
from typing import Any, Tuple
from weakref import WeakValueDictionary

from torch import nn

__all__ = ['refuse_sharded', 'sharded_like', 'units', 'unsharded_class']

_CLASSES: 'WeakValueDictionary[Tuple[type, type], type]' = WeakValueDictionary()


def units() -> Tuple[type, ...]:
    """Classes of the modules that gather their parameters in their own forward pass: FSDP2's, and FSDP1's."""
    fsdp: Any = sys.modules.get('torch.distributed.fsdp')  # who has not imported it has no such module
    return (fsdp.FSDPModule, fsdp.FullyShardedDataParallel) if fsdp else ()


def unsharded_class(cls: type) -> type:
    """The class that a module had before `fully_shard`."""
    return cls.__bases__[-1] if issubclass(cls, units()[:1]) else cls


def sharded_like(module: nn.Module, cls: type) -> Any:
    """A class for a module, made what `fully_shard` makes of it if the module is sharded."""
    sharded = type(module)
    if unsharded_class(sharded) is sharded:
        return cls
    if unsharded_class(sharded) is cls:
        return sharded
    key = sharded.__bases__[0], cls
    made = _CLASSES.get(key)
    if made is None:
        made = _CLASSES[key] = type(f'FSDP{cls.__name__}', key, {'__deepcopy__': vars(sharded)['__deepcopy__']})
    return made


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model of whose weights each rank has but a part.

    Raises:
        ValueError: FSDP1 or FSDP2 has sharded some of it.
    """
    if any(getattr(m, '_is_fsdp_managed_module', False) for m in model.modules()):  # told by torch for its compiler
        raise ValueError(
            'model must not be sharded to be folded or pushed: gather its weights, on all ranks, by'
            ' torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions('
            'full_state_dict=True, cpu_offload=True)), on rank 0 load them into an unsharded network with the same'
            ' stochastic depth, and take that.')
