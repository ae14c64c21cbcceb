"""What does not change between two forward passes of a block: looked at once, for as long as its modules are the same.

Whether they are is asked in each pass, and costs no Python call: builtins compare the modules' dictionaries.
"""
from itertools import chain
from operator import itemgetter, methodcaller
from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..cut.branch import Branch
from ..cut.cut import Cut
from .guards import (
    gives_features,
    has_partitioned_parameters,
    has_strangers,
    looks_at_batch,
    splits_batch,
    what_waits,
)

__all__ = ['Plan', 'branch_parameters', 'is_partitioned', 'may_add_inplace', 'plan_of']

_children = itemgetter('_modules')
_values = methodcaller('values')
# of who looks at what a module returns, or at its gradient
_hooks = itemgetter('_forward_hooks', '_backward_hooks', '_backward_pre_hooks')
# torch's own function is newer than 2.7
_GLOBAL_HOOKS = [
    getattr(torch_module, f'_global_{kind}_hooks') for kind in ('forward', 'forward_pre', 'backward', 'backward_pre')]


class Plan:
    """What a block's forward does as long as its modules are the same.

    Args:
        block: A block.
        cut: Its cut forward, None if there is none.

    Attributes:
        looks_at_batch: Whether a norm takes the statistics of the batch.
        splits_batch: Whether a norm splits it into parts.
        what_waits: What in it waits for all ranks.
        gives_features: Whether features are taken from within a branch, which then always runs.
        has_sample_gradients: Whether its parameters are to have a gradient for each sample (opacus).
        is_partitioned: Whether its parameters are there only while their module runs (DeepSpeed's ZeRO-3).
        has_strangers: Whether it holds modules that may mix samples.
        paths_compared: The paths on which its branches were compared with those of some samples.
        parameter_dicts: Those of the modules of each branch.
    """

    def __init__(self, block: nn.Module, cut: Optional[Cut]) -> None:
        self.cut = cut
        branches = () if cut is None else cut.branches
        self._modules = list(block.modules())
        self._types = list(map(type, self._modules))
        self._states = list(map(vars, self._modules))
        self._found = list(map(tuple, map(_values, map(_children, self._states))))
        self.looks_at_batch = looks_at_batch(block)
        self.splits_batch = splits_batch(block)
        self.what_waits = what_waits(block, branches)
        self.gives_features = gives_features(block, branches)
        self.has_strangers = has_strangers(block)
        self.paths_compared: List[Tuple[bool, ...]] = []
        self.has_sample_gradients = any(hasattr(p, 'grad_sample') for p in block.parameters())
        self.is_partitioned = has_partitioned_parameters(block)
        self.parameter_dicts = {branch: [m._parameters for m in branch.modules(block)] for _, branch in branches}

    def is_current(self) -> bool:
        """Whether the modules are the same, at all depths."""
        found = list(map(tuple, map(_values, map(_children, self._states))))
        return found == self._found and list(map(type, self._modules)) == self._types

    def has_hook(self) -> bool:
        """Whether a module within the block has a hook that sees what it returns, or its gradient."""
        return any(chain.from_iterable(map(_hooks, self._states[1:]))) or any(_GLOBAL_HOOKS)

    def __reduce__(self) -> Tuple[Any, ...]:
        return _no_plan, ()  # a copy of the block has modules of its own


def _no_plan() -> None:
    return None


def plan_of(block: nn.Module, cut: Optional[Cut]) -> Plan:
    """The plan of a block, made anew where it does not hold any more."""
    state = vars(block)
    plan: Optional[Plan] = state.get('_plan')
    if plan is None or plan.cut is not cut or not plan.is_current():
        former, plan = plan, Plan(block, cut)
        if former is not None and former.is_current():  # but on another path
            plan.paths_compared = former.paths_compared
        state['_plan'] = plan
    return plan


def is_partitioned(block: nn.Module) -> bool:
    """Whether the parameters of a block are there only while their module runs."""
    plan: Optional[Plan] = vars(block).get('_plan')
    return plan is not None and plan.is_partitioned


def may_add_inplace(block: nn.Module) -> bool:
    """Whether a sum may be written into a branch's result, as the block does it.

    It may not where a hook has it: autograd refuses that for a backward hook, and a forward hook may keep it.
    """
    if torch.compiler.is_compiling():
        return False
    plan: Optional[Plan] = vars(block).get('_plan')  # none in the parts of a compiled forward that run eagerly
    return not (plan or plan_of(block, None)).has_hook()


def branch_parameters(branch: Branch, block: nn.Module) -> Sequence[Tensor]:
    """The parameters of a branch, see `Branch.names`."""
    state = vars(block)
    plan: Optional[Plan] = state.get('_plan')
    # plain attributes in replicas of nn.DataParallel, and while FSDP1 has them gathered
    is_gathered = state.get('_is_replica') or state.get('_is_fsdp_managed_module')
    dicts = None if is_gathered or plan is None else plan.parameter_dicts.get(branch)
    if dicts is None:  # or the plan is that of another call, of another thread
        return branch.parameters(block)
    return [p for p in chain.from_iterable(map(_values, dicts)) if p is not None] + branch.own_tensors(block)
