"""What somebody puts in the place of a drop path, or takes away, counts as it does in timm."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.layers import DropPath
from timm.models import shvit
from timm.models.vision_transformer import Block
from timm.utils import reparameterize_model
from torch import nn

import timm_stochdepth as ts

METHODS = {
    'mask': dict(stochastic_method='sample'),
    'skip': dict(stochastic_method='sample', skip_dropped=True),
    'block': dict(stochastic_method='block'),
}


def vit(drop_path_rate=0.4):
    torch.manual_seed(0)
    sizes = dict(img_size=32, depth=3, embed_dim=24, num_heads=2, num_classes=5)
    return timm.create_model('vit_tiny_patch16_224', drop_path_rate=drop_path_rate, **sizes)


def set_rate(block):
    """As lightly's update_drop_path_rate does it (https://github.com/lightly-ai/lightly/pull/1592)."""
    block.drop_path1, block.drop_path2 = DropPath(0.2), DropPath(0.2)


def turn_off(block):
    block.drop_path1, block.drop_path2 = nn.Identity(), nn.Identity()


@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize('change', [set_rate, turn_off])
def test_what_is_put_there_counts(change, name):
    plain, model = vit(), vit()
    ts.apply_stochastic_depth(model, target_layer_name='DropPath', drop_rate=None, scale_by_keep=True, **METHODS[name])
    x = torch.randn(6, 3, 32, 32)
    model.train()(x)
    teacher = copy.deepcopy(model).eval()
    expected = teacher(x)
    for network in (plain, model):
        for block in network.blocks:
            change(block)
    for is_training in (True, False):
        torch.manual_seed(1)
        y = plain.train(is_training)(x)
        torch.manual_seed(1)
        torch.testing.assert_close(model.train(is_training)(x), y)
    torch.testing.assert_close(teacher(x), expected)  # the copy that was made before is its own
    assert not ts.drop_rates(model)


@pytest.mark.parametrize('name', METHODS)
def test_one_of_two_that_is_put_there_leaves_the_other_one(name):
    model = vit()
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, scale_by_keep=True)
    ts.apply_stochastic_depth(
        model, target_layer_name='DropPath', drop_rate=1.0, drop_distribution='uniform', **METHODS[name]
    )
    for block in model.blocks:
        block.drop_path1 = nn.Identity()
    x = torch.randn(2, 5, 24)
    for block in model.train().blocks:
        torch.testing.assert_close(block(x), x + block.ls1(block.attn(block.norm1(x))))


@pytest.mark.parametrize('is_scripted', [False, True])
def test_a_batch_that_is_masked_gives_gradients_of_zero(is_scripted):
    """Where a block has a forward of its own, and in TorchScript: DistributedDataParallel waits for a gradient."""
    model = vit()
    ts.apply_stochastic_depth(model, 'block', 'DropPath', 1.0, 'uniform', scale_by_keep=True)
    for block in model.blocks if not is_scripted else ():
        block.forward = lambda x, block=block, **kwargs: x + block.drop_path2(block.mlp(block.norm2(x)))
    (torch.jit.script(model) if is_scripted else model)(torch.randn(2, 3, 32, 32)).sum().backward()
    parameters = model.blocks[1].parameters() if is_scripted else model.blocks[1].mlp.parameters()
    assert not any(p.grad.any() for p in parameters)


