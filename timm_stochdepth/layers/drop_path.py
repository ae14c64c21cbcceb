"""The module that stands at a drop path's place: settings in force, draw, and the addition of shortcut and branch."""
import warnings
from dataclasses import replace
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor, nn

from ..capture import as_leaf, is_batched, is_exporting, is_traced
from ..draws.bernoulli import draw_keep_block, draw_keep_samples, draw_keep_samples_at, host_dtype
from ..draws.process_group import has_ranks
from ..draws.shared import SharedDraws
from ..fx.branch import Branch, has_hook
from ..residual.conv_layout import known_layout
from ..residual.mask import add_branch, add_masked_branch, add_plain_branch, per_sample
from ..residual.skip import add_kept_branch, on_device, select_inputs, select_kept, skip_branch
from ..residual.skip_compiled import MIN_RUN, add_drawn, break_graph_in_checkpoint, draw_to_run, select_drawn
from ..settings import Settings
from .metadata import SaysScale
from .progress import TrainingProgress

__all__ = ['StochasticDropPath']


class StochasticDropPath(SaysScale):
    """Stochastic depth at one place of a network, where timm has a drop path.

    It has no parameters and no buffers. In a block that is cut it is given shortcut and branch (`add`), elsewhere the
    result of the branch, as timm's DropPath is (`forward`).

    Attributes:
        settings: Those of the network.
        depth_scale: Share of the network's drop rate that this place gets, in [0, 1].
        own_rate: The drop rate that this block was given alone, instead of its share; None if it was not.
        former_scale: What the branch was multiplied with at inference when its weights were trained, if that is not so
            any more, and they were left as they are; None otherwise.
        drop_prob: The probability in force, that the branch of a sample (or of the batch) is dropped.
        full_drop_prob: The same at the end of training.
        place_idx: Number of this place in the network.
        is_paused: Whether nothing is dropped, in training either; see `no_drop`.
        rate_moves: Whether the rate changes while the network trains.
        decisions: Block method in a cut block: what was drawn for the calls to come in this forward pass.
        stands_for: What a plain block has here at rate 0: an `'Identity'`, `'None'`, or `'nothing'`.
    """
    __jit_ignored_attributes__ = ['block_metadata', 'progress', 'shared_draws']

    drop_prob: float
    progress: TrainingProgress
    stands_for: str
    is_paused: bool
    former_scale: Optional[float] = None

    def configure(
            self,
            settings: Settings,
            depth_scale: float,
            place_idx: int = 0,
            progress: Optional[TrainingProgress] = None,
            shared_draws: Optional[SharedDraws] = None,
    ) -> None:
        """Set how this place drops.

        Args:
            settings: Those of the network, with a drop_rate.
            depth_scale: Share of the drop rate that this place gets, in [0, 1].
            place_idx: Number of this place in the network.
            progress: How far the network's training is; at its end if None.
            shared_draws: Those of the network; of a network of its own if None.
        """
        self.settings = settings
        # what compiled code asks for: it would be compiled again for other settings
        self.drops_batch = settings.stochastic_method == 'block'
        self.skip_dropped = settings.skip_dropped
        self.scale_by_keep = bool(settings.scale_by_keep)
        self.rate_moves = bool(settings.schedule)
        self.never_drops = settings.drop_rate == 0. or depth_scale == 0.
        self.own_rate = None
        self.is_paused = False
        self.depth_scale = depth_scale
        self.place_idx = place_idx
        self.decisions: List[bool] = []
        self.shared_draws: Optional[SharedDraws] = None
        if self.drops_batch and settings.use_same_gpu_seed:
            self.shared_draws = shared_draws or SharedDraws('')
        self.keep_prob = torch.empty((), device='cpu')
        if hasattr(self, 'progress'):
            self.progress.remove(self)
        self.progress = progress or TrainingProgress()
        self.progress.add(self)
        self.update_drop_prob()

    @torch.jit.unused
    def unscheduled_rate(self) -> float:
        """The drop rate of this place, of which a schedule may let it have a share."""
        return (self.settings.drop_rate or 0.) * self.depth_scale if self.own_rate is None else self.own_rate

    @torch.jit.unused
    def update_drop_prob(self) -> None:
        """Take over the rate that the progress of training asks for."""
        rate = self.unscheduled_rate()
        self.full_drop_prob = rate * self.settings.share(1.)
        self.drop_prob = rate * self.settings.share(self.progress.fraction)
        self.keep_prob.fill_(1. - self.drop_prob)

    @torch.jit.unused
    def set_drop_rate(self, drop_rate: float, own_rate: Optional[float] = None) -> None:
        """Take over another drop rate of the network, or of this block alone."""
        self.settings = replace(self.settings, drop_rate=drop_rate)
        self.own_rate = own_rate
        self.rate_moves = True
        self.never_drops = self.depth_scale == 0. and own_rate is None
        self.update_drop_prob()

    def _load_from_state_dict(self, *args: Any) -> None:
        self.former_scale = None
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> Dict[str, Any]:
        # where it is unpickled, nobody knows that it has trained
        return {**vars(self), 'former_scale': None if self.progress.has_stepped else self.former_scale}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        self.is_paused = False  # whoever copies a network while it is paused
        self.progress.add(self)

    @torch.jit.unused
    def inference_scale(self, full: bool = False) -> float:
        """What the branch is multiplied with at inference; with `full`, at the rate of the end of training."""
        return 1. if self.scale_by_keep else 1. - (self.full_drop_prob if full else self.drop_prob)

    def train(self, mode: bool = True) -> 'StochasticDropPath':
        if mode and self.shared_draws is not None:
            self.shared_draws.start_epoch()
        if mode and self.settings.schedule and not self.progress.is_told:
            self.progress.is_told = True  # one warning a model
            name, value = ('drop_warmup', self.settings.drop_warmup)
            if self.settings.drop_schedule is not None:
                name, value = 'drop_schedule', self.settings.drop_schedule  # type: ignore[assignment]
            warnings.warn(
                f'{name}={value} has no effect until the model is told how far training is: run the script with'
                ' `timm-stochdepth run SCRIPT ...`, or call start_warmup(model) once and'
                ' set_training_progress(model, fraction) at every step. Until then every rate is that of the end.',
                stacklevel=2)
        return super().train(mode)

    def draw_samples(self, x: Tensor) -> Tensor:
        """Draw keep_N, the factor of each sample's branch in a batch like x."""
        if not torch.jit.is_scripting():
            if self._rate_is_graph_input():
                return draw_keep_samples_at(x, self.keep_prob, self.scale_by_keep)
        return draw_keep_samples(x, self.drop_prob, self.scale_by_keep)

    @torch.jit.unused
    @torch.compiler.disable
    def draw_block(self) -> bool:
        """Draw whether the whole batch keeps its branch."""
        with torch._C._DisableFuncTorch():  # one decision for whatever is vmapped
            if has_ranks() and self.shared_draws is not None:
                return self.shared_draws.draw_keep_block(self.place_idx, self.drop_prob)
            return draw_keep_block(self.drop_prob)

    @torch.jit.unused
    def _rate_is_graph_input(self) -> bool:
        """Whether a graph is being compiled that has to outlive a change of the rate: a number would be part of it."""
        return self.rate_moves and torch.compiler.is_compiling() and not is_exporting()

    def drops(self) -> bool:
        """Whether a forward pass drops at random, and does not scale as at inference."""
        return self.training and not self.is_paused

    def is_idle(self) -> bool:
        """Whether the branch counts as in a plain network."""
        if self.scale_by_keep and not self.drops():
            return True
        if not torch.jit.is_scripting():
            if self._rate_is_graph_input():
                return self.never_drops
        return self.drop_prob == 0.

    def forward(self, x: Tensor) -> Tensor:
        """Mask the result of a branch in training, and scale it at inference.

        Args:
            x: Shape (N, ...).
        """
        if not torch.jit.is_scripting():
            if is_traced((x,), {}):
                return as_leaf(self, (x,), {})
        if self.is_idle():
            return x
        if not self.drops():
            return self._scale(x)
        if self.drops_batch:
            if not draw_keep_block(self.drop_prob):
                return torch.zeros_like(x)
            return x / (1. - self.drop_prob) if self.scale_by_keep else x
        return x * per_sample(self.draw_samples(x), x)

    def _scale(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self._rate_is_graph_input():
                return x * self.keep_prob.to(x.device, x.dtype, non_blocking=True)
        return x * (1. - self.drop_prob)

    @torch.jit.unused
    def add(self, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        """`shortcut + b * branch(block, *inputs)`, b the draw of this place, or its expectation at inference.

        Args:
            shortcut: Shape (N, ...).
            branch: What is dropped.
            block: The block that it is a part of.
            inputs: Those of the branch.
        """
        drops = self.drops()
        if drops and self.drops_batch:
            return self.add_decided(shortcut, branch, block, *inputs)
        # FX has this place as a leaf; a hook is to see what timm's DropPath would give
        if is_traced((shortcut,), {}) or (has_hook(self) and not (drops and self.skip_dropped)):
            y = self(branch.run(block, *inputs))
            return y + shortcut if branch.branch_first else shortcut + y
        form = branch.takes_sum_of(block), branch.branch_first
        if self.is_idle():
            return add_plain_branch(shortcut, branch.run(block, *inputs), *form)
        if drops and self.skip_dropped and not is_batched():
            if not torch.compiler.is_compiling():
                return self._add_kept(shortcut, branch, block, *inputs)
            if shortcut.shape[0] >= MIN_RUN:
                return self._add_drawn(shortcut, branch, block, *inputs)
        y = branch.run(block, *inputs)
        if drops:
            return add_masked_branch(shortcut, y, self.draw_samples(y), *form)
        if self._rate_is_graph_input():
            return add_masked_branch(shortcut, y, self.keep_prob.to(y.device, y.dtype, non_blocking=True), *form)
        return add_branch(shortcut, y, 1. - self.drop_prob, *form)

    # the decision stays outside of compiled code, what it decides on is compiled by itself
    @torch.jit.unused
    @torch.compiler.disable(recursive=False)
    def add_decided(self, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        """As `add`, by the decision that was taken for the batch."""
        if not self._take_decision():
            return self._skip(shortcut, branch, block)
        return branch.add_scaled(block, shortcut, *inputs)

    @torch.jit.unused
    @torch.compiler.disable
    def _take_decision(self) -> bool:
        decision, *self.decisions = self.decisions
        return decision

    @torch.jit.unused
    @torch.compiler.disable
    def _skip(self, shortcut: Tensor, branch: Branch, block: nn.Module) -> Tensor:
        return skip_branch(shortcut, branch.parameters(block))

    @torch.jit.unused
    def add_scaled(self, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        """As `add`, of a branch that the whole batch keeps."""
        form = branch.takes_sum_of(block), branch.branch_first
        y = branch.run(block, *inputs)
        if not self.scale_by_keep:
            return add_plain_branch(shortcut, y, *form)
        return add_masked_branch(shortcut, y, y.new_full((1,), 1. / (1. - self.drop_prob)), *form)

    @torch.jit.unused
    def _add_drawn(self, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        break_graph_in_checkpoint()
        drawn = draw_to_run(shortcut, self.keep_prob, self.scale_by_keep)
        shortcut, run_inputs = select_inputs(
            branch.batch_dimensions, shortcut, inputs, drawn.run_K, lambda x: select_drawn(x, drawn))
        with known_layout(block):
            y = branch.run(block, *run_inputs)
        return add_drawn(shortcut, y, drawn, branch.branch_first)

    @torch.jit.unused
    def _add_kept(self, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        # drawn on the CPU: the number of kept samples is a shape, which a device would have to be asked for
        num_samples = shortcut.shape[0]
        like = torch.empty((num_samples,), dtype=host_dtype(shortcut), device='cpu')
        keep_N = self.draw_samples(like)
        kept_K = keep_N.nonzero().flatten()
        if kept_K.numel() == 0:
            return self._skip(shortcut, branch, block)
        with branch.lone_values_by_running_statistics(block, kept_K.numel()):
            if kept_K.numel() == num_samples:
                return self.add_scaled(shortcut, branch, block, *inputs)
            kept = on_device(kept_K, keep_N, shortcut.device)
            shortcut, kept_inputs = select_inputs(
                branch.batch_dimensions, shortcut, inputs, kept.kept_K, lambda x: select_kept(x, kept))
            y = branch.run(block, *kept_inputs)
        scale = 1. / (1. - self.drop_prob) if self.scale_by_keep else 1.
        return add_kept_branch(shortcut, y, kept, scale, branch.branch_first)

    def extra_repr(self) -> str:
        text = f'stochastic_method={self.settings.stochastic_method!r}, drop_prob={round(self.drop_prob, 3):0.3f}'
        if self.settings.schedule:
            text += f' of {round(self.full_drop_prob, 3):0.3f}'
        flags = [name for name in ('scale_by_keep', 'skip_dropped') if getattr(self.settings, name)]
        return ', '.join([text, *(f'{name}=True' for name in flags)])
