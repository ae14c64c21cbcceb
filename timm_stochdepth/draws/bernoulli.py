"""Draw who is dropped: a Bernoulli variable for each sample, or for the batch."""
from typing import List, Optional, Sequence, Union

import torch
from torch import Tensor

from ..capture import refuse_recording
from .selection import Selection, select_kept

__all__ = ['Draws', 'draw_keep_block', 'draw_keep_samples', 'host_dtype']


def draw_keep_samples(x: Tensor, drop_prob: float, scale_by_keep: bool = False) -> Tensor:
    """Draw which samples of a batch keep their branch, one independent Bernoulli variable each.

    The draws are those that timm's DropPath takes at the same state of the generator.

    Args:
        x: Tensor with the batch in its first dimension, gives batch size, dtype and device.
        drop_prob: Probability that a sample is dropped, in [0, 1].
        scale_by_keep: Divide what is kept by its probability, so that the expectation is 1.

    Returns:
        keep_N, shape (N,): 0 where a sample is dropped, elsewhere 1, or 1 / (1 - drop_prob) with scale_by_keep.
    """
    keep_prob = 1. - drop_prob
    keep_N = x.new_empty((x.shape[0],)).bernoulli_(keep_prob)
    if scale_by_keep and keep_prob > 0.:
        keep_N = keep_N.div_(keep_prob)
    return keep_N


# on the CPU an operator of its own: a compiler has other random numbers than eager mode
torch.library.define(
    'timm_stochdepth::draw_keep_samples',
    '(Tensor drop_prob, SymInt num_samples, bool scale_by_keep, ScalarType dtype) -> Tensor',
    tags=(torch.Tag.nondeterministic_seeded,),
)


@torch.library.impl('timm_stochdepth::draw_keep_samples', 'cpu')
def _(drop_prob: Tensor, num_samples: int, scale_by_keep: bool, dtype: torch.dtype) -> Tensor:
    return draw_keep_samples(torch.empty((num_samples,), dtype=dtype), drop_prob.item(), scale_by_keep)


@torch.library.register_fake('timm_stochdepth::draw_keep_samples')
def _(drop_prob: Tensor, num_samples: int, scale_by_keep: bool, dtype: torch.dtype) -> Tensor:
    return torch.empty((num_samples,), dtype=dtype)


def _draw_keep_samples_at(x: Tensor, drop_prob: Tensor, scale_by_keep: bool) -> Tensor:
    """As `draw_keep_samples`, with a probability whose value may change without a new compilation."""
    if x.device.type == 'cpu':
        drawn: Tensor = torch.ops.timm_stochdepth.draw_keep_samples(drop_prob, x.shape[0], scale_by_keep, x.dtype)
        return drawn
    keep_prob = (1. - drop_prob).to(x.device, host_dtype(x), non_blocking=True)
    # not of the default type, which may be half precision: a rate is finer
    keep_N = torch.rand((x.shape[0],), dtype=torch.float32, device=x.device) < keep_prob
    if scale_by_keep:
        return torch.where(keep_N, keep_prob.reciprocal(), 0.).to(x.dtype)
    return keep_N.to(x.dtype)


def draw_keep_block(drop_prob: float) -> bool:
    """Draw whether a block keeps its branch for the whole batch.

    Drawn from the CPU's default generator: nothing is read back from a device, and gradient checkpointing, which
    restores that generator, repeats the decision.

    Args:
        drop_prob: Probability that the block is dropped, in [0, 1].
    """
    # in double precision a u in [0, 1) is below 0 never and below 1 always
    return float(torch.rand((1,), dtype=torch.float64, device='cpu')) >= drop_prob


def host_dtype(x: Tensor) -> torch.dtype:
    """The type in which the CPU draws for a tensor that may be of low precision, or elsewhere."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Draws:
    """What a drop path draws by, its attribute `draws`: here of this process alone, from PyTorch's generators.

    Put another one there to draw otherwise: to repeat draws that were noted, to count them, to keep a fixed number.
    """

    def samples(self, x: Tensor, drop_prob: Union[float, Tensor], scale_by_keep: bool = False) -> Tensor:
        """Draw the factor of each sample's branch.

        Args:
            x: Shape (N, ...), gives batch size, dtype and device.
            drop_prob: Probability that a sample is dropped, in [0, 1]; a tensor of one element in a graph that has to
                outlive a change of it.
            scale_by_keep: Divide what is kept by its probability.

        Returns:
            keep_N, shape (N,): 0 where a sample is dropped.
        """
        if isinstance(drop_prob, Tensor):
            return _draw_keep_samples_at(x, drop_prob, scale_by_keep)
        return draw_keep_samples(x, drop_prob, scale_by_keep)

    def select(self, drop_probs: Sequence[float], x: Tensor, round_up: bool = False) -> List[Selection]:
        """Draw which samples run the branches of drop paths, on the CPU: a device would have to be asked how many.

        Args:
            drop_probs: For each drop path the probability that a sample is dropped.
            x: Shape (N, ...), gives batch size, device, and type of the sums.
            round_up: Whether samples that are dropped run as well, so that there are few numbers of them.
        """
        dtype = host_dtype(x)
        like = x if x.is_cpu and x.dtype == dtype else torch.empty((x.shape[0],), dtype=dtype, device='cpu')
        if x.is_cpu and not round_up and len(drop_probs) == 1:
            kept_K = self.samples(like, drop_probs[0]).nonzero().view(-1)
            return [Selection(kept_K, kept_K.shape[0])]
        return select_kept(torch.stack([self.samples(like, p) for p in drop_probs]), x.device, x.dtype, round_up)

    def generator(self, device: torch.device) -> Optional[torch.Generator]:
        """What `select` draws from, for branches on a device; None where nobody can ask it for its state."""
        return torch.default_generator

    def batch(self, drop_prob: float) -> bool:
        """Draw whether the whole batch keeps its branch.

        Args:
            drop_prob: Probability that it does not, in [0, 1].
        """
        if torch.cuda.is_initialized():  # asked first, as each block does: one Python call
            refuse_recording('stochastic_method', 'block')
        return draw_keep_block(drop_prob)
