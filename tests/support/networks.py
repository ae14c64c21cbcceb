"""Small real networks, whose every layer matters to the output."""

import pytest
import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

FAMILIES = {
    'timm_basic': (BasicBlock, 'ResNetBasicBlock', 16),
    'timm_bottleneck': (Bottleneck, 'ResNetBottleneck', 4),
    'torchvision_basic': (torchvision.models.resnet.BasicBlock, 'ResNetBasicBlock', 16),
    'torchvision_bottleneck': (torchvision.models.resnet.Bottleneck, 'ResNetBottleneck', 4),
}
# what makes a ResNet-50 one of five narrow blocks
LAYERS = dict(layers=[1, 2, 1, 1], base_width=8)
ZOO = ['resnet50_sd_sample', 'resnet50_sd_block', 'resnet101_sd_sample', 'resnet101_sd_block']
ZOO_CASES = [*ZOO[:2], *(pytest.param(name, marks=pytest.mark.long) for name in ZOO[2:])]


def randomize(model):
    """Give norms, which start as the identity or as zero, random weights and statistics."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.25, 0.75)  # activations of a deep network stay in the range of float16
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


class Holder(nn.Module):
    """What holds a network, as a trainer's module or a classifier of one's own does."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


def stack(family, num_blocks=3):
    """Residual blocks with identity shortcuts on 16 channels, and the name of their target layer."""
    block, target_layer_name, planes = FAMILIES[family]
    return randomize(nn.Sequential(*[block(16, planes) for _ in range(num_blocks)])), target_layer_name


def small_resnet(name='resnet50_sd_block', **kwargs):
    return randomize(timm.create_model(name, **{**LAYERS, **kwargs})).eval()


def plain_name(name):
    return name.split('_sd_')[0]


def same_weights(model, name, **kwargs):
    """timm's or torchvision's plain model of that name, with the weights of model."""
    if name.startswith('torchvision.'):
        plain = torchvision.models.get_model(name.removeprefix('torchvision.'), weights=None, **kwargs)
    else:
        plain = timm.create_model(name, **kwargs)
    plain.load_state_dict(model.state_dict(), strict=True)
    return plain.train(model.training)


def assert_same_output(y, y_reference):
    """Equal to 1e-4 of the largest value: float32 rounding through a deep network, where single values cancel."""
    assert y.shape == y_reference.shape
    assert (y - y_reference).abs().max() <= 1e-4 * y_reference.abs().max()


def assert_same_gradients(y, y_reference, inputs, inputs_reference):
    """Equal outputs and gradients; what the reference does not use has a gradient of zero."""
    torch.testing.assert_close(y, y_reference)
    cotangent = torch.randn_like(y)
    grads = torch.autograd.grad(y, inputs, cotangent)
    grads_reference = torch.autograd.grad(y_reference, inputs_reference, cotangent, allow_unused=True)
    for grad, reference in zip(grads, grads_reference):
        torch.testing.assert_close(grad, torch.zeros_like(grad) if reference is None else reference)


def images(batch_size=4, size=64):
    return torch.randn(batch_size, 3, size, size)


def of_seed(run, seed=3):
    torch.manual_seed(seed)
    return run()


def branch_formula(state, x):
    """timm's Bottleneck branch with plain tensors, norms by the statistics of the batch."""

    def conv_norm(x, i, padding):
        x = nn.functional.conv2d(x, state[f'conv{i}.weight'], padding=padding)
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        weight, bias = (state[f'bn{i}.{n}'][None, :, None, None] for n in ('weight', 'bias'))
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    x = conv_norm(x, 1, 0).clamp(min=0)
    x = conv_norm(x, 2, 1).clamp(min=0)
    return conv_norm(x, 3, 0)


class Block(nn.Module):
    """A block of four features with a drop path that it is given."""

    def __init__(self, drop_path):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 4)
        self.drop_path = drop_path

    def forward(self, x):
        return x + self.drop_path(self.fc(self.norm(x)))