@pytest.mark.parametrize(
    'network, name',
    [
        *(('repvgg_a0', name) for name in METHODS),
        ('mobileone_s0', 'mask'),  # its stem can only mask
        *(pytest.param('fastvit_t8', name, marks=pytest.mark.long) for name in METHODS),
    ],
)
def test_a_reparameterized_network_is_the_function_that_it_was(network, name):
    """timm deletes drop paths there (https://github.com/huggingface/pytorch-image-models/pull/1202)."""
    torch.manual_seed(0)
    model = timm.create_model(network, num_classes=5, drop_path_rate=0.3)
    ts.apply_stochastic_depth(model, target_layer_name='DropPath', drop_rate=None, scale_by_keep=True, **METHODS[name])
    x = torch.randn(2, 3, 64, 64)
    model.train()(x)
    with torch.no_grad():
        y = model.eval()(x)
        reparameterized = reparameterize_model(copy.deepcopy(model)).eval()
        torch.testing.assert_close(reparameterized(x), y, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(reparameterized.train().eval()(x), y, rtol=1e-3, atol=1e-3)


def test_a_block_that_is_fused_into_one_layer_is_the_function_that_it_was():
    """timm's shvit adds the identity to the weights of a convolution, and knows no drop path there."""
    torch.manual_seed(0)
    plain = nn.Sequential(shvit.Residual(shvit.Conv2dNorm(8, 8, 3, 1, 1, groups=8))).eval()
    x = torch.randn(2, 8, 6, 6)
    model = copy.deepcopy(plain)
    ts.apply_stochastic_depth(model, 'sample', 'ResidualBlock', 0.4, 'uniform', scale_by_keep=True)
    torch.testing.assert_close(reparameterize_model(model)(x), plain(x))
    ts.apply_stochastic_depth(model, 'sample', 'ResidualBlock', 0.4, 'uniform')
    with pytest.raises(ValueError, match='must not scale its branch at inference .* fold_stochastic_depth'):
        reparameterize_model(model)
    fused = reparameterize_model(ts.fold_stochastic_depth(model))
    assert isinstance(fused[0], nn.Conv2d)
    torch.testing.assert_close(fused(x), model.eval()(x))


class Others(nn.Module):
    """Has a forward that somebody gives timm's class, as tools for token merging and relevance maps do."""

    def forward(self, x, attn_mask=None, is_causal=False):
        x = x + self.drop_path1(2 * self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(3 * self.ls2(self.mlp(self.norm2(x))))


@pytest.mark.parametrize('is_before', [True, False])
@pytest.mark.parametrize('name', METHODS)
def test_a_forward_that_timms_class_is_given_counts(name, is_before, monkeypatch):
    """Before stochastic depth is applied, another network having had it with timm's own forward, and afterwards."""
    plain, model, before = vit(), vit(), vit()
    settings = dict(target_layer_name='DropPath', drop_rate=None, scale_by_keep=True, **METHODS[name])
    ts.apply_stochastic_depth(model if not is_before else before, **settings)
    x = torch.randn(6, 3, 32, 32)
    model(x)
    monkeypatch.setattr(Block, 'forward', Others.forward)
    if is_before:
        ts.apply_stochastic_depth(model, **settings)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    if name != 'block':  # drops other samples than timm
        torch.manual_seed(1)
        y = plain.train()(x)
        torch.manual_seed(1)
        torch.testing.assert_close(model.train()(x), y)
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    monkeypatch.undo()
    torch.testing.assert_close(before.eval()(x), model.eval()(x) if not is_before else vit().eval()(x))


def test_a_forward_that_mixes_the_samples_is_refused_in_timms_class_too(monkeypatch):
    def forward(self, x, attn_mask=None, is_causal=False):
        return x + self.drop_path1(self.attn(self.norm1(x)) - x.mean(0))

    monkeypatch.setattr(Block, 'forward', forward)
    model = vit()
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.5, skip_dropped=True)
    with pytest.raises(ValueError, match='a branch of some samples is not that of the batch'):
        model(torch.randn(6, 3, 32, 32))


@pytest.mark.filterwarnings('ignore:The network has been trained')
def test_a_forward_without_a_drop_path_of_its_own_is_asked_to_be_converted_again(monkeypatch):
    """Nothing in it says where its branch ends."""
    model = torchvision.models.resnet18(num_classes=3)
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBasicBlock', 0.5)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return 2 * y + (x if self.downsample is None else self.downsample(x))

    monkeypatch.setattr(torchvision.models.resnet.BasicBlock, 'forward', forward)
    with pytest.raises(RuntimeError, match='another forward since .* call apply_stochastic_depth again'):
        model(torch.randn(2, 3, 32, 32))
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBasicBlock', 1.0, 'uniform', scale_by_keep=True)
    x = torch.randn(2, 3, 32, 32)
    y = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    torch.testing.assert_close(model.layer1(y), y)  # all is dropped
