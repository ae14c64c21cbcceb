"""Draw who is dropped: a Bernoulli variable for each sample, or for the batch."""
import torch
from torch import Tensor

__all__ = ['draw_keep_block', 'draw_keep_samples', 'draw_keep_samples_at', 'host_dtype']


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


def draw_keep_samples_at(x: Tensor, keep_prob: Tensor, scale_by_keep: bool = False) -> Tensor:
    """As `draw_keep_samples`, with the probability in a tensor, whose value may change without a new compilation.

    Args:
        x: Tensor with the batch in its first dimension, gives batch size, dtype and device.
        keep_prob: Probability that a sample is kept, shape (), on any device.
        scale_by_keep: Divide what is kept by its probability.
    """
    keep_prob = keep_prob.to(x.device, non_blocking=True)
    keep_N = torch.rand((x.shape[0],), device=x.device) < keep_prob
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
