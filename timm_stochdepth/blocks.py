"""Residual blocks with stochastic depth.

A residual block computes `y = act(shortcut(x) + branch(x))`. Stochastic depth changes how the branch takes part, and
nothing else: parameters, buffers and their names stay those of the plain block, whose class is a base of ours.
`StochasticBlock` draws and combines; a block family below it says what its shortcut, branch, activation and last
norm are.
"""
import warnings
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Type

import timm.models.resnet as timm_resnet
import torch
import torchvision.models.resnet as tv_resnet
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .functional import (
    add_branch,
    add_masked_branch,
    draw_keep_block,
    draw_keep_samples,
    draw_keep_samples_at,
)
from .progress import TrainingProgress
from .rates import DISTRIBUTIONS, check_choice, check_flag, check_fraction, warmup_scale
from .shared_draws import SharedDraws, has_ranks
from .skipping import add_kept_branch, select_kept, skip_branch

__all__ = [
    'STOCHASTIC_LAYER_MAPPING',
    'ResNetBlock',
    'StochasticBlock',
    'TimmBasicBlock',
    'TimmBottleneck',
    'TorchvisionBasicBlock',
    'TorchvisionBottleneck',
]

METHODS = ('block', 'sample')


class StochasticBlock(nn.Module):
    """A residual block whose branch is dropped at random in training.

    Base class of a block family, which also derives from the plain block that it stands for. A plain block becomes a
    stochastic one, and back, by a change of class: its modules, parameters and hooks are the very same objects.
    A family defines `shortcut`, `branch` and `activation`, and names its `last_norm` and, if it is a child, its
    `last_activation`.

    Attributes:
        drop_prob: The probability in force, that the branch of a sample (or of the batch) is dropped.
        full_drop_prob: The same at the end of the warm-up.
    """
    # child whose weight and bias scale the branch, fold_stochastic_depth puts the rate there
    last_norm: str
    # child that follows the last norm in the branch, if it is not None in the block
    attention: str = ''
    # child that is the activation, if one is: a ReLU joins the addition where branches are skipped
    last_activation: str = ''
    # children of the shortcut, all others are the branch's or have no parameters
    shortcut_modules: Tuple[str, ...] = ()

    __jit_ignored_attributes__ = ['progress', 'shared_draws']

    # a plain block's is 1: the metadata of a state_dict tells whose weights it holds
    _version = 2

    stochastic_method: str
    drop_distribution: str
    drop_rate: float
    depth_scale: float
    drop_warmup: float
    use_same_gpu_seed: bool
    scale_by_keep: bool
    skip_dropped: bool
    full_drop_prob: float
    drop_prob: float
    keep_prob: Tensor
    progress: TrainingProgress
    shared_draws: SharedDraws

    if TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any: ...  # children are found by name

    def configure(
            self,
            stochastic_method: str,
            drop_rate: float,
            depth_scale: float,
            drop_distribution: str = 'linear',
            drop_warmup: float = 0.,
            use_same_gpu_seed: bool = True,
            scale_by_keep: bool = False,
            skip_dropped: bool = False,
            block_idx: int = 0,
            progress: Optional[TrainingProgress] = None,
    ) -> None:
        """Set how this block drops its branch.

        Args:
            stochastic_method: `'sample'`, an independent draw for each sample, or `'block'`, one for the batch.
            drop_rate: Drop rate of the whole network, in [0, 1].
            depth_scale: Share of it that this block gets, in [0, 1].
            drop_distribution: The rule that depth_scale came from.
            drop_warmup: Fraction of training over which the rate rises from 0, in [0, 1].
            use_same_gpu_seed: Whether all ranks drop the same blocks.
            scale_by_keep: Divide by the keep probability in training, instead of scaling by it at inference.
            skip_dropped: Sample method: run the branch for the samples that keep it alone.
            block_idx: Place of this block in the network.
            progress: How far the network's training is; at its end if None.
        """
        self.stochastic_method = check_choice('stochastic_method', stochastic_method, METHODS)
        self.drop_distribution = check_choice('drop_distribution', drop_distribution, DISTRIBUTIONS)
        self.drop_warmup = check_fraction('drop_warmup', drop_warmup)
        self.use_same_gpu_seed = check_flag('use_same_gpu_seed', use_same_gpu_seed)
        self.scale_by_keep = check_flag('scale_by_keep', scale_by_keep)
        self.skip_dropped = check_flag('skip_dropped', skip_dropped)
        self.depth_scale = depth_scale
        self.shared_draws = SharedDraws(block_idx)
        self.keep_prob = torch.empty((), device='cpu')
        if hasattr(self, 'progress'):
            self.progress.remove(self)
        self.progress = progress or TrainingProgress()
        self.progress.add(self)
        self.set_drop_rate(drop_rate)

    @torch.jit.unused
    def set_drop_rate(self, drop_rate: float) -> None:
        """Set the drop rate of the whole network, in [0, 1]."""
        self.drop_rate = check_fraction('drop_rate', drop_rate)
        self.full_drop_prob = self.drop_rate * self.depth_scale
        self.update_drop_prob()

    @torch.jit.unused
    def update_drop_prob(self) -> None:
        """Take over the rate that the progress of training asks for."""
        self.drop_prob = self.full_drop_prob * warmup_scale(self.progress.fraction, self.drop_warmup)
        self.keep_prob.fill_(1. - self.drop_prob)

    @torch.jit.unused
    def restore_plain_class(self) -> None:
        """Become the plain block again, settings forgotten, weights as they are."""
        self.progress.remove(self)
        for name in list(vars(self)):
            if name in StochasticBlock.__annotations__:
                delattr(self, name)
        plain_class: Any = next(c for c in type(self).__mro__ if not issubclass(c, StochasticBlock))
        self.__class__ = plain_class

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        self.progress.add(self)

    def _save_to_state_dict(self, destination: Dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # the metadata goes where torch.save and deepcopy take a state_dict, and its keys stay those of a plain network
        getattr(destination, '_metadata', {}).setdefault(prefix[:-1], {}).update(
            inference_scale=self.inference_scale(), full_inference_scale=self.inference_scale(full=True))

    def _load_from_state_dict(
            self,
            state_dict: Dict[str, Any],
            prefix: str,
            local_metadata: Dict[str, Any],
            *args: Any,
    ) -> None:
        self._tell_of_other_rates(local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _tell_of_other_rates(self, local_metadata: Dict[str, Any]) -> None:
        # a run that goes on may have been at another point of its warm-up: the full rates tell
        trained_scale = local_metadata.get('full_inference_scale')
        keeps_function = (
            'timm.create_model(..., pretrained=True, pretrained_cfg_overlay=dict(file=...)) keeps what a network'
            ' computes.')
        if trained_scale is not None:
            if trained_scale != self.inference_scale(full=True):
                warnings.warn(
                    'The weights were trained at other drop rates, or with another scale_by_keep, than this network'
                    f' has. They are loaded as they are, so that it computes something else: {keeps_function}',
                    stacklevel=3)
        elif local_metadata.get('version') != self._version and self.inference_scale() != 1.:
            origin = 'are of a plain network' if local_metadata else 'do not say whether they are of a plain network'
            warnings.warn(
                f'The weights {origin}. They are loaded as they are, as those of a network with stochastic depth at'
                f' the rates of this one. For other weights, {keeps_function}', stacklevel=3)

    @torch.jit.unused
    def inference_scale(self, full: bool = False) -> float:
        """What the branch is multiplied with at inference; with `full`, at the rate of the end of the warm-up."""
        return 1. if self.scale_by_keep else 1. - (self.full_drop_prob if full else self.drop_prob)

    def train(self, mode: bool = True) -> 'StochasticBlock':
        if mode and self.drop_warmup > 0. and not self.progress.is_told:
            self.progress.is_told = True  # one warning a model
            warnings.warn(
                f'drop_warmup={self.drop_warmup} has no effect until the model is told how far training is: run the'
                ' script with `timm-stochdepth run SCRIPT ...`, or call start_warmup(model) once and'
                ' set_training_progress(model, fraction) at every step. Until then every rate is the full one.',
                stacklevel=2)
        return super().train(mode)

    def shortcut(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def branch(self, x: Tensor) -> Tensor:
        """The branch, in a tensor of its own memory, which the sum with the shortcut may take."""
        raise NotImplementedError

    def activation(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.jit.unused
    def branch_parameters(self) -> List[nn.Parameter]:
        """Parameters that only the branch uses."""
        return [p for n, p in self.named_parameters() if self._in_branch(n)]

    @torch.jit.unused
    def _in_branch(self, name: str) -> bool:
        return name.split('.')[0] not in self.shortcut_modules

    def draw_samples(self, x: Tensor) -> Tensor:
        """Draw keep_N, the factor of each sample's branch in a batch like x."""
        if self._rate_is_graph_input():
            return draw_keep_samples_at(x, self.keep_prob, self.scale_by_keep)
        return draw_keep_samples(x, self.drop_prob, self.scale_by_keep)

    def draw_block(self) -> bool:
        """Draw whether the whole batch keeps its branch."""
        if torch.jit.is_scripting():
            return draw_keep_block(self.drop_prob)
        else:
            return self._draw_block_of_ranks()

    @torch.jit.unused
    @torch.compiler.disable
    def _draw_block_of_ranks(self) -> bool:
        if has_ranks():
            if self.use_same_gpu_seed:
                return self.shared_draws.draw_keep_block(self.drop_prob)
            self._refuse_sync_norms('use_same_gpu_seed', False)
        return draw_keep_block(self.drop_prob)

    def _refuse_sync_norms(self, name: str, value: bool) -> None:
        if any(isinstance(m, nn.SyncBatchNorm) for m in self.modules()):
            raise ValueError(
                f'{name} must be {not value} with SyncBatchNorm, but got {value}: a rank that keeps a block would wait'
                ' for ever for the statistics of one that skips it.')

    def _rate_is_graph_input(self) -> bool:
        """Whether a graph is being compiled that has to outlive a change of the rate: a number would be part of it."""
        if torch.jit.is_scripting():
            return False
        return self.drop_warmup > 0. and torch.compiler.is_compiling() and not torch.compiler.is_exporting()

    def _never_drops(self) -> bool:
        return self.full_drop_prob == 0. if self._rate_is_graph_input() else self.drop_prob == 0.

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if isinstance(x, fx.Proxy):
                # a leaf for every tracer, whether it knows this class or not: no decision is frozen into a graph
                return x.tracer.create_proxy('call_module', x.tracer.path_of_module(self), (x,), {})
        if self.training and self.stochastic_method == 'block':
            return self._forward_block(x)
        if self._never_drops() or (self.scale_by_keep and not self.training):
            return self._forward_plain(x)
        if not torch.jit.is_scripting():
            if self.training and self.skip_dropped:
                return self._forward_kept_samples(x)
        if self.training:
            shortcut = self.shortcut(x)
            branch = self.branch(x)
            return self.activation(add_masked_branch(shortcut, branch, self.draw_samples(branch)))
        branch = self.branch(x)
        shortcut = self.shortcut(x)  # last, as in a plain block
        if self._rate_is_graph_input():
            y = add_masked_branch(shortcut, branch, self.keep_prob.to(branch.device, branch.dtype, non_blocking=True))
        else:
            y = add_branch(shortcut, branch, 1. - self.drop_prob)
        return self.activation(y)

    def _forward_plain(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # which knows no super()
            return self.activation(self.shortcut(x) + self.branch(x))
        else:
            return super().forward(x)

    # the decision stays outside of compiled code, what it decides on is compiled by itself
    @torch.compiler.disable(recursive=False)
    def _forward_block(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.:
            return self._forward_plain(x)
        if not self.draw_block():
            return self._forward_skipped(x)
        if self.scale_by_keep:
            return self._forward_scaled(x, x.new_full((1,), 1. / (1. - self.drop_prob)))
        return self._forward_plain(x)

    def _forward_scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        branch = self.branch(x)
        return self.activation(add_masked_branch(self.shortcut(x), branch, scale.to(branch.dtype)))

    @torch.compiler.disable
    def _forward_skipped(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        if torch.jit.is_scripting():
            return self.activation(shortcut.clone())
        else:
            relu = self._fuses_relu()
            y = skip_branch(shortcut, self.branch_parameters(), relu=relu)
            return y if relu else self.activation(y)

    # eager: inductor has no backward pass of a BatchNorm for a number of samples that changes (torch 2.14)
    @torch.jit.unused
    @torch.compiler.disable
    def _forward_kept_samples(self, x: Tensor) -> Tensor:
        if has_ranks():
            self._refuse_sync_norms('skip_dropped', True)
        # drawn on the CPU: the number of kept samples is a shape, which a device would have to be asked for
        kept = self.draw_samples(torch.empty((x.shape[0],), device='cpu')).nonzero().flatten()
        if kept.numel() == 0:
            return self._forward_skipped(x)
        scale = 1. / (1. - self.drop_prob) if self.scale_by_keep else 1.
        if 1 < kept.numel() == x.shape[0] and scale == 1.:
            return self._forward_plain(x)
        return self._forward_selected(x, kept.to(x.device, non_blocking=True), scale)

    @torch.jit.unused
    def _forward_selected(self, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        relu = self._fuses_relu()
        has_identity = not any(getattr(self, name) is not None for name in self.shortcut_modules)
        shortcut, x = select_kept(x, kept, owns_grad=relu and has_identity)
        shortcut = self.shortcut(shortcut)
        is_lone_value = kept.numel() * shortcut[0, 0].numel() == 1
        branch = self._branch_by_running_statistics(x) if is_lone_value else self.branch(x)
        y = add_kept_branch(shortcut, branch, kept, scale, relu)
        return y if relu else self.activation(y)

    @torch.jit.unused
    def _branch_by_running_statistics(self, x: Tensor) -> Tensor:
        # one value has no variance: a BatchNorm would raise
        norms = [m for n, m in self.named_modules() if isinstance(m, _BatchNorm) and m.training and self._in_branch(n)]
        for norm in norms:
            norm.eval()
        try:
            return self.branch(x)
        finally:
            for norm in norms:
                norm.train()

    @torch.jit.unused
    def _fuses_relu(self) -> bool:
        activation = getattr(self, self.last_activation, None)
        if type(activation) is not nn.ReLU:
            return False
        # a module with hooks has to be called
        return not (activation._forward_hooks or activation._forward_pre_hooks
                    or activation._backward_hooks or activation._backward_pre_hooks)

    def extra_repr(self) -> str:
        return f'stochastic_method={self.stochastic_method!r}, drop_prob={round(self.drop_prob, 3):0.3f}'


class ResNetBlock(StochasticBlock):
    """What the blocks of timm's and torchvision's ResNets share: the shortcut."""
    shortcut_modules = ('downsample',)

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)


class TimmBasicBlock(ResNetBlock, timm_resnet.BasicBlock):
    last_norm = 'bn2'
    last_activation = 'act2'
    attention = 'se'

    def branch(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.drop_block(x)
        x = self.act1(x)
        x = self.aa(x)  # type: ignore[misc]
        x = self.conv2(x)
        x = self.bn2(x)
        if self.se is not None:
            x = self.se(x)
        return x

    def activation(self, x: Tensor) -> Tensor:
        return self.act2(x)


class TimmBottleneck(ResNetBlock, timm_resnet.Bottleneck):
    last_norm = 'bn3'
    last_activation = 'act3'
    attention = 'se'

    def branch(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.act1(x)
        x = self.conv2(x)
        x = self.bn2(x)
        x = self.drop_block(x)
        x = self.act2(x)
        x = self.aa(x)  # type: ignore[misc]
        x = self.conv3(x)
        x = self.bn3(x)
        if self.se is not None:
            x = self.se(x)
        return x

    def activation(self, x: Tensor) -> Tensor:
        return self.act3(x)


class TorchvisionBasicBlock(ResNetBlock, tv_resnet.BasicBlock):
    last_norm = 'bn2'
    last_activation = 'relu'

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))

    def activation(self, x: Tensor) -> Tensor:
        return self.relu(x)


class TorchvisionBottleneck(ResNetBlock, tv_resnet.Bottleneck):
    last_norm = 'bn3'
    last_activation = 'relu'

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))

    def activation(self, x: Tensor) -> Tensor:
        return self.relu(x)


# target layer name -> {plain block class: its stochastic class}, to be extended with blocks of your own
STOCHASTIC_LAYER_MAPPING: Dict[str, Dict[Type[nn.Module], Type[StochasticBlock]]] = {
    'ResNetBasicBlock': {
        timm_resnet.BasicBlock: TimmBasicBlock,
        tv_resnet.BasicBlock: TorchvisionBasicBlock,
    },
    'ResNetBottleneck': {
        timm_resnet.Bottleneck: TimmBottleneck,
        tv_resnet.Bottleneck: TorchvisionBottleneck,
    },
}
