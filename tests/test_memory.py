"""Nothing is kept: no network and no activation, and of classes, sources and tables no more than are of use."""

import gc
import weakref

import pytest
import timm
import torch
from timm.layers import DropPath, Mlp
from torch import nn

import timm_stochdepth as ts


class Block(nn.Module):
    """What one's own blocks look like; what a subclass computes is told by `branch`."""

    def __init__(self, dim=8, rate=0.3):
        super().__init__()
        self.norm, self.mlp, self.drop_path = nn.LayerNorm(dim), Mlp(dim, dim), DropPath(rate)

    def forward(self, x, cond=None):
        y = self.norm(x)
        if cond is not None:  # an argument that nothing is known of: the branch can only be masked
            y = y + cond
        return x + self.drop_path(self.mlp(y))


def tensors_alive():
    gc.collect()
    return sum(type(o) is torch.Tensor for o in gc.get_objects())


def test_no_activation_is_kept():
    block = Block()
    ts.apply_stochastic_depth(nn.Sequential(block), 'sample', 'DropPath', None, scale_by_keep=True)
    block(torch.randn(2, 3, 8), torch.randn(2, 1, 8))
    before = tensors_alive()
    for _ in range(5):
        block(torch.randn(2, 3, 8), torch.randn(2, 1, 8)).sum().backward()
        block.zero_grad()
    assert tensors_alive() == before


def test_the_reason_is_told_anew_at_each_pass():
    block = Block()
    ts.apply_stochastic_depth(nn.Sequential(block), 'sample', 'DropPath', None, scale_by_keep=True, skip_dropped=True)
    errors = []
    for _ in range(2):
        with pytest.raises(ValueError, match='whether the first dimension of its argument cond is the batch') as e:
            block(torch.randn(2, 3, 8), torch.randn(2, 1, 8))
        errors.append(e)
    assert len(errors[0].traceback) == len(errors[1].traceback)
    assert errors[0].value is not errors[1].value


# the last two have blocks whose branches can only be masked
@pytest.mark.parametrize('name', ['test_vit', 'test_resnet', 'test_efficientnet', 'edgenext_xx_small'])
def test_a_network_is_freed(name):
    model = timm.create_model(name, drop_path_rate=0.2, num_classes=10)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, scale_by_keep=True)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
