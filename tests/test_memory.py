"""Nothing is kept: no network and no activation, and of classes, sources and tables no more than are of use."""

import copy
import gc
import linecache
import sys
import types
import weakref
from itertools import product

import pytest
import timm
import torch
from timm.layers import DropPath, Mlp
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import BasicBlock
from torch import nn

import timm_stochdepth as ts

SETTINGS = [('sample', {}), ('sample', dict(skip_dropped=True)), ('block', {})]


class Block(nn.Module):
    """A block of one's own; subclasses say what their branch is multiplied with."""

    def __init__(self, dim=8, rate=0.3):
        super().__init__()
        self.norm, self.mlp, self.drop_path = nn.LayerNorm(dim), Mlp(dim, dim), DropPath(rate)

    def forward(self, x, cond=None):
        y = self.norm(x)
        if cond is not None:  # an argument that nothing is known of: the branch can only be masked
            y = y + cond
        return x + self.gain() * self.drop_path(self.mlp(y))

    def gain(self):
        return 1.0


class ConfiguredBlock(Block):
    def __init__(self, gain=0.5):
        super().__init__()
        self.config = {'gain': gain, 'layers': [1, {2, 3}]}

    def gain(self):
        return self.config.get('gain', 1.0)


class GainBlock(Block):
    def __init__(self):
        super().__init__()
        self.gain_now = 1.0

    def gain(self):
        return self.gain_now


def apply(model, method='sample', **settings):
    ts.apply_stochastic_depth(model, method, 'DropPath', None, scale_by_keep=True, **settings)
    return model


def alive(kind):
    gc.collect()
    return sum(isinstance(o, kind) for o in gc.get_objects())


def test_no_activation_is_kept():
    block = Block()
    apply(nn.Sequential(block))
    block(torch.randn(2, 3, 8), torch.randn(2, 1, 8))
    before = alive(torch.Tensor)
    for _ in range(5):
        block(torch.randn(2, 3, 8), torch.randn(2, 1, 8)).sum().backward()
        block.zero_grad()
    assert alive(torch.Tensor) <= before  # what earlier tests have left may go


def test_the_reason_is_told_anew_at_each_pass():
    block = Block()
    apply(nn.Sequential(block), skip_dropped=True)
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
    model = weakref.ref(model)
    gc.collect()
    assert model() is None


def test_a_network_is_freed_that_was_a_global_beside_its_class():
    script = types.ModuleType('script')
    sys.modules['script'] = script
    try:
        exec(
            'from torch import nn\n'
            'from timm.layers import DropPath\n'
            'class Block(nn.Module):\n'
            '    def __init__(self):\n'
            '        super().__init__()\n'
            '        self.fc, self.drop_path = nn.Linear(4, 4), DropPath(0.5)\n'
            '    def forward(self, x):\n'
            '        return x + self.drop_path(self.fc(x))\n'
            'net = nn.Sequential(Block())\n',
            vars(script),
        )
        apply(script.net)
        net = weakref.ref(script.net)
        del script.net
        gc.collect()
        assert net() is None
    finally:
        del sys.modules['script']


def local_block():
    class LocalBlock(ConfiguredBlock):
        pass

    return LocalBlock()


NETWORKS = {
    'resnet': lambda: timm.models.ResNet(BasicBlock, (1, 1, 1, 1), 4, channels=(8,) * 4, drop_path_rate=0.3),
    'vit': lambda: timm.models.VisionTransformer(
        16, 8, num_classes=4, embed_dim=8, depth=2, num_heads=2, drop_path_rate=0.3
    ),
    'efficientnet': lambda: EfficientNet(
        decode_arch_def([['ds_r1_k3_s1_e1_c8'], ['ir_r2_k3_s1_e2_c8_se0.25'], ['er_r2_k3_s1_e2_c8']]),
        num_classes=4,
        num_features=16,
        stem_size=8,
        drop_path_rate=0.3,
    ),
    'dict': lambda: nn.Sequential(ConfiguredBlock(), ConfiguredBlock()),
    'number': lambda: nn.Sequential(GainBlock(), GainBlock()),
    'local': lambda: nn.Sequential(local_block(), local_block()),
}


def live_through(make, method, settings):
    """What a network goes through, and weak references to all that it was."""
    model = make()
    try:
        apply(model, method, **settings)
    except ValueError:  # branches that can only be masked
        apply(model)
    x = torch.randn(4, 3, 16, 16) if hasattr(model, 'num_classes') else torch.randn(4, 3, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    early_copy = copy.deepcopy(model)
    for step in range(2):
        for block in model.modules():
            if isinstance(block, GainBlock):
                block.gain_now = 1.0 - step / 10
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    late_copy = copy.deepcopy(model)
    folded = ts.fold_stochastic_depth(model)
    for network in (early_copy, late_copy, folded):
        network.eval()(x)
    return [weakref.ref(network) for network in (model, early_copy, late_copy, folded)]


def sizes():
    """How much there is of what the package could keep."""
    for _ in range(3):  # a class goes after what was made of it
        gc.collect()
    kinds = {'classes': type, 'modules': nn.Module, 'tensors': torch.Tensor, 'graphs': torch.fx.Graph}
    objects = gc.get_objects()
    counts = {name: sum(isinstance(o, kind) for o in objects) for name, kind in kinds.items()}
    counts['sources'] = len(linecache.cache)
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith('timm_stochdepth'):
            for name, value in vars(module).items():
                if hasattr(value, 'cache_info'):
                    counts[f'{module_name}.{name}'] = value.cache_info().currsize
                elif hasattr(value, '__len__') and not isinstance(value, type):
                    counts[f'{module_name}.{name}'] = len(value)
    return counts


@pytest.mark.long
def test_a_hundred_networks_leave_no_more_than_a_few():
    references = []
    for number in range(6):
        for make, (method, settings) in product(NETWORKS.values(), SETTINGS):
            references += live_through(make, method, settings)
        if number == 1:
            before = sizes()
    after = sizes()
    # what earlier tests have left may go
    assert {name: size - before.get(name, 0) for name, size in after.items() if size > before.get(name, 0)} == {}
    assert len(references) == 4 * 108
    assert not any(reference() for reference in references)


def test_blocks_of_one_shape_share_a_class():
    net = apply(nn.Sequential(ConfiguredBlock(), ConfiguredBlock(), ConfiguredBlock(gain=0.7)))
    assert {type(block) for block in (*net, *copy.deepcopy(net))} == {type(net[0])}


class PowerBlock(ConfiguredBlock):
    def forward(self, x, power: int = 1):
        return x + self.gain() ** power * self.drop_path(self.mlp(self.norm(x)))


def test_what_is_changed_in_a_dictionary_changes_no_other_block():
    net = nn.Sequential(PowerBlock(), PowerBlock())
    ts.apply_stochastic_depth(net, 'sample', 'DropPath', 0.2, 'uniform')
    changed, other = net.eval()
    x = torch.randn(2, 3, 8)
    for block in net:
        torch.testing.assert_close(block(x), x + 0.8 * 0.5 * block.mlp(block.norm(x)))
    changed.config['gain'] = 0.7
    torch.testing.assert_close(changed(x, 2), x + 0.8 * 0.7**2 * changed.mlp(changed.norm(x)))
    torch.testing.assert_close(other(x, 2), x + 0.8 * 0.5**2 * other.mlp(other.norm(x)))
    for block in (changed, copy.deepcopy(changed)):
        torch.testing.assert_close(block(x), x + 0.8 * 0.7 * changed.mlp(changed.norm(x)))
