"""A number of a block that the training loop sets is followed, whatever the forward makes of it."""

import copy
import math
import pickle

import pytest
import timm
import torch
from timm.layers import DropPath, Mlp
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import timm_stochdepth as ts

TABLE = {0.9: 0.5, 0.8: 2.0, '0.6': 3.0}
VALUES = [1.0, 0.9, 0.8, 0.6, 0.0, 0.8]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp, self.drop_path = nn.LayerNorm(8), Mlp(8, 8), DropPath(0.5)
        self.gain, self.other = 0.7, 0.5

    def factor(self):
        return self.gain

    def forward(self, x, power: int = 1):
        return x + self.factor() ** power * self.drop_path(self.mlp(self.norm(x)))


class Computed(Block):
    def factor(self):
        return -math.sqrt(self.gain) / (1 + 0.5 * self.gain) ** 2


class OfTwo(Block):
    def factor(self):
        return self.other * self.gain if self.other < 0.7 else self.gain


class InPlace(Block):
    def forward(self, x):
        y = self.drop_path(self.mlp(self.norm(x)))
        y *= self.gain
        return x + y


class Throughout(Block):
    def forward(self, x):
        y = self.mlp(self.norm(x) * self.gain + self.gain)
        return x * self.gain + self.drop_path(y)


class DecidesWithArgument(Block):
    def forward(self, x, power: float = None):
        factor = self.gain if power is None or self.gain > 0.85 else power
        return x + factor * self.drop_path(self.mlp(self.norm(x)))


class Decides(Block):
    def factor(self):
        return 0.25 if self.gain > 0.85 else self.gain


class DecidesByTruth(Block):
    def factor(self):
        return self.gain or 3.0


class DecidesByType(Block):
    def factor(self):
        return self.gain if isinstance(self.gain, float) else 1.0


class DecidesByTable(Block):
    def factor(self):
        return TABLE.get(self.gain, 1.0)


class DecidesByText(Block):
    def factor(self):
        return TABLE.get(f'{self.gain}', 1.0)


class Rounds(Block):
    def factor(self):
        return round(self.gain) + int(2 * self.gain)


# where the number decides nothing, and where it does
FREE = [Block, Computed, OfTwo, InPlace, Throughout, DecidesWithArgument]
DECIDED = [Decides, DecidesByTruth, DecidesByType, DecidesByTable, DecidesByText, Rounds]
METHODS = [('sample', {}), ('sample', dict(skip_dropped=True)), ('block', {})]


def network(block_class):
    torch.manual_seed(0)
    return nn.Sequential(block_class(), block_class()).double()


def apply(plain, method='sample', drop_rate=None, **settings):
    net = copy.deepcopy(plain)
    ts.apply_stochastic_depth(net, method, 'DropPath', drop_rate, 'uniform', scale_by_keep=True, **settings)
    return net


def assert_same_step(plain, net, *args):
    """Output and gradients, of the same draws."""
    outputs, gradients = [], []
    for blocks in (plain, net):
        x = torch.linspace(-1, 1, 4 * 3 * 8, dtype=torch.double).view(4, 3, 8)
        torch.manual_seed(1)
        for block in blocks:
            x = block(x, *args)
        blocks.zero_grad()
        x.square().sum().backward()
        outputs.append(x)
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in blocks.parameters()])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('method, settings', METHODS)
@pytest.mark.parametrize('block_class', FREE + DECIDED)
def test_a_number_that_changes_is_followed(block_class, method, settings):
    plain = network(block_class)
    net = apply(plain, method, 1e-12 if method == 'block' else None, **settings)
    if method == 'block':  # drops for the whole batch, which timm does not: here nothing
        for block in plain:
            block.drop_path = nn.Identity()
    net[1].gain = plain[1].gain = 0.5
    assert_same_step(plain, net)
    for step, value in enumerate(VALUES):
        for block in (*plain, *net):
            block.gain = value
            block.other = 0.5 + step / 10
        assert_same_step(plain, net)
        if block_class in (Block, DecidesWithArgument):
            assert_same_step(plain, net, 2)
        net[1].gain = plain[1].gain = 0.5  # each for itself
        assert_same_step(plain, net)


