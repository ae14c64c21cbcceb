"""The public tables of what a trace of a block cannot tell, extended with classes of one's own."""

import copy

import pytest
import timm
import torch
from torch import nn

import timm_stochdepth as ts


class PlainBlock(nn.Module):
    """A residual block without a drop path."""

    def __init__(self, dim=8):
        super().__init__()
        self.fc1, self.fc2, self.norm3 = nn.Linear(dim, 12), nn.Linear(12, dim), nn.LayerNorm(dim)
        nn.init.uniform_(self.norm3.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm3.bias)

    def forward(self, x):
        y = self.norm3(self.fc2(torch.relu(self.fc1(x))))
        y += x
        return torch.relu(y)


class DropPathBlock(PlainBlock):
    """The same with timm's drop path, by the formula."""

    def __init__(self, rate):
        super().__init__()
        self.drop_path = timm.layers.DropPath(rate)

    def forward(self, x):
        return torch.relu(x + self.drop_path(self.norm3(self.fc2(torch.relu(self.fc1(x))))))


@pytest.fixture
def with_end(monkeypatch):
    monkeypatch.setitem(ts.BRANCH_ENDS, PlainBlock, 'norm3')


def of_seed(model, x):
    torch.manual_seed(1)
    y = model(x)
    y.square().sum().backward()
    return [y, *(p.grad for p in model.parameters())]


NAME = 'test_tables.PlainBlock'
RATES = [0.0, 0.3, 0.6]


@pytest.mark.parametrize('skip_dropped', [False, True])
def test_a_line_in_the_table_gives_a_block_what_timms_drop_path_would(with_end, skip_dropped):
    plain = nn.Sequential(*[PlainBlock() for _ in RATES])
    reference = nn.Sequential(*[DropPathBlock(rate) for rate in RATES])
    reference.load_state_dict(plain.state_dict())
    plain.double(), reference.double()
    ts.apply_stochastic_depth(plain, 'sample', NAME, 0.6, scale_by_keep=True, skip_dropped=skip_dropped)
    x = torch.randn(16, 8).double()
    for found, expected in zip(of_seed(plain, x), of_seed(reference, x), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(plain.eval()(x), reference.eval()(x))


def test_its_batch_is_dropped_and_it_is_folded(with_end):
    plain = nn.Sequential(PlainBlock(), PlainBlock())
    model = copy.deepcopy(plain)
    ts.apply_stochastic_depth(model, 'block', NAME, 1.0, 'uniform')
    x = torch.randn(4, 8)
    assert torch.equal(model(x), torch.relu(x))
    ts.set_drop_rate(model, 0.4)
    folded = ts.fold_stochastic_depth(model)
    assert [type(m) for m in folded] == [PlainBlock, PlainBlock]
    torch.testing.assert_close(folded.eval()(x), model.eval()(x))
    for block in plain:  # the paper's inference, by the formula
        block.norm3.weight.data *= 0.6
        block.norm3.bias.data *= 0.6
    torch.testing.assert_close(model(x), plain.eval()(x))


def test_it_is_scripted(with_end):
    model = nn.Sequential(PlainBlock(), PlainBlock())
    ts.apply_stochastic_depth(model, 'sample', NAME, 0.5, 'uniform')
    x = torch.randn(4, 8)
    scripted = torch.jit.script(model)
    outputs = []
    for run in (scripted, model):
        torch.manual_seed(2)
        outputs.append(run(x))
    torch.testing.assert_close(*outputs)


def test_an_end_that_is_no_child_is_refused(monkeypatch):
    monkeypatch.setitem(ts.BRANCH_ENDS, PlainBlock, 'norm4')
    with pytest.raises(ValueError, match=r"BRANCH_ENDS\[PlainBlock\] must be .*'fc1', 'fc2', 'norm3', but is 'norm4'"):
        ts.apply_stochastic_depth(nn.Sequential(PlainBlock()), 'sample', NAME, 0.5)


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return x * self.gain


class GatedBlock(nn.Module):
    """Two things that are in no table: a scale after the drop path, and an argument of the batch."""

    def __init__(self):
        super().__init__()
        self.fc, self.scale, self.drop_path = nn.Linear(4, 4), Gain(), timm.layers.DropPath(0.5)

    def forward(self, x, hint):
        return x + self.scale(self.drop_path(self.fc(x * hint)))


def test_arguments_and_scales_of_ones_own(monkeypatch):
    x, hint = torch.randn(12, 4), torch.randn(12, 4)
    reference = GatedBlock()

    def skip(model):
        ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, skip_dropped=True)
        return model[0]

    with pytest.raises(ValueError, match='goes into self.scale, not into an addition'):
        skip(nn.Sequential(copy.deepcopy(reference)))
    ts.SCALING_LAYERS.append(Gain)
    try:
        with pytest.raises(ValueError, match='the first dimension of its argument hint is the batch'):
            skip(nn.Sequential(copy.deepcopy(reference)))
        monkeypatch.setitem(ts.BATCH_DIMENSIONS, 'hint', 1)
        block = skip(nn.Sequential(copy.deepcopy(reference)))
        outputs = []
        for run in (block, reference):
            torch.manual_seed(3)
            outputs.append(run(x, hint))
        torch.testing.assert_close(*outputs)
    finally:
        ts.SCALING_LAYERS.remove(Gain)


