"""The drop rate of one drop path: of the network, its own, and in force at some point of training."""
import warnings
from dataclasses import replace
from typing import Any, Dict, Optional

import torch
from torch import Tensor, nn

from ..capture import is_exporting
from ..draws.bernoulli import Draws
from ..draws.fixed import FixedDraws, keep_steps
from ..draws.shared import RankDraws, SharedDraws
from ..settings import Settings, check_flag, check_fraction
from .progress import TrainingProgress

__all__ = ['DropRate']


def _keep_prob_of(drop_prob: float) -> Tensor:
    # small rates would be none in bf16; of shape (), the compiler takes it for a Python number, and traces twice
    return torch.full((1,), 1. - drop_prob, dtype=torch.float64, device='cpu')


def _draws_of(settings: Settings, shared_draws: Optional[SharedDraws], drop_path_idx: int) -> Draws:
    if shared_draws is not None:
        return RankDraws(shared_draws, drop_path_idx)
    return FixedDraws() if settings.draw == 'fixed' else Draws()


class DropRate(nn.Module):
    """A module with a drop rate, which follows the training of its network.

    A rate that a loop writes to `drop_prob`, as it does with timm's DropPath, is that of this module alone, until the
    package sets another: without a schedule its own one, with a schedule the one in force up to its next point.

    Attributes:
        settings: Those of the network.
        depth_scale: Share of the network's drop rate that it has, in [0, 1].
        own_rate: The drop rate that its block, or it, was given alone, instead of a share; None if it was not.
        drop_prob: The probability in force, that the branch of a sample (or of the batch) is dropped.
        full_drop_prob: The same at the end of training.
        scale_by_keep: Whether what is kept is divided by its probability in training, instead of scaled at inference.
        keep_prob: 1 - drop_prob, shape (1,), in double precision on the CPU: for graphs that outlive a change of it.
        keep_steps: The same as a whole number.
        rate_moves: Whether the rate changes while the network trains.
        drop_path_idx: Number of the drop path in the network.
        progress: How far the network's training is.
        draws: What it draws by; another one may be put here.
    """
    drop_prob: float
    progress: TrainingProgress
    own_rate: Optional[float] = None  # as round_up here for networks that were pickled before there was one
    round_up: bool = False

    def configure(
            self,
            settings: Settings,
            depth_scale: float,
            drop_path_idx: int = 0,
            progress: Optional[TrainingProgress] = None,
            shared_draws: Optional[SharedDraws] = None,
    ) -> None:
        """Set how branches are dropped.

        Args:
            settings: Those of the network, with a drop_rate.
            depth_scale: Share of the drop rate, in [0, 1].
            drop_path_idx: Number of the drop path in the network.
            progress: How far the network's training is; at its end if None.
            shared_draws: Those of the network; of a network of its own if None.
        """
        self.settings = settings
        # what compiled code asks for: it would be compiled again for other settings
        self.drops_batch = settings.stochastic_method == 'block'
        self.skip_dropped = settings.skip_dropped
        self.round_up = settings.round_up
        self.scale_by_keep = bool(settings.scale_by_keep)
        self.rate_moves = bool(settings.schedule)
        self.never_drops = settings.drop_rate == 0. or depth_scale == 0.
        self.own_rate, self.is_paused = None, False
        self.depth_scale = depth_scale
        self.drop_path_idx = drop_path_idx
        is_shared = self.drops_batch and settings.use_same_gpu_seed
        self.shared_draws = shared_draws or SharedDraws('') if is_shared else None
        self.draws = _draws_of(settings, self.shared_draws, drop_path_idx)
        self.keep_prob = _keep_prob_of(0.)
        if hasattr(self, 'progress'):
            self.progress.remove(self)
        self.progress = progress or TrainingProgress()
        self.progress.add(self)
        self.update_drop_prob()

    @torch.jit.unused
    def unscheduled_rate(self) -> float:
        """The drop rate of which a schedule may let it have a share."""
        return (self.settings.drop_rate or 0.) * self.depth_scale if self.own_rate is None else self.own_rate

    @torch.jit.unused
    def update_drop_prob(self) -> None:
        """Take over the rate that the progress of training asks for."""
        rate = self.unscheduled_rate()
        self.full_drop_prob = rate * self.settings.share(1.)
        self._put_in_force(rate * self.settings.share(self.progress.fraction))

    def _put_in_force(self, drop_prob: float) -> None:
        vars(self)['drop_prob'] = drop_prob
        self.keep_steps = keep_steps(drop_prob)
        if self.keep_prob.is_inference():  # made or copied in inference mode: not to be written to
            self.keep_prob = _keep_prob_of(drop_prob)
        else:
            self.keep_prob.fill_(1. - drop_prob)

    # not a property: a forward pass reads these often, and would pay a call for each
    def __setattr__(self, name: str, value: Any) -> None:
        if name in ('drop_prob', 'p'):  # torchvision's name of it
            rate = check_fraction(name, value.item() if isinstance(value, Tensor) else value)
            if rate != self.drop_prob:
                self.rate_moves = True
                self.never_drops = self.never_drops and rate == 0.
                if not self.settings.schedule:
                    self.own_rate = self.full_drop_prob = rate
                self._put_in_force(rate)
        elif name == 'scale_by_keep':
            vars(self)[name] = check_flag(name, value)
            if bool(self.settings.scale_by_keep) != value:
                self.settings = replace(self.settings, scale_by_keep=value)
        else:
            super().__setattr__(name, value)

    @torch.jit.unused
    def set_drop_rate(self, drop_rate: float, own_rate: Optional[float] = None) -> None:
        """Take over another drop rate of the network, or of this block alone."""
        self.settings = replace(self.settings, drop_rate=drop_rate)
        self.own_rate = own_rate
        self.rate_moves = True
        self.never_drops = self.depth_scale == 0. and own_rate is None
        self.update_drop_prob()

    @torch.jit.unused
    def inference_scale(self, full: bool = False) -> float:
        """What the branch is multiplied with at inference; with `full`, at the rate of the end of training."""
        return 1. if self.scale_by_keep else 1. - (self.full_drop_prob if full else self.drop_prob)

    @torch.jit.unused
    def kept_scale(self) -> float:
        """What a branch that is kept in training is multiplied with."""
        return 1. / (1. - self.drop_prob) if self.scale_by_keep and self.drop_prob < 1. else 1.

    @torch.jit.unused
    def rate_is_graph_input(self) -> bool:
        """Whether a graph is being compiled that has to outlive a change of the rate: a number would be part of it."""
        return self.rate_moves and torch.compiler.is_compiling() and not is_exporting()

    @torch.jit.unused
    def draw_samples(self, x: Tensor) -> Tensor:
        """Draw keep_N, the factor of each sample's branch in a batch like x."""
        drop_prob = 1. - self.keep_prob if self.rate_moves and self.rate_is_graph_input() else self.drop_prob
        return self.draws.samples(x, drop_prob, self.scale_by_keep)

    def train(self, mode: bool = True) -> 'DropRate':
        if mode and self.shared_draws is not None:
            self.shared_draws.start_epoch()
        if mode and self.settings.schedule and not self.progress.is_told:
            self.progress.is_told = True  # one warning a model
            name = 'drop_warmup' if self.settings.drop_schedule is None else 'drop_schedule'
            warnings.warn(
                f'{name}={getattr(self.settings, name)} has no effect until the model is told how far training is: run'
                ' the script with `timm-stochdepth run SCRIPT ...`, or call start_warmup(model) once and'
                ' set_training_progress(model, fraction) at every step. Until then every rate is that of the end.',
                stacklevel=2)
        return super().train(mode)

    def __setstate__(self, state: Dict[str, Any]) -> None:
        former = {'place_idx': 'drop_path_idx', 'stands_for': 'replaced'}  # as 0.4 called them
        super().__setstate__({former.get(name, name): value for name, value in state.items()})
        self.is_paused = False  # whoever copies a network while it is paused
        if self.keep_prob.dtype != torch.float64:  # pickled when it had the default type
            self.keep_prob = _keep_prob_of(self.drop_prob)
        self.keep_steps = keep_steps(self.drop_prob)
        if 'draws' not in state:  # pickled before there were some
            self.draws = _draws_of(self.settings, state.get('shared_draws'), self.drop_path_idx)
        self.progress.add(self)
