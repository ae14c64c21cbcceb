"""Draws by which a number of samples runs each branch that never changes."""
from functools import lru_cache
from typing import Any, List, Optional, Sequence, Union

import torch
from torch import Tensor

from .bernoulli import Draws
from .selection import Selection

__all__ = ['FixedDraws', 'keep_steps', 'select_fixed']

# in which a rate counts for the number of samples: in binary, 10 times 0.6 is no whole number
STEPS = 10 ** 9


class FixedDraws(Draws):
    """Of a batch of N samples K = ceil(N (1 - drop_prob)) run the branch, the last of them to be dropped at random.

    It counts with the probability that makes each sample's rate exact. Which samples they are is a random permutation,
    drawn on their device: the sizes are known beforehand, and nothing is read back. Within a batch the draws are not
    independent. DINOv2 (https://github.com/facebookresearch/dinov2, layers/block.py) runs int(N (1 - drop_prob)) and
    scales by what has run, with which the rate of a sample is another one.
    """

    def samples(self, x: Tensor, drop_prob: Union[float, Tensor], scale_by_keep: bool = False) -> Tensor:
        num_samples = x.shape[0]
        keep_prob = 1. - drop_prob
        if isinstance(keep_prob, Tensor):
            keep_prob = keep_prob.to(x.device, torch.float32, non_blocking=True)
        # of the default type, which may be half precision, uniform numbers would be too few
        rank_N = torch.rand(num_samples, dtype=torch.float32, device=x.device).argsort().argsort()
        # the number of those that are kept: whole, and in the mean num_samples * keep_prob
        num_kept = torch.floor(num_samples * keep_prob + torch.rand(1, dtype=torch.float32, device=x.device))
        keep_N = (rank_N < num_kept).to(x.dtype)
        if not scale_by_keep:
            return keep_N
        if isinstance(keep_prob, Tensor):
            return torch.where(keep_prob > 0., keep_N / keep_prob, keep_N).to(x.dtype)
        return keep_N / keep_prob if keep_prob > 0. else keep_N

    def select(self, drop_probs: Sequence[float], x: Tensor, round_up: bool = False) -> List[Selection]:
        return select_fixed([keep_steps(p) for p in drop_probs], x)

    def generator(self, device: torch.device) -> Optional[torch.Generator]:
        if device.type == 'cpu':
            return super().generator(device)
        # not every device has them where its module says
        generators: Sequence[torch.Generator] = getattr(getattr(torch, device.type, None), 'default_generators', ())
        return generators[device.index] if generators else None


def keep_steps(drop_prob: float) -> int:
    """The probability that a sample is kept, as a number of steps of 1e-9."""
    return STEPS - round(drop_prob * STEPS)


def select_fixed(steps: Sequence[int], x: Tensor) -> List[Selection]:
    """Draw which samples run, a number that is known beforehand.

    Args:
        steps: For each of P drop paths `keep_steps` of its rate; whole numbers are what a compiler makes constants of.
        x: Shape (N, ...), gives batch size, device, and type of the sums.
    """
    num_samples, device = x.shape[0], x.device
    kept = [num_samples * s for s in steps]  # in the mean, as steps
    nums_run = [-(-k // STEPS) for k in kept]
    nums_sure = [k // STEPS for k in kept]
    last_probs = [k % STEPS / STEPS for k in kept]
    highest = [max(num_run - 1, 0) for num_run in nums_run]
    sure: Any = nums_sure[0]
    last_prob: Any = last_probs[0]
    row: Any = highest[0]
    if len(steps) > 1:
        # what is made under a mode, one of fake tensors for instance, is of no use outside
        columns = _columns.__wrapped__ if torch._C._len_torch_dispatch_stack() else _columns
        sure, last_prob, row = columns(tuple(nums_sure), tuple(last_probs), tuple(highest), device)
    # one by one: what drop paths draw together is what they draw alone
    uniform = torch.stack([torch.rand(num_samples + 1, dtype=torch.float32, device=device) for _ in steps])
    order_PN = uniform[:, 1:].argsort(dim=1)
    rank_PN = order_PN.argsort(dim=1)
    is_kept_PN = rank_PN < sure + (uniform[:, :1] < last_prob)
    rows, masks = rank_PN.clamp(max=row).unbind(0), is_kept_PN.to(x.dtype).unbind(0)
    runs = [order_N[:num_run] for order_N, num_run in zip(order_PN.unbind(0), nums_run)]
    return list(map(Selection, runs, nums_sure, rows, masks))


@lru_cache(maxsize=16)
def _columns(*columns: Any) -> List[Tensor]:
    *values, device = columns
    dtypes = torch.int64, torch.float32, torch.int64
    return [torch.tensor(column, dtype=dtype, device=device)[:, None] for column, dtype in zip(values, dtypes)]
