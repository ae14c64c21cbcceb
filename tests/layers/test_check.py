"""The comparison of a cut with the plain forward: it finds what mixes samples, and takes no rounding for it."""

import pytest
import timm
import torch
from torch import nn

import timm_stochdepth as ts


class Block(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.fc, self.scale = nn.Linear(8, 8), timm.layers.LayerScale(8, scale)
        self.drop_path = timm.layers.DropPath(0.5)

    def forward(self, x):
        return x + self.drop_path(self.scale(self.fc(x)))


class Shifted(Block):
    """Each sample is given what is another's, as a temporal shift does."""

    def forward(self, x):
        return x + self.drop_path(self.scale(self.fc(x.roll(1, 0))))


class ZeroInit(Shifted):
    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)


class Rounded(Block):
    """A kernel that rounds by the number of samples."""

    def forward(self, x):
        return x + self.drop_path(self.fc(x) * (1 + 1e-5 * len(x)))


def skipping(block):
    model = nn.Sequential(block)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, skip_dropped=True)
    return model


@pytest.mark.parametrize('block', [lambda: Shifted(1e-6), ZeroInit], ids=['scale of 1e-6', 'zeros'])
def test_a_branch_that_starts_as_nothing_is_found_to_mix_samples(block):
    model = skipping(block())
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match='a branch of some samples is not that of the batch'):
        model(torch.randn(6, 8))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_comparison_waits_for_a_batch_of_several_samples():
    model = skipping(Shifted(0.5))
    for _ in range(2):
        model(torch.randn(1, 8))
    with pytest.raises(ValueError, match='a branch of some samples is not that of the batch'):
        model(torch.randn(6, 8))


def test_rounding_is_no_difference():
    model = skipping(Rounded())
    assert model(torch.randn(6, 8)).shape == (6, 8)


def test_the_comparison_is_made_once(monkeypatch):
    calls = []
    monkeypatch.setattr('timm_stochdepth.layers.block.check_cut', check_and_note(calls))
    model = skipping(Block(0.25))
    for num_samples in (1, 1, 4, 1, 4):
        model(torch.randn(num_samples, 8))
    assert len(calls) == 2  # of the lone sample, and of several


def check_and_note(calls):
    from timm_stochdepth.layers.check import check_cut

    def check(*args, **kwargs):
        calls.append(args)
        check_cut(*args, **kwargs)

    return check
