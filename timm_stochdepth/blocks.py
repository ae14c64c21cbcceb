"""Residual blocks with stochastic depth.

A residual block computes `y = act(shortcut(x) + branch(x))`. Stochastic depth changes how the branch takes part, and
nothing else: parameters, buffers and their names stay those of the plain block, whose class is a base of ours.
`StochasticBlock` draws and combines; a block family below it says what its shortcut, branch, activation and last
norm are.
"""
from typing import TYPE_CHECKING, Any, Dict, List, Tuple, Type

import timm.models.resnet as timm_resnet
import torch
import torchvision.models.resnet as tv_resnet
from torch import Tensor, fx, nn

from .functional import add_branch, add_masked_branch, draw_keep_block, draw_keep_samples, skip_branch
from .rates import DISTRIBUTIONS, check_choice, check_flag, check_fraction, warmup_scale

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
    A family defines `shortcut`, `branch` and `activation`, and names its `last_norm`.

    Attributes:
        drop_prob: The probability in force, that the branch of a sample (or of the batch) is dropped.
    """
    # child whose weight and bias scale the branch, fold_stochastic_depth puts the rate there
    last_norm: str
    # child that follows the last norm in the branch, if it is not None in the block
    attention: str = ''
    # children of the shortcut, all others are the branch's or have no parameters
    shortcut_modules: Tuple[str, ...] = ()

    stochastic_method: str
    drop_distribution: str
    drop_rate: float
    depth_scale: float
    drop_warmup: float
    progress: float
    use_same_gpu_seed: bool
    scale_by_keep: bool
    drop_prob: float

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
        """
        self.stochastic_method = check_choice('stochastic_method', stochastic_method, METHODS)
        self.drop_distribution = check_choice('drop_distribution', drop_distribution, DISTRIBUTIONS)
        self.drop_warmup = check_fraction('drop_warmup', drop_warmup)
        self.use_same_gpu_seed = check_flag('use_same_gpu_seed', use_same_gpu_seed)
        self.scale_by_keep = check_flag('scale_by_keep', scale_by_keep)
        self.depth_scale = depth_scale
        self.set_rate(drop_rate, progress=1.)

    @torch.jit.unused
    def set_rate(self, drop_rate: float, progress: float) -> None:
        """Set the drop rate of the whole network, and how far training is; both in [0, 1]."""
        self.drop_rate = check_fraction('drop_rate', drop_rate)
        self.progress = check_fraction('progress', progress)
        self.drop_prob = self.drop_rate * self.depth_scale * warmup_scale(self.progress, self.drop_warmup)

    @torch.jit.unused
    def restore_plain_class(self) -> None:
        """Become the plain block again, settings forgotten, weights as they are."""
        for name in list(vars(self)):
            if name in StochasticBlock.__annotations__:
                delattr(self, name)
        plain_class: Any = next(c for c in type(self).__mro__ if not issubclass(c, StochasticBlock))
        self.__class__ = plain_class

    def shortcut(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def activation(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def draw_samples(self, x: Tensor) -> Tensor:
        """Draw keep_N, the factor of each sample's branch in a batch like x."""
        return draw_keep_samples(x, self.drop_prob, self.scale_by_keep)

    def draw_block(self) -> bool:
        """Draw whether the whole batch keeps its branch."""
        return draw_keep_block(self.drop_prob)

    @torch.jit.unused
    def branch_parameters(self) -> List[nn.Parameter]:
        """Parameters that only the branch uses."""
        return [p for n, p in self.named_parameters() if n.split('.')[0] not in self.shortcut_modules]

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if isinstance(x, fx.Proxy):
                # a leaf for every tracer, whether it knows this class or not: no decision is frozen into a graph
                return x.tracer.create_proxy('call_module', x.tracer.path_of_module(self), (x,), {})
        if self.training and self.stochastic_method == 'block':
            return self._forward_block(x)
        if self.drop_prob == 0. or (self.scale_by_keep and not self.training):
            return self._forward_plain(x)
        shortcut = self.shortcut(x)
        branch = self.branch(x)
        if self.training:
            y = add_masked_branch(shortcut, branch, self.draw_samples(branch))
        else:
            y = add_branch(shortcut, branch, 1. - self.drop_prob)
        return self.activation(y)

    def _forward_plain(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # which knows no super()
            return self.activation(self.shortcut(x) + self.branch(x))
        else:
            return super().forward(x)

    def _forward_block(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.:
            return self._forward_plain(x)
        if self.draw_block():
            if not self.scale_by_keep:
                return self._forward_plain(x)
            return self.activation(add_branch(self.shortcut(x), self.branch(x), 1. / (1. - self.drop_prob)))
        shortcut = self.shortcut(x)
        if torch.jit.is_scripting():
            return self.activation(shortcut.clone())
        else:
            return self.activation(skip_branch(shortcut, self.branch_parameters()))

    def extra_repr(self) -> str:
        return f'stochastic_method={self.stochastic_method!r}, drop_prob={round(self.drop_prob, 3):0.3f}'


class ResNetBlock(StochasticBlock):
    """What the blocks of timm's and torchvision's ResNets share: the shortcut."""
    shortcut_modules = ('downsample',)

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)


class TimmBasicBlock(ResNetBlock, timm_resnet.BasicBlock):
    last_norm = 'bn2'
    attention = 'se'

    def branch(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.drop_block(x)
        x = self.act1(x)
        x = self.aa(x)
        x = self.conv2(x)
        x = self.bn2(x)
        if self.se is not None:
            x = self.se(x)  # type: ignore[misc]
        return x

    def activation(self, x: Tensor) -> Tensor:
        return self.act2(x)


class TimmBottleneck(ResNetBlock, timm_resnet.Bottleneck):
    last_norm = 'bn3'
    attention = 'se'

    def branch(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.act1(x)
        x = self.conv2(x)
        x = self.bn2(x)
        x = self.drop_block(x)
        x = self.act2(x)
        x = self.aa(x)
        x = self.conv3(x)
        x = self.bn3(x)
        if self.se is not None:
            x = self.se(x)  # type: ignore[misc]
        return x

    def activation(self, x: Tensor) -> Tensor:
        return self.act3(x)


class TorchvisionBasicBlock(ResNetBlock, tv_resnet.BasicBlock):
    last_norm = 'bn2'

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))

    def activation(self, x: Tensor) -> Tensor:
        return self.relu(x)


class TorchvisionBottleneck(ResNetBlock, tv_resnet.Bottleneck):
    last_norm = 'bn3'

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