class WeightedNorm(nn.Module):
    """By a kernel of which nothing is known."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.rand(4))

    def forward(self, x):
        return torch.native_layer_norm(x, (4,), self.weight, self.bias, 1e-5)[0]


class NormedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop_path = nn.Linear(4, 4), WeightedNorm(), timm.layers.DropPath(0.5)

    def forward(self, x):
        return x + self.drop_path(self.norm(self.fc(x)))


def test_a_norm_of_ones_own_is_folded():
    model = nn.Sequential(NormedBlock())
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.5, 'uniform', scale_by_keep=False)
    with pytest.raises(ValueError, match='norm'):
        ts.fold_stochastic_depth(model)
    ts.NORM_LAYERS.append(WeightedNorm)
    try:
        folded = ts.fold_stochastic_depth(model)
    finally:
        ts.NORM_LAYERS.remove(WeightedNorm)
    x = torch.randn(3, 4)
    torch.testing.assert_close(folded.eval()(x), model.eval()(x))


class SizedBlock(nn.Module):
    """As in PVT and SegFormer: tokens, and the numbers of their rows and columns."""

    def __init__(self):
        super().__init__()
        self.conv, self.drop_path = nn.Conv2d(4, 4, 3, padding=1), timm.layers.DropPath(0.5)

    def forward(self, x, H, W):
        y = self.conv(x.transpose(1, 2).reshape(x.shape[0], -1, H, W))
        return x + self.drop_path(y.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    'settings', [dict(stochastic_method='block'), dict(stochastic_method='sample', skip_dropped=True)]
)
def test_what_says_that_an_argument_is_a_number_is_named(settings, monkeypatch):
    reference = SizedBlock()
    for name in ('H', 'W'):
        model = nn.Sequential(copy.deepcopy(reference))
        with pytest.raises(
            ValueError, match=rf"argument {name} is the batch: an entry BATCH_DIMENSIONS\['{name}'\] does"
        ):
            ts.apply_stochastic_depth(model, target_layer_name='DropPath', drop_rate=None, **settings)
        monkeypatch.setitem(ts.BATCH_DIMENSIONS, name, None)
    ts.apply_stochastic_depth(model, target_layer_name='DropPath', drop_rate=None, **settings)
    x = torch.randn(12, 6, 4)
    torch.manual_seed(3)
    y = model[0](x, 2, 3)
    torch.manual_seed(3)
    if settings['stochastic_method'] == 'sample':
        torch.testing.assert_close(y, reference(x, 2, 3))
    else:
        branch = reference.eval()(x, 2, 3) - x
        assert any(torch.allclose(y, x + factor * branch, atol=1e-5) for factor in (0.0, 2.0))
