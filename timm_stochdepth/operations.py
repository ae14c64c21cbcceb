"""How the operations of a network are spread over its branches, and what dropping them can save at most."""
from copy import deepcopy
from typing import Dict, Tuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .surgery import stochastic_blocks

__all__ = ['block_drop_limit', 'branch_shares']


def branch_shares(model: nn.Module, input_size: Tuple[int, ...] = (3, 224, 224)) -> Dict[str, float]:
    """Share of the network's operations that each stochastic block's branch has, by module name.

    Counted are those of convolutions and matrix products, in a forward pass without data.

    Args:
        model: Model with stochastic blocks.
        input_size: Shape of one input, without the batch.
    """
    meta_model = deepcopy(model).to('meta').eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta_model(torch.empty((1, *input_size), device='meta'))
    operations = {
        name.partition('.')[2]: sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}
    total = counter.get_total_flops()
    return {
        name: (operations[name] - sum(operations.get(f'{name}.{m}', 0) for m in block.shortcut_modules)) / total
        for name, block in stochastic_blocks(model)
    }


def block_drop_limit(drop_rates: Dict[str, float], shares: Dict[str, float]) -> float:
    """Expected share of the operations that is left when every block skips its branch at its rate.

    Args:
        drop_rates: Rate of each block, by module name.
        shares: Share of the operations of each block's branch, by module name.
    """
    return 1. - sum(rate * shares[name] for name, rate in drop_rates.items())
