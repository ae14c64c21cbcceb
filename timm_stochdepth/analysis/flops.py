"""Count how the operations of a network are spread over its branches, and what dropping them can save at most."""
from copy import deepcopy
from typing import Dict, Tuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..inspection import drop_paths, drop_rates
from ..layers.block import StochasticBlock
from ..layers.block_class import cuts_of

__all__ = ['block_drop_limit', 'branch_shares', 'drop_path_shares']


def drop_path_shares(model: nn.Module, input_size: Tuple[int, ...] = (3, 224, 224)) -> Dict[str, float]:
    """Share of the network's operations that each drop path's branch has, by the drop path's name.

    Counted are those of convolutions and matrix products, in a forward pass without data, of one input of that size. A
    branch that can only be masked has none: dropping it saves nothing.
    """
    meta_model = deepcopy(model).to('meta').eval()
    with FlopCounterMode(display=False) as counter:
        meta_model(torch.empty((1, *input_size), device='meta'))
    operations = {
        name.partition('.')[2]: sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}
    shares = {}
    for name, _ in drop_paths(model):
        block_name, _, drop_path = name.rpartition('.')
        block = model.get_submodule(block_name)
        branches = cuts_of(block)[0].branches if isinstance(block, StochasticBlock) else ()
        children = {
            f'{block_name}.{n}'.lstrip('.') for p, branch in branches if p == drop_path for n in branch.branch_only}
        shares[name] = sum(operations.get(child, 0) for child in children) / counter.get_total_flops()
    return shares


def branch_shares(model: nn.Module, input_size: Tuple[int, ...] = (3, 224, 224)) -> Dict[str, float]:
    """The same by the names of `drop_rates`: the branches of one block together, where they share its rate."""
    shares = drop_path_shares(model, input_size)
    return {
        name: sum(share for drop_path, share in shares.items() if name in (drop_path, drop_path.rpartition('.')[0]))
        for name in drop_rates(model)
    }


def block_drop_limit(drop_rates: Dict[str, float], shares: Dict[str, float]) -> float:
    """Expected share of the operations that is left when every block skips its branch at its rate; both by its name."""
    return 1. - sum(rate * shares[name] for name, rate in drop_rates.items())
