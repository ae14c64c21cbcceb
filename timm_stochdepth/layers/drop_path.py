"""The module in the place of a drop path: the mode of a forward pass, and the addition of shortcut and branch."""
from typing import Any, Dict, Optional

import torch
from torch import Tensor, nn

from ..capture import as_leaf, is_traced, leave_to_python
from ..cut.branch import Branch
from ..draws.bernoulli import draw_keep_block, draw_keep_samples
from ..draws.selection import Selection
from ..residual.mask import per_sample
from ..residual.mode import Mode
from .add_residual import add_residual, add_to_batch, add_to_kept, leave_out
from .drawn_ahead import select_ahead
from .metadata import RateMetadata

__all__ = ['StochasticDropPath']


class StochasticDropPath(RateMetadata):
    """Stochastic depth where a network of timm has a drop path.

    It has no parameters and no buffers. In a block that is cut it is given shortcut and branch (`add`), elsewhere the
    result of the branch, as timm's DropPath is (`forward`).

    Attributes:
        former_scale: What the branch was multiplied with at inference when its weights were trained, if that is not so
            any more, and they were left as they are; None otherwise.
        is_paused: Whether nothing is dropped, in training either; see `no_drop`.
        stands_for: What a plain block has here at rate 0: an `'Identity'`, `'None'`, or `'nothing'`.
    """
    __jit_ignored_attributes__ = ['block_metadata', 'draws', 'progress', 'shared_draws']

    replaced: str
    is_paused: bool
    former_scale: Optional[float] = None

    def _load_from_state_dict(self, *args: Any) -> None:
        self.former_scale = None
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> Dict[str, Any]:
        # where it is unpickled, nobody knows that it has trained
        return {**vars(self), 'former_scale': None if self.progress.has_stepped else self.former_scale}

    @torch.jit.unused
    def mode(self) -> Mode:
        """What a forward pass does with the branch: decided here, and nowhere else."""
        drops = self.training and not self.is_paused
        if drops and self.drops_batch:  # at whatever rate: a compiler would make a graph of it
            return Mode.BATCH
        is_plain = self.never_drops if self.rate_moves and self.rate_is_graph_input() else self.drop_prob == 0.
        if is_plain or (self.scale_by_keep and not drops):
            return Mode.PLAIN
        if not drops:
            return Mode.SCALE
        return Mode.SKIP if self.skip_dropped else Mode.MASK

    def forward(self, x: Tensor) -> Tensor:
        """Mask the result of a branch in training, and scale it at inference.

        Args:
            x: Shape (N, ...).
        """
        if not torch.jit.is_scripting():
            return self._mask(x)
        # modes and draws are Python's
        drops = self.training and not self.is_paused
        if self.drop_prob == 0. or (self.scale_by_keep and not drops):
            return x
        if not drops:
            return x * (1. - self.drop_prob)
        if self.drops_batch:
            if not draw_keep_block(self.drop_prob):
                return x * 0.  # with a gradient of zero for what it was computed of
            return x / (1. - self.drop_prob) if self.scale_by_keep else x
        return x * per_sample(draw_keep_samples(x, self.drop_prob, self.scale_by_keep), x)

    @torch.jit.unused
    def _mask(self, x: Tensor) -> Tensor:
        if is_traced((x,), {}):
            traced: Tensor = as_leaf(self, (x,), {})
            return traced
        mode = self.mode()
        if mode is Mode.PLAIN or self.drop_prob == 0. and mode is Mode.BATCH:
            return x
        if mode is Mode.SCALE:
            if self.rate_is_graph_input():
                return x * self.keep_prob.to(x.device, x.dtype, non_blocking=True)
            return x * (1. - self.drop_prob)
        if mode is Mode.BATCH:
            if not self.draws.batch(self.drop_prob):
                return x * 0.  # with a gradient of zero for what it was computed of
            return x / (1. - self.drop_prob) if self.scale_by_keep else x
        return x * per_sample(self.draw_samples(x), x)

    @torch.jit.unused
    def add(self, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        """`shortcut + b * branch(block, *inputs)`, b drawn in training, and its expectation at inference.

        Args:
            shortcut: Shape (N, ...).
            branch: What is dropped.
            block: The block that it is a part of.
            inputs: Those of the branch.
        """
        mode = self.mode()
        if mode is Mode.SKIP:
            return add_to_kept(self, self.select, shortcut, branch, block, inputs)
        if self._forward_pre_hooks or self._forward_hooks or self._backward_hooks or self._backward_pre_hooks:
            y = self(branch.run(block, *inputs))  # a hook is to see what timm's DropPath would be given, and give
            return y + shortcut if branch.branch_is_left else shortcut + y
        return add_residual(mode, self, shortcut, branch, block, inputs)

    @torch.jit.unused
    def select(self, shortcut: Tensor) -> Selection:
        """Draw which samples of a batch run the branch.

        Args:
            shortcut: Shape (N, ...).
        """
        if not shortcut.is_cpu:
            return select_ahead(self, shortcut)
        return self.draws.select((self.drop_prob,), shortcut, self.round_up)[0]

    # what was decided stays outside of compiled code, what it decides on is compiled by itself
    @torch.jit.unused
    @leave_to_python
    def add_decided(self, keeps: bool, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        """As `add`, by a decision that was taken for the batch."""
        if keeps:
            return branch.add_scaled(block, branch, shortcut, *inputs)
        return leave_out(shortcut, branch, block, inputs)

    @torch.jit.unused
    def add_scaled(self, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        """As `add`, of a branch that the whole batch keeps."""
        return add_to_batch(self, shortcut, branch, block, *inputs)

    def extra_repr(self) -> str:
        text = f'stochastic_method={self.settings.stochastic_method!r}, drop_prob={round(self.drop_prob, 3):0.3f}'
        if self.settings.schedule:
            text += f' of {round(self.full_drop_prob, 3):0.3f}'
        flags = [name for name in ('scale_by_keep', 'skip_dropped', 'round_up') if getattr(self.settings, name)]
        draw = [] if self.settings.draw == 'independent' else [f'draw={self.settings.draw!r}']
        return ', '.join([text, *(f'{name}=True' for name in flags), *draw])
