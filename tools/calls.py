"""Count the Python calls of a block's forward in training: timm's own with its DropPath, and each mode of this package.

A count and no clock: the same on every machine. `python tools/calls.py` prints calls, and their ratio to timm's.
"""

import argparse
from typing import Any, Dict

import timm
import torch
from torch import nn

from timm_stochdepth import apply_stochastic_depth
from timm_stochdepth.bench.host import count_calls

MODES: Dict[str, Dict[str, Any]] = {
    'sample': dict(stochastic_method='sample'),
    'block': dict(stochastic_method='block'),
    'skip': dict(stochastic_method='sample', skip_dropped=True),
}
RATE, NUM_PASSES = 0.4, 50


def calls_a_block(model: nn.Module) -> float:
    """Mean number of Python calls of a forward pass through the last block, in training."""
    torch.manual_seed(0)
    block: Any = model.train().blocks[-1]
    x = torch.randn(8, 5, model.embed_dim, requires_grad=True)
    for _ in range(3):
        block(x)
    return count_calls(lambda: [block(x) for _ in range(NUM_PASSES)]) / NUM_PASSES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='test_vit', help='A ViT of timm.')
    args = parser.parse_args()
    plain = calls_a_block(timm.create_model(args.model, drop_path_rate=RATE))
    print(f'{"timm":<8}{plain:>8.1f}')
    for name, kwargs in MODES.items():
        model = timm.create_model(args.model)
        apply_stochastic_depth(model, target_layer_name='DropPath', drop_rate=RATE, scale_by_keep=True, **kwargs)
        calls = calls_a_block(model)
        print(f'{name:<8}{calls:>8.1f}{calls / plain:>8.2f}')


if __name__ == '__main__':
    main()
