"""What mixes the samples of a batch is refused where samples are skipped, wherever it is and whatever comes first."""

import pytest
import timm
import torch
from timm.layers import DropPath, LayerScale
from torch import nn

import timm_stochdepth as ts

DIM = 8
x = torch.randn(6, 3, DIM, generator=torch.Generator().manual_seed(0))


class Centred(nn.Module):
    """Takes the mean of the batch off, as others' layers may."""

    def __init__(self, module, is_on=True):
        super().__init__()
        self.module, self.is_on = module, is_on

    def forward(self, x, **kwargs):
        return self.module(x - x.mean(0) if self.is_on else x, **kwargs)


class Clips(nn.Module):
    """A temporal shift (TSM): two images that follow one another are a clip."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        clips = x.view(len(x) // 2, 2, *x.shape[1:])
        return self.module(clips.roll(1, 1).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, is_on=True, scale=1.0):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(DIM), Centred(nn.Linear(DIM, DIM), is_on)
        self.ls, self.drop_path = LayerScale(DIM, scale), DropPath(0.4)

    def forward(self, x):
        return x + self.drop_path(self.ls(self.fc(self.norm(x))))


def skipping(*blocks):
    model = nn.Sequential(*blocks)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.5, 'uniform', scale_by_keep=True, skip_dropped=True)
    return model


def refused():
    return pytest.raises(ValueError, match='skip_dropped must be False .* a branch ')


def test_each_block_is_compared():
    """Blocks of one class may hold other modules, or other flags."""
    with refused():
        skipping(Block(is_on=False), Block(is_on=True))(x)


@pytest.mark.parametrize('first', [x[:1], torch.ones_like(x)])
def test_a_first_pass_that_shows_nothing_is_not_the_last_one(first):
    """Of a single image, or of ones, as dry runs and summaries are made."""
    model = skipping(Block())
    with torch.no_grad():
        model(first)
    with refused():
        model(x)


def test_a_branch_that_starts_small_is_compared():
    with refused():
        skipping(Block(scale=1e-6))(x)


def test_a_branch_of_few_large_values_is_compared():
    """One channel is a million times as large as the others, in all samples alike."""
    block = Block()
    with torch.no_grad():
        block.fc.module.bias[0] = 1e6
    with refused():
        skipping(block)(x)


def test_a_branch_that_starts_with_zeros_is_compared_once_it_is_something():
    model = skipping(Block(scale=0.0))
    model(x).square().sum().backward()
    nn.init.constant_(model[0].ls.gamma, 1e-3)
    with refused():
        model(x)


@pytest.mark.parametrize('network, kind', [('test_vit', 'attn'), ('test_vit', 'mlp'), ('resnet18', 'conv2')])
def test_modules_of_others_in_timms_blocks_are_looked_at(network, kind):
    model = timm.create_model(network, num_classes=5, drop_path_rate=0.4)
    blocks = model.blocks if network == 'test_vit' else model.layer3
    for block in blocks:
        setattr(block, kind, (Clips if kind == 'conv2' else Centred)(getattr(block, kind)))
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, skip_dropped=True)
    with refused():
        for _ in range(2):  # timm's ResNets begin with branches of zeros
            model(torch.randn(8, 3, 160, 160)).sum().backward()
            nn.init.constant_(blocks[1].norm2.weight if network == 'test_vit' else blocks[1].bn2.weight, 0.5)


def test_modules_that_mix_nothing_are_compared_once_a_block():
    model = timm.create_model('test_vit', num_classes=5, drop_path_rate=0.4)
    for block in model.blocks:
        block.mlp = Centred(block.mlp, is_on=False)
    calls = []
    model.blocks[1].mlp.module.fc1.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 1e-12, 'uniform', skip_dropped=True)
    images = torch.randn(4, 3, 160, 160)
    model(images)
    assert len(calls) == 4  # the plain block, its branch for all and for some samples, and the pass itself
    model(images)
    assert len(calls) == 5
    model.blocks[1].mlp = Centred(model.blocks[1].mlp.module)
    with refused():
        model(images)


class Rounds(Block):
    """As a kernel that rounds by the number of samples."""

    def forward(self, x):
        return x + self.drop_path(self.fc.module(x) * (1 + 1e-5 * len(x)))


def test_rounding_is_no_difference():
    assert skipping(Rounds())(100 * x).shape == x.shape


class Context(Block):
    """A branch that is the same at all places, as a global context (GCNet)."""

    def forward(self, x):
        return x + self.drop_path(self.fc.module(x.mean(1, keepdim=True)))


class Pooled(Block):
    """A shortcut that is."""

    def forward(self, x):
        return x.mean(1, keepdim=True) + self.drop_path(self.fc.module(x))


@pytest.mark.parametrize('block, method', [(Context, 'sample'), (Pooled, 'sample'), (Pooled, 'block')])
def test_branches_of_other_sizes_than_the_shortcut_are_refused(block, method):
    """Without the branch nothing says what size the sum has."""
    model = nn.Sequential(block())
    ts.apply_stochastic_depth(model, method, 'DropPath', 0.5, 'uniform', skip_dropped=method == 'sample')
    with pytest.raises(ValueError, match=r'must be .* a branch of shape \(6, \d, 8\) is added to one of \(6, \d, 8\)'):
        model(x)


def test_nothing_is_compared_where_pytorch_maps():
    """There no tensor has a value, and what is dropped is masked."""
    model = skipping(Block(is_on=False), Block(is_on=False))
    stacked = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in model.named_parameters()}
    torch.manual_seed(0)
    y = torch.func.vmap(lambda p: torch.func.functional_call(model, p, (x,)), randomness='same')(stacked)
    torch.manual_seed(0)
    torch.testing.assert_close(y[0], model(x))


@pytest.mark.usefixtures('fresh_compiler')
def test_a_compiled_block_is_compared_too():
    model = timm.create_model('test_vit', num_classes=5, drop_path_rate=0.4)
    for block in model.blocks:
        block.mlp = Centred(block.mlp)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, skip_dropped=True)
    with refused():
        torch.compile(model, backend='eager')(torch.randn(4, 3, 160, 160))
