"""Blocks of timm without a drop path: act(shortcut + b * branch), by the formula, in every class of the table."""

import copy

import pytest
import torch
from timm.models import (
    convmixer,
    dla,
    efficientvit_mit,
    efficientvit_msra,
    ghostnet,
    lcnetv2,
    repghost,
    repvit,
    resnet,
    senet,
    shvit,
)
from timm.models.inception_resnet_v2 import Block8, Block17, Block35
from timm.models.xception import Block as XceptionBlock
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import timm_stochdepth as ts
from timm_stochdepth.draws.bernoulli import Draws

pytestmark = pytest.mark.filterwarnings('ignore:The network has been trained')


def with_norm(layer):
    return nn.Sequential(layer, nn.BatchNorm2d(8))


def downsample():
    return with_norm(nn.Conv2d(8, 8, 1, bias=False))


def same(block, x):
    return x


def by_its_child(block, x):
    return block.shortcut(x)


def of_xception(block, x):
    return x if block.skip is None else block.skipbn(block.skip(x))


def of_senet(block, x):
    return x if block.downsample is None else block.downsample(x)


def of_repvit(block, x):
    return block.se(block.token_mixer(x))


def repvit_downsample():
    block = repvit.RepVitDownsample(8, 2, 12, 3, act_layer=nn.GELU)
    block.pre_block = nn.Identity()  # which is another block of the table
    return block


def of_repvit_downsample(block, x):
    return block.channel_downsample(block.spatial_downsample(x))


# a block of 8 channels, the child that its branch ends in, its shortcut, whether a ReLU follows the sum
BLOCKS = {
    'convmixer.Residual': (lambda: convmixer.Residual(with_norm(nn.Conv2d(8, 8, 3, padding=1))), 'fn', same, False),
    'dla.DlaBasic': (lambda: dla.DlaBasic(8, 8), 'bn2', same, True),
    'dla.DlaBottleneck': (lambda: dla.DlaBottleneck(8, 8), 'bn3', same, True),
    'dla.DlaBottle2neck': (lambda: dla.DlaBottle2neck(8, 8, cardinality=2, base_width=16), 'bn3', same, True),
    'efficientvit_mit.ResidualBlock': (
        lambda: efficientvit_mit.ResidualBlock(
            efficientvit_mit.LiteMLA(8, 8, dim=4, norm_layer=(None, nn.BatchNorm2d)), nn.Identity()
        ),
        'main',
        by_its_child,
        False,
    ),
    'efficientvit_msra.ResidualDrop': (
        lambda: efficientvit_msra.ResidualDrop(efficientvit_msra.ConvMlp(8, 16)),
        'm',
        same,
        False,
    ),
    'ghostnet.GhostBottleneck': (lambda: ghostnet.GhostBottleneck(8, 16, 8), 'ghost2', by_its_child, False),
    'ghostnet.GhostBottleneck, strided': (
        lambda: ghostnet.GhostBottleneck(8, 16, 12, stride=2, se_ratio=0.25, mode='attn'),
        'ghost2',
        by_its_child,
        False,
    ),
    'ghostnet.GhostBottleneckV3': (
        lambda: ghostnet.GhostBottleneckV3(8, 16, 8, mode='shortcut'),
        'ghost2',
        by_its_child,
        False,
    ),
    'ghostnet.GhostBottleneckV3, strided': (
        lambda: ghostnet.GhostBottleneckV3(8, 16, 12, stride=2),
        'ghost2',
        by_its_child,
        False,
    ),
    'lcnetv2.RepDepthwiseSeparable': (
        lambda: lcnetv2.RepDepthwiseSeparable(8, 8, use_rep=True, use_se=True, use_shortcut=True),
        'pw_conv',
        same,
        False,
    ),
    'repghost.RepGhostBottleneck': (
        lambda: repghost.RepGhostBottleneck(8, 16, 12, stride=2, se_ratio=0.25),
        'ghost2',
        by_its_child,
        False,
    ),
    'repvit.RepViTBlock': (
        lambda: repvit.RepViTBlock(8, 2, 3, use_se=True, act_layer=nn.GELU),
        'channel_mixer',
        of_repvit,
        False,
    ),
    'repvit.RepVitDownsample': (repvit_downsample, 'ffn', of_repvit_downsample, False),
    'resnet.BasicBlock': (lambda: resnet.BasicBlock(8, 8), 'bn2', same, True),
    'resnet.Bottleneck': (lambda: resnet.Bottleneck(8, 2), 'bn3', same, True),
    'senet.SEBottleneck': (lambda: senet.SEBottleneck(8, 2, 1, 2), 'se_module', of_senet, True),
    'senet.SEResNetBlock': (lambda: senet.SEResNetBlock(8, 8, 1, 2, 1, downsample()), 'se_module', of_senet, True),
    'senet.SEResNetBottleneck': (lambda: senet.SEResNetBottleneck(8, 2, 1, 2), 'se_module', of_senet, True),
    'senet.SEResNeXtBottleneck': (
        lambda: senet.SEResNeXtBottleneck(8, 2, 2, 2, base_width=64),
        'se_module',
        of_senet,
        True,
    ),
    'shvit.Residual': (lambda: shvit.Residual(shvit.SHSA(8, 2, 4)), 'm', same, False),
    'xception.Block': (lambda: XceptionBlock(8, 8, 2), 'rep', of_xception, False),
    'xception.Block, strided': (lambda: XceptionBlock(8, 12, 2, strides=2), 'rep', of_xception, False),
}

