"""Forward passes of residual blocks with stochastic depth.

The mode of a pass is each drop path's (`StochasticDropPath.mode`); here the pass is handed to the plain forward, to the
cut one, or to the one that leaves out what the batch drops.
"""
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Dict, List, Optional, Tuple, Type, Union

import torch
from torch import Tensor, nn

from ..capture import as_whole_block, is_batched, is_traced, leave_to_python, refuse_frozen_decisions
from ..cut.cut import Cut, cut_by_hand
from ..cut.slices import NoDropPath
from ..cut.source import NotCuttable
from ..residual.inputs import tensors_in
from ..residual.mode import Mode
from .check import check_cut
from .drop_path import StochasticDropPath
from .guards import (
    has_strangers,
    looks_at_batch,
    refuse_rounding,
    refuse_sample_gradients,
    refuse_split_norms,
    refuse_waiting,
)
from .metadata import note_block
from .plan import Plan, plan_of
from .sharding import unsharded_class

__all__ = ['Refusal', 'StochasticBlock', 'decide', 'plain_class_of', 'raise_refusal']

# why a block has no cut; the error itself would keep the network alive, and whatever the block is given: its traceback
Refusal = Tuple[Type[NotCuttable], str]


class StochasticBlock(nn.Module):
    """A residual block whose branches are dropped at random in training: the base class of all of them.

    Those with a drop path are made by `stochastic_class`. A family of your own without one derives from this class and
    the plain one, and defines `shortcut(x)`, `branch(x)` and `activation(x)`; a branch's result is overwritten. It has

        last_norm: Name of the child whose weight and bias scale the branch; the rate is folded into them.
        attention: Name of the child that follows it in the branch, if there is one that is not None in some blocks.
        shortcut_modules: Names of the shortcut's children, all others are the branch's or have no parameters.
    """
    # what a child of a plain class may be called has no underscore in front: it would be hidden
    _drop_path_names: ClassVar[Tuple[str, ...]] = ('drop_path',)
    # whether tests hold the cut forward of the plain class against the plain one: it then masks, too, as it is faster
    _is_proven: ClassVar[bool] = True
    # whether its branches are not compared with those of some samples, whatever the block holds; so if made by hand
    _is_trusted: ClassVar[bool] = True
    # of a family of your own, by the names of what its branch has
    _cuts_by_hand: ClassVar[Dict[Tuple[str, ...], Cut]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._cuts_by_hand = {}

    if TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any: ...  # children, and what a family defines

    def forward(self, x: Tensor) -> Tensor:
        """What the plain block computes, with branches dropped in training."""
        if torch.jit.is_scripting():
            return self._forward_masked(x)
        elif self.drops_batch():
            return self.forward_block(x)
        else:
            return self.stochastic_forward(x)

    def _forward_masked(self, x: Tensor) -> Tensor:
        """The forward of the block as it stands, in which its drop paths mask."""
        return self.activation(self.shortcut(x) + self.drop_path(self.branch(x)))

    @torch.jit.unused
    def _inner_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The plain forward."""
        return plain_class_of(self).forward(self, *args, **kwargs)

    @torch.jit.unused
    def drops_batch(self) -> bool:
        """Whether a forward pass drops branches for the whole batch, if it drops any."""
        drops = False
        for name in self._drop_path_names:
            drop_path = self._modules.get(name)
            if not isinstance(drop_path, StochasticDropPath):
                return False
            drops = drops or drop_path.drops_batch and drop_path.mode() is Mode.BATCH
        if drops:
            refuse_frozen_decisions('stochastic_method', 'block')
        return drops

    @torch.jit.unused
    def stochastic_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The plain block's forward, with branches of samples dropped."""
        is_plain, skips = True, False
        for name in self._drop_path_names:
            drop_path = self._modules.get(name)
            if not isinstance(drop_path, StochasticDropPath):  # but what somebody put there, and that counts
                return self._forward_of_others(*args, **kwargs)
            mode = drop_path.mode()
            is_plain = is_plain and mode is Mode.PLAIN
            skips = skips or mode is Mode.SKIP
        is_compiling = torch.compiler.is_compiling()
        if not is_compiling and is_traced(args, kwargs):
            return as_whole_block(self, args, kwargs) if skips else self._forward_masked(*args, **kwargs)
        if is_plain:
            return self._inner_forward(*args, **kwargs)
        if not skips and not self._is_proven:
            return self._forward_masked(*args, **kwargs)
        found = self._find_cut(*args, **kwargs)
        if not isinstance(found, Cut) and issubclass(found[0], NoDropPath):  # on the path that the block takes now
            return self._inner_forward(*args, **kwargs)
        if skips:
            refuse_frozen_decisions('skip_dropped', True)
            cut = raise_refusal(found)
            return self._skip_in_graph(cut, args, kwargs) if is_compiling else self._skip(cut, args, kwargs)
        if not isinstance(found, Cut):
            return self._forward_masked(*args, **kwargs)
        if not is_compiling and found.inplace_add:
            plan_of(self, found)
        return found.forward(self, *args, **kwargs)

    @torch.jit.unused
    def _forward_of_others(self, *args: Any, **kwargs: Any) -> Any:
        """The forward with what stands in the places of the drop paths, if anything."""
        is_whole = all(name in self._modules for name in self._drop_path_names)
        return self._forward_masked(*args, **kwargs) if is_whole else self._inner_forward(*args, **kwargs)

    @torch.jit.unused
    def _skip(self, cut: Cut, args: Any, kwargs: Any) -> Any:
        plan = plan_of(self, cut)
        _refuse_skipping(self, plan)
        if plan.gives_features:
            return self._forward_masked(*args, **kwargs)
        is_taken_unseen = self._is_trusted or self._is_proven and not plan.has_strangers
        if not is_taken_unseen and cut.path not in plan.paths_compared:
            _compare_samples(self, cut, plan, args, kwargs)
        return cut.forward(self, *args, **kwargs)

    @torch.jit.unused
    def _skip_in_graph(self, cut: Cut, args: Any, kwargs: Any) -> Any:
        is_compared = self._is_trusted or self._is_proven and not has_strangers(self)
        if not is_compared:  # no plan is looked at where none is needed: an eager pass in between makes one
            plan: Optional[Plan] = getattr(self, '_plan', None)
            is_compared = plan is not None and cut.path in plan.paths_compared
        # inductor has no backward pass of a BatchNorm for a number of samples that changes (torch 2.14)
        if looks_at_batch(self) or not is_compared:
            return self._skip_outside(cut, args, kwargs)
        return cut.forward(self, *args, **kwargs)

    @torch.jit.unused
    @torch.compiler.disable
    def _skip_outside(self, cut: Cut, args: Any, kwargs: Any) -> Any:
        return self._skip(cut, args, kwargs)

    @torch.jit.unused
    @leave_to_python
    def forward_block(self, *args: Any, **kwargs: Any) -> Any:
        """The plain block's forward, without the branches that the batch does not keep."""
        if is_traced(args, kwargs):
            return as_whole_block(self, args, kwargs)
        run, args, kwargs = decide(self, args, kwargs)
        return run(self, *args, **kwargs)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        note_block(self, self._drop_paths(), local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _replicate_for_data_parallel(self) -> Any:
        replica = super()._replicate_for_data_parallel()
        vars(replica).pop('_plan', None)  # which has the modules of this block
        return replica

    @torch.jit.unused
    def _drop_paths(self) -> List[StochasticDropPath]:
        children = map(self._modules.get, self._drop_path_names)
        return [child for child in children if isinstance(child, StochasticDropPath)]

    @torch.jit.unused
    def _find_cut(self, *args: Any, **kwargs: Any) -> Union[Cut, Refusal]:
        """The cut forward for the arguments that are given, or why there is none."""
        branch_only = tuple(
            name for name in (*self._modules, *self._parameters)
            if name not in (*getattr(self, 'shortcut_modules', ()), *self._drop_path_names))
        return type(self)._cuts_by_hand.get(branch_only) or self._cut_by_hand(branch_only)

    @torch.jit.unused
    @torch.compiler.disable
    def _cut_by_hand(self, branch_only: Tuple[str, ...]) -> Cut:
        cut = self._cuts_by_hand[branch_only] = cut_by_hand(plain_class_of(self), branch_only)
        return cut


# the decisions stay outside of compiled code, what they decide on is compiled by itself
@torch.compiler.disable
def decide(
        block: StochasticBlock,
        args: Any,
        kwargs: Any,
) -> Tuple[Callable[..., Any], Tuple[Any, ...], Dict[str, Any]]:
    """What runs for a batch: a function of the block, and its arguments."""
    found = block._find_cut(*args, **kwargs)
    if not isinstance(found, Cut) and issubclass(found[0], NoDropPath):  # on the path that the block takes now
        return type(block)._inner_forward, args, kwargs
    cut = raise_refusal(found)
    plan = plan_of(block, cut)
    if plan.has_sample_gradients:
        refuse_sample_gradients('stochastic_method', 'block', 'sample')
    first: StochasticDropPath = getattr(block, block._drop_path_names[0])
    if plan.what_waits and not first.settings.use_same_gpu_seed:
        refuse_waiting(plan.what_waits, 'use_same_gpu_seed', False)
    if plan.gives_features:  # its drop paths draw by themselves
        return torch.compiler.disable(type(block)._forward_masked), args, kwargs
    if not (block._is_proven or cut.is_compared):
        check_cut(block, cut, args, kwargs, by_rows=False)
    keeps, is_scaled = [], False
    with torch._C._DisableFuncTorch():  # one decision for whatever is vmapped
        for name, _ in cut.branches:
            drop_path: StochasticDropPath = getattr(block, name)
            keeps.append(drop_path.drop_prob == 0. or drop_path.draws.batch(drop_path.drop_prob))
            is_scaled = is_scaled or drop_path.scale_by_keep and drop_path.drop_prob > 0.
    if not any(keeps):
        return cut.forward_eager, (tuple(keeps), *args), kwargs
    if all(keeps) and not is_scaled and not (cut.inplace_add and plan.has_hook()):
        return cut.forward_kept, args, kwargs
    return cut.forward_decided, (tuple(keeps), *args), kwargs


def _refuse_skipping(block: StochasticBlock, plan: Plan) -> None:
    if plan.splits_batch:
        refuse_split_norms(block)
    if plan.looks_at_batch and any(d.round_up for d in block._drop_paths()):
        refuse_rounding(block)
    if plan.has_sample_gradients:
        refuse_sample_gradients('skip_dropped', True, False)
    if plan.what_waits and not plan.is_partitioned:
        refuse_waiting(plan.what_waits, 'skip_dropped', True)


def _compare_samples(block: StochasticBlock, cut: Cut, plan: Plan, args: Any, kwargs: Any) -> None:
    """Compare branches with those of some samples, once a block: others of its class may hold other modules."""
    num_samples = next((len(x) for x in tensors_in([args, kwargs]) if x.ndim), 0)
    if num_samples == 1 and cut.is_compared or is_batched():  # nothing to be mixed with, or masked
        return
    if check_cut(block, cut, args, kwargs, by_rows=True):
        plan.paths_compared.append(cut.path)


def raise_refusal(found: Union[Cut, Refusal]) -> Cut:
    """Return a cut.

    Raises:
        NotCuttable: There is none.
    """
    if isinstance(found, Cut):
        return found
    error, reason = found
    raise error(reason)


def plain_class_of(block: nn.Module) -> Type[nn.Module]:
    """The class that a block has without stochastic depth."""
    cls = unsharded_class(type(block))
    plain_class: Any = getattr(cls, '_plain_class', None) or next(
        c for c in cls.__mro__ if not issubclass(c, StochasticBlock))
    return plain_class
