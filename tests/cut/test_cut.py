"""Blocks of a user's own: what is found to be a branch, and what is refused."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.layers import DropPath
from torch import nn

import timm_stochdepth as ts
from timm_stochdepth.inspection import drop_paths
from timm_stochdepth.layers.block_class import cuts_of

DIM = 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.drop_path1, self.drop_path2 = DropPath(0.5), DropPath(0.5)
        self.act = nn.ReLU(inplace=True)
        self.gain = nn.Parameter(torch.tensor(0.7))


class Plain(Block):
    def forward(self, x):
        return x + self.drop_path1(self.fc1(self.norm(x)))


class TwoBranches(Block):
    def forward(self, x):
        x = self.drop_path1(self.fc1(self.norm(x))) + x
        return self.act(x + self.drop_path2(self.fc2(x)))


class Parallel(Block):
    def forward(self, x):
        return x + self.drop_path1(self.fc1(x)) + self.drop_path2(self.fc2(x))


class SharedNorm(Block):
    def forward(self, x):
        x = self.norm(x)
        return torch.add(x, self.drop_path1(self.fc1(x)))


class OnePlaceTwice(Block):
    def forward(self, x):
        x = x + self.drop_path1(self.fc1(x))
        return x + self.drop_path1(self.fc2(x))


class Sizes(Block):
    def forward(self, x):
        N, L, C = x.shape
        y = self.fc1(x.reshape(N * L, C)).view(N, L, C)
        y = x + self.drop_path1(y) * (1 / L)
        return y.view(N, L, C)


class Scaled(Block):
    def forward(self, x):
        y = self.drop_path1(self.fc1(x))
        y.mul_(self.gain)
        return y * 0.5 + x


class InPlaceOnShortcut(Block):
    def forward(self, x):
        y = self.norm(x)
        y += self.drop_path1(self.fc1(x))
        return y


class Mask(Block):
    def forward(self, x, attn_mask=None):
        y = self.fc1(x)
        if attn_mask is not None:
            y = y * attn_mask
        return x + self.drop_path1(y)


class Trains(Block):
    def forward(self, x):
        y = self.fc1(x) if self.training else 2 * self.fc1(x)
        return x + self.drop_path1(y)


class OfValues(Block):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return x + self.drop_path1(self.fc1(x))


class WritesToInput(Block):
    def forward(self, x):
        y = self.act(x)
        return x + self.drop_path1(self.fc1(y))


class Items(Block):
    def forward(self, x):
        y = torch.zeros_like(x)
        y[:, 0] = x[:, 0]
        return x + self.drop_path1(self.fc1(y)) + y


class FromParameters(Block):
    def forward(self, x):
        return x + self.drop_path1(self.fc1(x) * torch.tensor([float(DIM)]))


CUT = [
    Plain,
    TwoBranches,
    Parallel,
    SharedNorm,
    OnePlaceTwice,
    Sizes,
    Scaled,
    InPlaceOnShortcut,
    Mask,
    Trains,
    OfValues,
    WritesToInput,
    Items,
    FromParameters,
]


def network(block):
    torch.manual_seed(0)
    return nn.Sequential(block(), block()).double()


def step(model, x, seed):
    model.zero_grad()
    torch.manual_seed(seed)
    y = model(x)
    y.square().sum().backward()
    return y, [p.grad for p in model.parameters() if p.grad is not None and p.grad.any()]


@pytest.mark.parametrize('block', CUT)
def test_a_branch_that_is_found_is_dropped_as_timm_drops_it(block):
    model = network(block)
    skipping = copy.deepcopy(model)
    ts.apply_stochastic_depth(skipping, 'sample', 'DropPath', None, scale_by_keep=True, skip_dropped=True)
    x = torch.randn(5, 3, DIM, dtype=torch.float64)
    calls = []
    for child in (skipping[0].fc1, skipping[1].fc1):
        child.register_forward_hook(lambda m, args, y: calls.append(y.numel()))
    for seed in range(4):
        for result, expected in zip(step(skipping, x, seed), step(model, x, seed)):
            torch.testing.assert_close(result, expected)
    assert sum(calls) < 8 * x.numel()  # two blocks, four steps
    torch.testing.assert_close(skipping.eval()(x), model.eval()(x))
    block_mode = network(block)
    ts.apply_stochastic_depth(block_mode, 'block', 'DropPath', 1.0, 'uniform')
    for child in (block_mode[0].fc1, block_mode[0].fc2):
        child.register_forward_hook(lambda *args: pytest.fail('a dropped branch is computed'))
    block_mode(x).sum().backward()


class OneNormForTwo(Block):
    def forward(self, x):
        x = x + self.drop_path1(self.fc1(self.norm(x)))
        return x + self.drop_path2(self.fc2(self.norm(x)))


class Functions(Block):
    """As a block of DINOv2."""

    def forward(self, x):
        def residual(x):
            return self.fc1(self.norm(x))

        x = x + self.drop_path1(residual(x))
        scaled = lambda x: self.fc2(x) * 2  # noqa: E731
        return x + self.drop_path2(scaled(x))


@pytest.mark.parametrize('method, settings', [('block', {}), ('sample', dict(skip_dropped=True))])
@pytest.mark.parametrize('block', [OneNormForTwo, Functions])
def test_what_branches_share_or_functions_use_has_a_gradient_when_all_are_dropped(block, method, settings):
    """DistributedDataParallel waits for one of every parameter."""
    model = nn.Sequential(block())
    ts.apply_stochastic_depth(model, method, 'DropPath', 1.0, 'uniform', **settings)
    model(torch.randn(2, 3, DIM)).sum().backward()
    used = [name for name, p in model.named_parameters() if 'gain' not in name]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == used


def test_branches_that_end_in_the_same_weights_are_not_folded():
    model = network(TwoBranches)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4)
    model[1].fc1 = model[1].fc2
    with pytest.raises(ValueError, match='1.drop_path2 must have weights of its own .* shares them with 1.drop_path1'):
        ts.fold_stochastic_depth(model)


class DeadSize(Block):
    def forward(self, x):
        y = self.norm(x)
        length = y.shape[1]
        if self.is_cropped:
            y = y[:, :length]
        return x + self.drop_path1(self.fc1(y))


@pytest.mark.parametrize('is_cropped', [False, True])
def test_a_size_that_nothing_reads_on_a_path_is_no_use_of_what_it_measures(is_cropped):
    model = network(DeadSize)
    for block in model:
        block.is_cropped = is_cropped
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4)
    ((_, branch),) = cuts_of(model[0])[0].branches
    assert branch.branch_only == ('norm', 'fc1')


class Nested(Block):
    def forward(self, x):
        return x + self.drop_path1(self.fc1(x + self.drop_path2(self.fc2(x))))


class NotAdded(Block):
    def forward(self, x):
        return self.drop_path1(self.fc1(x))


class Activated(Block):
    def forward(self, x):
        return x + torch.tanh(self.drop_path1(self.fc1(x)))


class UsedTwice(Block):
    def forward(self, x):
        y = self.drop_path1(self.fc1(x))
        return x + y + self.fc2(y)


class WorkElsewhere(Block):
    def forward(self, x):
        y = self.fc1(x)
        return (x + self.drop_path1(y)) * y.mean()


class Others(Block):
    def forward(self, x, others=None):
        y = self.fc1(x)
        if others is not None:
            y = y + others[0]
        return x + self.drop_path1(y)


@pytest.mark.parametrize('collect', [list, tuple, lambda tensors: dict(enumerate(tensors))])
def test_tensors_in_an_argument_that_nothing_is_known_of_are_not_skipped(collect):
    model = network(Others)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.5, 'uniform', skip_dropped=True)
    x = torch.randn(5, 3, DIM, dtype=torch.float64)
    model[0](x)
    with pytest.raises(
        ValueError, match='nothing says whether the first dimension of its argument others is the batch'
    ):
        model[0](x, collect([x]))


class Transposed(Block):
    def forward(self, x):
        y = x.transpose(0, 1)
        return x.sum(0) + self.drop_path1(self.fc1(y)).sum(1) + y.mean()


class AliasInPlace(Block):
    def forward(self, x):
        y = x
        y += self.drop_path1(self.fc1(self.norm(x)))
        return y + x


class Unknown(Block):
    def forward(self, x, tokens):
        return x + self.drop_path1(self.fc1(x) + tokens)


REFUSED = {
    Nested: 'holds another residual branch',
    NotAdded: 'the result of self.drop_path1 goes into the result of the block, not into an addition',
    Activated: 'the result of self.drop_path1 goes into `torch.tanh`, not into an addition',
    UsedTwice: 'the result of self.drop_path1 is used elsewhere, too',
    WorkElsewhere: 'nothing is computed for self.drop_path1 alone',
    Transposed: 'not into an addition',
    AliasInPlace: 'writes to a tensor that is used elsewhere',
    Unknown: 'nothing says whether the first dimension of its argument tokens is the batch',
}


@pytest.mark.parametrize('block', REFUSED)
def test_what_is_not_recognized_is_refused_with_the_reason(block):
    model = network(block)
    modules = list(model.modules())
    for method, settings in (('block', {}), ('sample', dict(skip_dropped=True))):
        with pytest.raises(ValueError) as error:
            ts.apply_stochastic_depth(model, method, 'DropPath', 0.5, **settings)
        assert REFUSED[block] in str(error.value) and f'test_cut.{block.__name__} (0)' in str(error.value)
    assert list(model.modules()) == modules
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.5, 'uniform')  # masks
    assert list(ts.drop_rates(model).values()) == [0.5, 0.5]


@pytest.mark.parametrize('block', [NotAdded, Activated, UsedTwice])
def test_what_is_masked_is_masked_as_timm_masks_it(block):
    model = network(block)
    masking = copy.deepcopy(model)
    ts.apply_stochastic_depth(masking, 'sample', 'DropPath', None, scale_by_keep=True)
    x = torch.randn(5, 3, DIM, dtype=torch.float64)
    for result, expected in zip(step(masking, x, 1), step(model, x, 1)):
        torch.testing.assert_close(result, expected)
    ts.apply_stochastic_depth(masking, 'sample', 'DropPath', 0.3, 'uniform')  # the paper's scaling
    for place in (m for m in model.modules() if isinstance(m, DropPath)):
        place.register_forward_hook(lambda m, args, y: 0.7 * y)
    torch.testing.assert_close(masking.eval()(x), model.eval()(x))


def test_torchvisions_drop_paths_are_found():
    model = torchvision.models.convnext_tiny(stochastic_depth_prob=0.2)
    ts.apply_stochastic_depth(model, 'block', 'DropPath', None)
    rates = list(ts.drop_rates(model).values())
    assert len(rates) == 18 and rates[0] == 0 and rates[-1] == pytest.approx(0.2)
    assert cuts_of(model.features[1][0])


def test_a_class_is_named_by_its_module():
    model = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=3, embed_dim=24, num_heads=2)
    ts.apply_stochastic_depth(model, 'sample', 'vision_transformer.Block', 0.4)
    assert ts.drop_rates(model) == pytest.approx({'blocks.0': 0.0, 'blocks.1': 0.2, 'blocks.2': 0.4})
    assert [name for name, _ in drop_paths(model)][:2] == ['blocks.0.drop_path1', 'blocks.0.drop_path2']
    with pytest.warns(UserWarning, match='No convnext.ConvNeXtBlock found in VisionTransformer'):
        ts.apply_stochastic_depth(model, 'sample', 'convnext.ConvNeXtBlock', 0.4)


def test_drop_paths_of_one_block_keep_rates_of_their_own():
    model = timm.create_model('nextvit_small', drop_path_rate=0.3)
    theirs = {name: m.drop_prob for name, m in model.named_modules() if isinstance(m, DropPath) and m.drop_prob}
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, scale_by_keep=True)
    ours = {name: place.drop_prob for name, place in drop_paths(model) if place.drop_prob > 0}
    assert ours == pytest.approx(theirs)
    assert set(ours) & set(ts.drop_rates(model)) and 'stages.0.blocks.1' in ts.drop_rates(model)
    ts.set_drop_rate(model, 0.15)
    halved = {name: place.drop_prob for name, place in drop_paths(model) if place.drop_prob > 0}
    assert halved == pytest.approx({name: rate / 2 for name, rate in theirs.items()})


def test_a_schedule_goes_through_its_points():
    model = network(Plain)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4, 'uniform', drop_schedule=[(0, 1), (0.5, 0)])
    assert list(ts.drop_rates(model).values()) == [0.0, 0.0]  # nobody tells: the end of training
    for progress, rate in ((0.0, 0.4), (0.25, 0.2), (0.5, 0.0), (1.0, 0.0)):
        ts.set_training_progress(model, progress)
        assert list(ts.drop_rates(model).values()) == pytest.approx([rate, rate])
    args = ts.stochastic_depth_args(model)
    assert args['drop_schedule'] == [[0.0, 1.0], [0.5, 0.0]]
    registered = timm.create_model('resnet50_sd_block', num_classes=2, **args)
    assert ts.stochastic_depth_args(registered) == args


@pytest.mark.parametrize(
    'settings, error, message',
    [
        (dict(drop_schedule=[]), ValueError, r'drop_schedule must have at least one point.*\[\]'),
        (dict(drop_schedule=[(0, 1), (0, 0)]), ValueError, 'its progress must rise'),
        (dict(drop_schedule=[(0, 2)]), ValueError, r'drop_schedule must be in \[0, 1\], but got 2'),
        (dict(drop_schedule='late'), TypeError, "drop_schedule must be a sequence of points.*'late'"),
        (dict(drop_schedule=[0, 1]), TypeError, 'drop_schedule must be a sequence of points'),
        (dict(drop_schedule=[(0, 1)], drop_warmup=0.1), ValueError, 'drop_warmup must be 0 where a drop_schedule'),
    ],
)
def test_a_wrong_schedule_is_named(settings, error, message):
    with pytest.raises(error, match=message):
        ts.apply_stochastic_depth(network(Plain), 'sample', 'DropPath', 0.4, **settings)


class SharedEnd(Block):
    def forward(self, x):
        return self.fc2(x) + self.drop_path1(self.fc2(self.fc1(x)))


def test_an_end_that_is_used_elsewhere_is_not_folded():
    model = network(SharedEnd)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4)
    with pytest.raises(ValueError, match='1 must be one of .* to be folded, but is a SharedEnd'):
        ts.fold_stochastic_depth(model)


def test_a_branch_whose_end_is_not_known_is_not_folded():
    model = network(Activated)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4)
    with pytest.raises(ValueError, match='1 must be a block whose branches can be left out to be folded'):
        ts.fold_stochastic_depth(model)
    model = network(Sizes)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4)
    folded = ts.fold_stochastic_depth(model)
    x = torch.randn(2, 3, DIM, dtype=torch.float64)
    torch.testing.assert_close(folded.eval()(x), model.eval()(x))
    assert [type(m) for m in folded] == [Sizes, Sizes] and type(folded[0].drop_path1) is nn.Identity


class ShortcutFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1).to(memory_format=torch.channels_last)
        self.drop_path = DropPath(0.5)

    def forward(self, x):
        return x + self.drop_path(self.conv(x))


class BranchFirst(ShortcutFirst):
    def forward(self, x):
        return self.drop_path(self.conv(x)) + x


@pytest.mark.parametrize('settings', [{}, dict(skip_dropped=True)])
@pytest.mark.parametrize('block', [ShortcutFirst, BranchFirst])
def test_a_sum_has_the_memory_format_of_the_plain_one(block, settings):
    """That of its first operand: the branch is in channels_last here, the shortcut is not."""
    plain = block().eval()
    model = nn.Sequential(copy.deepcopy(plain)).train()
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 1e-12, 'uniform', **settings)
    x = torch.randn(3, 4, 5, 5)
    y = model(x)
    torch.testing.assert_close(y, plain(x))
    assert y.stride() == plain(x).stride()
    assert y.is_contiguous(memory_format=torch.channels_last) == (block is BranchFirst)