# whose branches end in something else than a scale, a norm, a linear layer or a convolution
UNFOLDED = {
    *(name for name in BLOCKS if name.startswith(('ghostnet', 'lcnetv2'))),  # a concatenation, an activation
    'efficientvit_mit.ResidualBlock',  # attention that cannot be traced
    'senet.SEResNetBlock',  # an activation before its attention
    'xception.Block, strided',  # a pooling
}


def network(name):
    """A block of a kind, every parameter of which matters, in training with the norms' running statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(BLOCKS[name][0]()).double()
    for p in model.parameters():
        if p.ndim <= 1:
            nn.init.uniform_(p, 0.5, 1.5)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return freeze_norms(model.train())


def freeze_norms(model):
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return model


def images(batch_size=5):
    return torch.randn(batch_size, 8, 12, 12, dtype=torch.float64)


def by_formula(name, plain, x, factor_N):
    """act(shortcut + factor * branch), the branch as the plain block computes it."""
    _, end, shortcut, is_activated = BLOCKS[name]
    branch = []
    block = plain[0]
    handle = block.get_submodule(end).register_forward_hook(lambda module, args, y: branch.append(y.clone()))
    block(x)
    handle.remove()
    y = shortcut(block, x) + factor_N.view(-1, 1, 1, 1) * branch[0]
    return torch.relu(y) if is_activated else y


class Keep(Draws):
    def __init__(self, keep_N):
        self.keep_N = keep_N

    def samples(self, x, *args):
        return self.keep_N.to(x.dtype)

    def batch(self, rate):
        return bool(self.keep_N.all())


def set_draws(model, keep_N):
    for _, drop_path in ts.inspection.drop_paths(model):
        drop_path.draws = Keep(keep_N)


def results(model, run, x):
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = run(x)
    y.square().sum().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return [y.detach(), x.grad, *grads]


CASES = [pytest.param(name, id=name) for name in BLOCKS]


@pytest.mark.parametrize('settings', [{}, dict(skip_dropped=True)], ids=['masked', 'skipped'])
@pytest.mark.parametrize('name', CASES)
def test_samples_drop_their_branch(name, settings):
    plain = network(name)
    model = copy.deepcopy(plain)
    ts.apply_stochastic_depth(model, 'sample', 'ResidualBlock', 0.5, 'uniform', **settings)
    freeze_norms(model.train())
    assert list(model.state_dict()) == list(plain.state_dict())
    x = images()
    before = x.clone()
    for keep_N in ([1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]):
        keep_N = torch.tensor(keep_N, dtype=torch.float64)
        set_draws(model, keep_N)
        expected = results(plain, lambda x, keep_N=keep_N: by_formula(name, plain, x, keep_N), x)
        for found, of_formula in zip(results(model, model, x), expected, strict=True):
            torch.testing.assert_close(found, of_formula)
        assert torch.equal(x, before)


@pytest.mark.parametrize('name', CASES)
def test_a_batch_leaves_its_branch_out(name):
    model = network(name)
    plain = copy.deepcopy(model).train()
    ts.apply_stochastic_depth(model, 'block', 'ResidualBlock', 0.5, 'uniform')
    end = model[0].get_submodule(BLOCKS[name][1])
    ran = []
    end.register_forward_hook(lambda *args: ran.append(True))
    x = images()
    for keeps in (False, True):
        set_draws(model, torch.tensor([keeps]))
        found = results(model, model, x)
        factor = torch.full((len(x),), float(keeps), dtype=torch.float64)
        expected = results(plain, lambda x, factor=factor: by_formula(name, freeze_norms(plain), x, factor), x)
        for value, of_formula in zip(found, expected, strict=True):
            torch.testing.assert_close(value, of_formula)
        assert bool(ran) == keeps


@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('name', CASES)
def test_a_dropped_block_is_its_shortcut_bit_for_bit(name, method):
    model = network(name)
    ts.apply_stochastic_depth(model, method, 'ResidualBlock', 1.0, 'uniform')
    _, _, shortcut, is_activated = BLOCKS[name]
    x = images()
    expected = shortcut(model[0], x)
    assert torch.equal(model(x), torch.relu(expected) if is_activated else expected)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('name', CASES)
@pytest.mark.filterwarnings('ignore:drop_rate is 0')
def test_rate_zero_is_the_plain_block_bit_for_bit(name, method, training):
    model = network(name).train(training)
    plain = copy.deepcopy(model)
    ts.apply_stochastic_depth(model, method, 'ResidualBlock', 0.0)
    x = images()
    for _ in range(2):  # the second time with the statistics that the first one left
        assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize('name', CASES)
def test_inference_is_the_formula_and_folding_keeps_it(name):
    plain = network(name).eval()
    model = copy.deepcopy(plain)
    ts.apply_stochastic_depth(model, 'sample', 'ResidualBlock', 0.4, 'uniform')
    x = images()
    y = model.eval()(x)
    torch.testing.assert_close(y, by_formula(name, plain, x, torch.full((len(x),), 0.6, dtype=torch.float64)))
    if name in UNFOLDED:
        with pytest.raises(ValueError, match=' to be folded, but is '):
            ts.fold_stochastic_depth(model)
        return
    folded = ts.fold_stochastic_depth(model).eval()
    assert [type(m) for m in folded.modules()] == [type(m) for m in plain.modules()]
    torch.testing.assert_close(folded(x), y)
    plain.load_state_dict(folded.state_dict(), strict=True)
    torch.testing.assert_close(plain(x), y)


def test_a_block_without_a_shortcut_is_left_alone():
    mit = efficientvit_mit.ResidualBlock(nn.Conv2d(8, 8, 1), None)
    model = nn.Sequential(mit, lcnetv2.RepDepthwiseSeparable(8, 8), copy.deepcopy(mit)).eval()
    plain = copy.deepcopy(model)
    model.append(efficientvit_mit.ResidualBlock(nn.Conv2d(8, 8, 1), nn.Identity()))
    for method in ('sample', 'block'):
        ts.apply_stochastic_depth(model, method, 'ResidualBlock', 1.0, 'uniform')
        assert ts.drop_rates(model) == {'3': 1.0}
        x = torch.randn(2, 8, 6, 6)
        assert torch.equal(model.train()(x), plain.train()(x))


def test_every_block_of_the_table_is_tested():
    tested = {type(make()) for make, *_ in BLOCKS.values()} | {Block8, Block17, Block35}
    of_timm = {c for c in ts.STOCHASTIC_LAYER_MAPPING['ResidualBlock'] if c.__module__.startswith('timm.')}
    assert tested == of_timm


def test_a_block_within_another_one_is_counted_before_it():
    """timm's downsampling block of RepViT runs another block first, and then its own branch."""
    stage = repvit.RepVitDownsample(8, 2, 12, 3, act_layer=nn.GELU)
    model = nn.Sequential(stage, repvit.RepViTBlock(12, 2, 3, use_se=False, act_layer=nn.GELU))
    ts.apply_stochastic_depth(model, 'sample', 'ResidualBlock', 0.4)
    assert ts.drop_rates(model) == {'0.pre_block': 0.0, '0': 0.2, '1': 0.4}
