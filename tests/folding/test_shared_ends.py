"""Ends of branches whose weights are used elsewhere, too: a factor on them would be one there."""

import pytest
import torch
from networks import assert_same_output
from own_ends import Block, Own, applied
from torch import nn

import timm_stochdepth as ts


class LayerTwice(Own):
    def forward(self, x):
        return self.fc(torch.tanh(self.fc(x)))


class ScaleTwice(Own):
    def forward(self, x):
        return self.scale * torch.tanh(self.fc(self.scale * x))


class Tied(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self[2].weight = self[0].weight


class LayerTwiceInSequence(nn.Sequential):
    def __init__(self):
        fc = nn.Linear(4, 4)
        super().__init__(fc, nn.Tanh(), fc)


class TwiceInBlock(Block):
    def forward(self, x):
        return x + self.drop_path(self.end(torch.relu(self.end(x))))


class TiedToShortcut(Block):
    def __init__(self, end):
        super().__init__(end)
        self.end.weight = self.fc.weight

    def forward(self, x):
        return self.fc(x) + self.drop_path(self.end(torch.relu(x)))


USED_TWICE = [
    *((Block, end) for end in (LayerTwice, ScaleTwice, Tied, LayerTwiceInSequence)),
    (TwiceInBlock, nn.LayerNorm),
    (TiedToShortcut, nn.Linear),
]


@pytest.mark.filterwarnings('ignore:The network has been trained')
@pytest.mark.parametrize('block, end', USED_TWICE)
def test_an_end_that_is_used_elsewhere_in_its_block_is_refused(block, end):
    sizes = {nn.LayerNorm: (4,), nn.Linear: (4, 4)}.get(end, ())
    with pytest.raises(ValueError, match=r'^0.* must have weights of its own at the end of its branch to be folded'):
        ts.fold_stochastic_depth(applied(end(*sizes), block))


@pytest.mark.filterwarnings('ignore:The network has been trained')
@torch.no_grad()
def test_an_end_that_is_used_twice_at_the_end_is_scaled_once():
    class Sum(Own):
        def forward(self, x):
            return self.fc(x) + self.fc(x.flip(1))

    model, x = applied(Sum()), torch.randn(3, 4)
    assert_same_output(ts.fold_stochastic_depth(model)(x), model(x))


@pytest.mark.parametrize('is_tied', [False, True])
def test_an_end_that_is_shared_with_a_block_of_another_rate_is_refused(is_tied):
    """The first block is never dropped, with the linear rates that are the default."""
    ends = [nn.Linear(4, 4) for _ in range(2)]
    if is_tied:
        ends[1].weight = ends[0].weight
    else:
        ends[1] = ends[0]
    model = nn.Sequential(*map(Block, ends))
    message = r'1.drop_path must have weights of its own .* shares them with 0'
    with pytest.raises(ValueError, match=message):
        ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.5, keep_function=True)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.5)
    with pytest.raises(ValueError, match=message):
        ts.fold_stochastic_depth(model)


def test_a_block_that_runs_twice_is_folded():
    block = Block(nn.Linear(4, 4))
    model, x = nn.ModuleDict(dict(first=nn.Sequential(block, nn.Tanh(), block), again=block)).eval(), torch.randn(3, 4)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.5, 'uniform')
    folded = ts.fold_stochastic_depth(model)
    assert_same_output(folded['again'](folded['first'](x)), model['again'](model['first'](x)))