@pytest.mark.parametrize('block_class', FREE)
def test_a_number_that_decides_nothing_makes_no_class(block_class):
    block = apply(network(block_class))[0]
    classes = set()
    for step in range(20):
        block.gain = 1.0 - step / 100
        if step == 10:
            block.other = 0.9  # which decides in one of them
            classes.clear()
        classes.add(type(block))
    assert len(classes) == 1


def test_a_number_that_decides_is_tried_once():
    calls = []

    class Counted(Decides):
        def factor(self):
            calls.append(1)
            return super().factor()

    block = apply(network(Counted))[0]
    others = []
    for gain in (0.9, 0.8):
        block.gain = gain
        others.append(copy.deepcopy(block))
    calls.clear()
    block.gain = 0.9
    block.gain = 0.8
    assert not calls  # what is known of the same numbers is not traced again


class DecidesAboutValues(Block):
    def forward(self, x):
        if self.gain < 1.0 and x.sum() > 0:
            x = 2 * x
        return x + self.gain * self.drop_path(self.mlp(self.norm(x)))


def test_a_number_that_decides_about_values():
    plain = network(DecidesAboutValues)
    for block in plain:
        block.gain = 2.0
    net = apply(plain, skip_dropped=True)
    for blocks in (plain, net):
        blocks[0].gain = 0.9
    assert_same_step(plain, net)
    for blocks in (plain, net):
        blocks[0].gain = 3.0
    assert_same_step(plain, net)


@pytest.mark.parametrize('make', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_is_as_what_it_is_a_copy_of(make):
    plain = network(Block)
    net = apply(plain, skip_dropped=True)
    net[0].gain = plain[0].gain = 0.9
    copied = make(net)
    assert [type(block) for block in copied] == [type(block) for block in net]
    copied[0].gain = plain[0].gain = 0.7
    assert type(copied[0]) is type(net[0])
    assert_same_step(plain, copied)


@pytest.mark.parametrize('block_class', FREE)
def test_a_number_goes_through_folding(block_class):
    net = network(block_class)
    ts.apply_stochastic_depth(net, 'sample', 'DropPath', 0.5)
    net.eval()[1].gain = 0.6
    x = torch.randn(2, 3, 8).double()
    torch.testing.assert_close(ts.fold_stochastic_depth(net)(x), net(x))


def test_numbers_of_timms_own_blocks_are_followed():
    plain = timm.create_model('test_nfnet', drop_path_rate=0.5, num_classes=4).double()
    net = copy.deepcopy(plain)
    ts.apply_stochastic_depth(net, 'sample', 'DropPath', None, scale_by_keep=True, skip_dropped=True)
    x = torch.randn(4, 3, 32, 32).double()
    for step in range(3):
        outputs = []
        for model in (plain, net):
            for block in model.modules():
                if hasattr(block, 'alpha'):
                    block.alpha, block.beta = block.alpha + step / 10, block.beta - step / 10
            torch.manual_seed(step)
            outputs.append(model(x))
        torch.testing.assert_close(*outputs)


@pytest.mark.parametrize('method', ['sample', 'block'])
def test_a_number_that_changes_compiles_no_more_than_in_timm(method, fresh_compiler):
    def count_graphs(net):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend('eager')
        compiled = torch.compile(net, backend=counter)
        for step in range(14):
            for block in net:
                block.gain = 0.9 - step / 100
            compiled(torch.randn(4, 3, 8).double()).sum().backward()
        return counter.frame_count

    plain = network(Block)
    # in block mode two functions are compiled where there is one: a block that keeps its branch, and the branch
    assert count_graphs(apply(plain, method)) <= count_graphs(plain) * (2 if method == 'block' else 1)
