"""Normalization layers and collectives that are incompatible with leaving out branches."""
from typing import Sequence, Tuple

import torch
from timm.layers import EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2, SplitBatchNorm2d
from timm.models import FeatureHooks
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..cut.branch import Branch
from ..draws.process_group import has_ranks
from .sharding import units

__all__ = [
    'gives_features',
    'has_partitioned_parameters',
    'has_strangers',
    'looks_at_batch',
    'refuse_distributed_activations',
    'refuse_rounding',
    'refuse_sample_gradients',
    'refuse_split_norms',
    'refuse_waiting',
    'splits_batch',
    'what_waits',
]

_NORMS_OF_BATCH = (_BatchNorm, EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2)


# of whose modules the norms alone look at other samples than their own
_PACKAGES = ('torch.', 'timm.', 'torchvision.', 'peft.', 'timm_stochdepth.')


def looks_at_batch(module: nn.Module) -> bool:
    """Whether a norm takes the statistics of the batch: skipping samples is then not masking them."""
    return any(isinstance(m, _NORMS_OF_BATCH) for m in module.modules())


def splits_batch(module: nn.Module) -> bool:
    """Whether a norm splits the batch into parts."""
    return any(isinstance(m, SplitBatchNorm2d) for m in module.modules())


def has_strangers(block: nn.Module) -> bool:
    """Whether a block holds modules that may mix samples: neither torch's nor timm's, or with other forwards."""
    # vars() is no part of a graph of torch 2.7
    return any(
        not type(m).__module__.startswith(_PACKAGES) or 'forward' in m.__dict__
        for m in block.modules() if m is not block)


def refuse_split_norms(block: nn.Module) -> None:
    """Reject norms that split a batch where samples are left out of it.

    Raises:
        ValueError: The block holds a SplitBatchNorm2d.
    """
    if splits_batch(block):
        raise ValueError(
            'skip_dropped must be False with SplitBatchNorm2d, but got True: it splits a batch into equal parts, of'
            ' which nothing is left where samples are left out.')


def refuse_rounding(block: nn.Module) -> None:
    """Reject norms that would see samples that run for nothing.

    Raises:
        ValueError: A norm of the block looks at the batch.
    """
    if looks_at_batch(block):
        raise ValueError(
            'round_up must be False where a norm looks at the batch (BatchNorm), but got True: its statistics would be'
            " those of samples, too, that are dropped. draw='fixed' has few sizes there.")


def refuse_sample_gradients(name: str, value: object, allowed: object) -> None:
    """Reject branches that run for a part of the samples where each sample is to have its own gradient.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f'{name} must be {allowed!r} where parameters have a gradient for each sample (opacus), but got {value!r}:'
        ' samples that a branch leaves out would have none.')


def refuse_distributed_activations() -> None:
    """Reject samples that are spread over ranks.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        'skip_dropped must be False with activations that are DTensors, as sequence parallelism makes them, but got'
        ' True: no rank has all of a sample.')


def has_partitioned_parameters(module: nn.Module) -> bool:
    """Whether parameters are there only while their module runs, as DeepSpeed's ZeRO-3 has them."""
    return any(hasattr(p, 'ds_id') for p in module.parameters())


def gives_features(block: nn.Module, branches: Sequence[Tuple[str, Branch]]) -> bool:
    """Whether timm takes features from within a branch (`features_only=True`): they are to be there for all samples."""
    modules = [m for _, branch in branches for m in branch.modules(block)]
    hooks = [hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return any(isinstance(getattr(getattr(hook, 'func', None), '__self__', None), FeatureHooks) for hook in hooks)


def what_waits(block: nn.Module, branches: Sequence[Tuple[str, Branch]]) -> str:
    """What in a block waits for all ranks, norms that are collective operations or units of FSDP; empty if nothing.

    Args:
        block: A block.
        branches: Its branches, by their drop paths.
    """
    if any(isinstance(m, nn.SyncBatchNorm) for m in block.modules()):
        return 'SyncBatchNorm'
    if has_partitioned_parameters(block):
        return 'ZeRO-3'
    of_fsdp = units()
    found = [m for _, branch in branches for m in branch.modules(block) if isinstance(m, of_fsdp)] if of_fsdp else []
    return type(found[0]).__name__ if found else ''


def refuse_waiting(what: str, name: str, value: bool) -> None:
    """Reject collectives in branches that ranks may skip independently.

    Args:
        what: What waits, see `what_waits`.
        name: The argument that has the ranks decide each for itself.
        value: Its value.

    Raises:
        ValueError: Something waits, and there are several ranks.
    """
    if not what or torch.compiler.is_compiling() or not has_ranks():  # a compiled branch always runs, for a few samples
        return
    if what == 'SyncBatchNorm':
        raise ValueError(
            f'{name} must be {not value} with SyncBatchNorm, but got {value}: a rank that keeps a block would wait for'
            ' ever for the statistics of one that skips it.')
    if what == 'ZeRO-3':
        raise ValueError(
            f'{name} must be {not value} with ZeRO-3, but got {value}: a rank that keeps a branch would wait for ever'
            ' for the parameters of one that skips it.')
    raise ValueError(
        f'{name} must be {not value} where a part of a block is sharded by itself ({what}), but got {value}: a rank'
        ' that keeps a branch would wait for ever for the parameters of one that skips it. Shard whole blocks:'
        ' fully_shard(block).')
