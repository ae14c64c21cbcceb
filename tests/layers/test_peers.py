"""Drop paths of others: transformers', copies of timm's, and classes that only look like one."""

import copy
import importlib
import random
import textwrap

import numpy as np
import pytest
import timm
import torch
import transformers
from draws_of import note_draws
from networks import Block
from told import told
from torch import nn

import timm_stochdepth as ts
from timm_stochdepth.inspection import drop_paths

SIZES = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=48,
    image_size=32,
    patch_size=8,
    initializer_range=0.2,
)


def needs_transformers_5():
    if int(transformers.__version__.partition('.')[0]) < 5:
        pytest.skip('of transformers 4 these blocks are masked, or refused: docs/limits.md')


def convnext(rate):
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 2, 1],
        drop_path_rate=rate,
        layer_scale_init_value=0.7,
        initializer_range=0.2,
    )
    return transformers.ConvNextModel(config)


def swin(rate):
    sizes = dict(image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[1, 2], window_size=4)
    return transformers.SwinModel(transformers.SwinConfig(**sizes, drop_path_rate=rate, initializer_range=0.2))


def beit(rate):
    needs_transformers_5()
    config = transformers.BeitConfig(
        **SIZES, drop_path_rate=rate, layer_scale_init_value=0.7, use_relative_position_bias=True
    )
    return transformers.BeitModel(config)


def dinov2(rate):
    needs_transformers_5()
    return transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, drop_path_rate=rate, layerscale_value=0.7))


NETWORKS = {f.__name__: f for f in (convnext, swin, beit, dinov2)}
# name of the blocks, and the rates that transformers gives them at 0.4
RATES = {
    'convnext': ('encoder.stages.{}', [0, 0.1, 0.2, 0.3, 0.4]),
    'swin': ('encoder.layers.{}', [0, 0.4 / 3, 0.8 / 3, 0.4]),
    'beit': ('layers.{}', [0, 0.2, 0.4]),
    'dinov2': ('encoder.layer.{}', [0.4, 0.4, 0.4]),
}


def theirs(model):
    """Drop paths of other people's in a model, the Identity that stands for one at rate 0 among them."""
    return [
        name
        for name, m in model.named_modules()
        if (type(m).__name__.endswith('DropPath') and type(m).__name__ != 'StochasticDropPath')
        or (name.endswith('drop_path') and isinstance(m, nn.Identity))
    ]


def assert_same_as_their_masks(ours, plain, x, monkeypatch):
    """A training step with the draws of ours equals that of transformers' own drop paths with the very same masks."""
    masks = note_draws(ours)
    y = ours(x)[0]
    assert 0 < sum(int((m == 0).sum()) for m in masks) < sum(m.numel() for m in masks)  # some drop, some do not
    remaining = iter(masks)

    def rand(shape, **kwargs):  # a drop path of theirs keeps where this plus the keep probability is at least 1
        keep_N = next(remaining)
        assert shape == (len(keep_N), *[1] * (len(shape) - 1))
        return torch.where(keep_N > 0, 0.999, 0.0).to(kwargs['dtype']).view(shape)

    with monkeypatch.context() as context:
        context.setattr(torch, 'rand', rand)
        y_plain = plain(x)[0]
    assert next(remaining, None) is None
    torch.testing.assert_close(y, y_plain, rtol=1e-9, atol=1e-9)
    cotangent = torch.randn_like(y)
    grads = (torch.autograd.grad(out, [p for p in m.parameters() if p.requires_grad], cotangent, allow_unused=True)
             for out, m in ((y, ours), (y_plain, plain)))  # fmt: skip
    for grad, grad_plain in zip(*grads, strict=True):
        if grad_plain is not None:
            torch.testing.assert_close(grad, grad_plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('name', NETWORKS)
def test_every_place_of_a_network_of_transformers_is_taken_over(name):
    model = NETWORKS[name](0.4)
    expected = theirs(model)
    assert expected
    assert told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', None) == []
    assert [place_name for place_name, _ in drop_paths(model)] == expected and not theirs(model)
    prefix, rates = RATES[name]
    assert list(ts.drop_rates(model).values()) == pytest.approx(rates)
    assert all(block.startswith(prefix.format('')) for block in ts.drop_rates(model))
    assert all(place.scale_by_keep for _, place in drop_paths(model))  # transformers divides by the keep probability

    # a rate for all, and where all are 0 and stand as Identity
    zero = NETWORKS[name](0.0)
    for network in (NETWORKS[name](0.4), zero):
        assert told(ts.apply_stochastic_depth, network, 'sample', 'DropPath', 0.3) == []
        assert list(ts.drop_rates(network).values()) == pytest.approx([
            0.3 * i / (len(rates) - 1) for i in range(len(rates))
        ])


@pytest.mark.parametrize('name', NETWORKS)
def test_a_step_equals_that_with_their_own_masks(name, monkeypatch):
    skip_dropped = name != 'swin'
    plain = NETWORKS[name](0.5).double().train()
    ours = copy.deepcopy(plain)
    ts.apply_stochastic_depth(ours, 'sample', 'DropPath', None, skip_dropped=skip_dropped)
    x = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    assert_same_as_their_masks(ours, plain, x, monkeypatch)
    torch.testing.assert_close(ours.eval()(x)[0], plain.eval()(x)[0])


def test_a_block_that_returns_what_its_branch_computes_is_refused_with_the_reason():
    """The attention of Swin is an output of the block: what is left of the branch saves nothing."""
    model = swin(0.4)
    for settings in (dict(stochastic_method='sample', skip_dropped=True), dict(stochastic_method='block')):
        with pytest.raises(ValueError, match=r'SwinLayer \(encoder.layers.0.blocks.0\): nothing is computed'):
            ts.apply_stochastic_depth(model, target_layer_name='DropPath', drop_rate=None, **settings)
    assert not ts.drop_rates(model) and theirs(model)


@pytest.mark.parametrize('name', ['beit', 'dinov2'])
def test_what_transformers_hands_to_a_block_beside_its_arguments_arrives(name):
    plain = NETWORKS[name](0.5).train()
    plain.set_attn_implementation('eager')
    ours = copy.deepcopy(plain)
    ts.apply_stochastic_depth(ours, 'sample', 'DropPath', None, skip_dropped=True)
    ts.set_drop_rate(ours, 1e-12)  # skipping, and nothing is dropped
    for m in plain.modules():
        if type(m).__name__.endswith('DropPath'):
            m.drop_prob = 0.0
    x = torch.randn(3, 3, 32, 32)
    flags = dict(output_attentions=True, output_hidden_states=True)
    out, expected = ours(x, **flags), plain(x, **flags)
    for key in ('attentions', 'hidden_states'):
        assert len(out[key]) >= 3
        for value, value_plain in zip(out[key], expected[key], strict=True):
            torch.testing.assert_close(value, value_plain)
    block = ours.get_submodule(list(ts.drop_rates(ours))[1])
    with pytest.raises(ValueError, match='nothing says whether the first dimension of its argument other'):
        block(torch.randn(2, 17, 32), resolution=(32, 32), other=torch.ones(2))


def test_transformers_vit_has_none_and_the_way_is_said():
    model = transformers.ViTModel(transformers.ViTConfig(**SIZES))
    assert not any('drop_path' in name for name, _ in model.named_modules())
    (text,) = told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.2)
    assert 'none of its blocks has a drop path' in text and 'BRANCH_ENDS' in text
    assert not ts.drop_rates(model)


def test_folding_gives_plain_networks_of_transformers():
    model = dinov2(0.4).eval()
    plain = copy.deepcopy(model)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.3, keep_function=True)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], plain(x)[0])
        folded = ts.fold_stochastic_depth(model)
        torch.testing.assert_close(folded(x)[0], plain(x)[0])
    for name, module in plain.named_modules():
        assert type(folded.get_submodule(name)) is (nn.Identity if name.endswith('drop_path') else type(module))
    assert list(folded.state_dict()) == list(plain.state_dict())


# as it stands in many repositories, from timm before 0.6
COPIED = """
    import torch
    from torch import nn


    def drop_path(x, drop_prob: float = 0., training: bool = False):
        if drop_prob == 0. or not training:
            return x
        keep_prob = 1 - drop_prob
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        random_tensor = keep_prob + torch.rand(shape, dtype=x.dtype, device=x.device)
        random_tensor.floor_()
        output = x.div(keep_prob) * random_tensor
        return output


    class DropPath(nn.Module):
        def __init__(self, drop_prob=None):
            super().__init__()
            self.drop_prob = drop_prob

        def forward(self, x):
            return drop_path(x, self.drop_prob, self.training)


    class Block(nn.Module):
        def __init__(self, dim, drop_rate=0.):
            super().__init__()
            self.norm = nn.LayerNorm(dim)
            self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
            self.drop_path = DropPath(drop_rate) if drop_rate > 0. else nn.Identity()

        def forward(self, x):
            x = x + self.drop_path(self.mlp(self.norm(x)))
            return x


    class Net(nn.Module):
        def __init__(self, rates):
            super().__init__()
            self.blocks = nn.Sequential(*[Block(8, rate) for rate in rates])

        def forward(self, x):
            return self.blocks(x),
"""


@pytest.fixture
def copied(tmp_path, monkeypatch):
    (tmp_path / 'a_users_net.py').write_text(textwrap.dedent(COPIED))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(importlib.sys.modules, 'a_users_net', raising=False)
    return importlib.import_module('a_users_net')


def test_a_copied_drop_path_is_taken_over(copied, monkeypatch):
    plain = copied.Net([0.0, 0.3, 0.6]).double().train()
    ours = copy.deepcopy(plain)
    settings = dict(stochastic_method='sample', target_layer_name='DropPath', drop_rate=None, skip_dropped=True)
    assert told(ts.apply_stochastic_depth, ours, **settings) == []
    assert ts.drop_rates(ours) == {'blocks.0': 0.0, 'blocks.1': 0.3, 'blocks.2': 0.6}
    assert_same_as_their_masks(ours, plain, torch.randn(7, 5, 8, dtype=torch.float64), monkeypatch)


def test_a_copied_drop_path_is_taken_over_where_tensors_have_no_values(copied):
    with torch.device('meta'):
        model = copied.Net([0.0, 0.3, 0.6])
        assert told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', None) == []
    assert list(ts.drop_rates(model).values()) == [0.0, 0.3, 0.6]


def test_taking_over_moves_no_generator(copied):
    model = copied.Net([0.0, 0.3, 0.6])
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


class DropPath(nn.Module):
    """What the classes below have in common: a rate, and a factor of each sample."""

    def __init__(self, drop_prob=0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def factor(self, mask_N, keep_prob):
        return mask_N / keep_prob

    def draw(self, x):
        return (torch.rand(len(x)) < 1 - self.drop_prob).to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    def forward(self, x):
        return x * self.factor(self.draw(x), 1 - self.drop_prob) if self.training else self.at_inference(x)

    def at_inference(self, x):
        return x


class PaperDropPath(DropPath):
    def factor(self, mask_N, keep_prob):
        return mask_N

    def at_inference(self, x):
        return x * (1 - self.drop_prob)


class UnscaledDropPath(DropPath):
    def factor(self, mask_N, keep_prob):
        return mask_N


class BatchDropPath(DropPath):
    def draw(self, x):
        return (torch.rand(1) < 1 - self.drop_prob).to(x.dtype)


class PythonDropPath(DropPath):
    def draw(self, x):
        return torch.tensor([random.random() >= self.drop_prob for _ in x]).to(x.dtype).view(-1, *[1] * (x.ndim - 1))


class ImageStochasticDepth(nn.Module):
    """As in torchvision, for images alone, and overwrites its input."""

    def __init__(self, p=0.0):
        super().__init__()
        self.p = p

    def forward(self, x):
        _, _, _, _ = x.shape
        return x.mul_((torch.rand(len(x), 1, 1, 1) >= self.p) / (1 - self.p)) if self.training else x


class KeepDropPath(DropPath):
    """Its number is the probability to keep."""

    def draw(self, x):
        return (torch.rand(len(x)) < self.drop_prob).to(x.dtype).view(-1, *[1] * (x.ndim - 1))


class ElementDropPath(DropPath):
    def draw(self, x):
        return (torch.rand_like(x) >= self.drop_prob).to(x.dtype)


class NoisyDropPath(DropPath):
    def forward(self, x):
        return x + torch.randn(len(x), *[1] * (x.ndim - 1))


class NeverDropPath(DropPath):
    def forward(self, x):
        return x


class BrokenDropPath(DropPath):
    def forward(self, x):
        raise RuntimeError('this needs a GPU')


class TwoNumbersDropPath(DropPath):
    def __init__(self, drop_prob=0.0):
        super().__init__(drop_prob)
        self.p = 0.5


class GatedDropPath(DropPath):
    def __init__(self, drop_prob=0.0):
        super().__init__(drop_prob)
        self.gate = nn.Parameter(torch.ones(1))


class NoNumberDropPath(DropPath):
    def __init__(self, drop_prob=0.0):
        super().__init__()
        del self.drop_prob
        self.survival_prob = 1 - drop_prob


class Dropping(DropPath):
    """Another name."""


class Timms(timm.layers.DropPath):
    """Derived from timm's, and does something else."""

    def forward(self, x):
        return x * 2


def net(drop_path_class, rates=(0.0, 0.2, 0.4)):
    return nn.Sequential(*[Block(drop_path_class(rate) if rate else nn.Identity()) for rate in rates])


@pytest.mark.parametrize(
    'drop_path_class, scale_by_keep, inference_scales',
    [
        (DropPath, True, [1, 1, 1]),
        (PaperDropPath, False, [1, 0.8, 0.6]),
        (UnscaledDropPath, False, [1, 1, 1]),
        (BatchDropPath, True, [1, 1, 1]),
        (PythonDropPath, True, [1, 1, 1]),
        (ImageStochasticDepth, True, [1, 1, 1]),
    ],
)
def test_the_convention_is_seen(drop_path_class, scale_by_keep, inference_scales):
    model = net(drop_path_class).eval()
    assert told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', None) == []
    assert ts.drop_rates(model) == {'0': 0.0, '1': 0.2, '2': 0.4}
    assert {place.scale_by_keep for _, place in drop_paths(model)} == {scale_by_keep}

    plain = net(drop_path_class).eval()
    kept = copy.deepcopy(plain)
    x = torch.randn(2, 3, 5, 4)
    y = plain(x.clone())
    for block, scale in zip(plain, inference_scales):  # what is said above, it does
        torch.testing.assert_close(block(x.clone()), x + scale * block.fc(block.norm(x)))
    ts.apply_stochastic_depth(kept, 'sample', 'DropPath', 0.5, 'uniform', keep_function=True)
    torch.testing.assert_close(kept(x), y)


@pytest.mark.parametrize(
    'drop_path_class, reason',
    [
        (KeepDropPath, 'does not multiply each sample by 0, at its rate'),
        (ElementDropPath, 'does not multiply each sample'),
        (NoisyDropPath, 'does not multiply each sample'),
        (NeverDropPath, 'does not multiply each sample'),
        (BrokenDropPath, 'does not multiply each sample'),
        (Timms, 'does not multiply each sample'),
        (TwoNumbersDropPath, 'not exactly one of its attributes drop_prob, p, drop_rate is a number'),
        (NoNumberDropPath, 'not exactly one of its attributes drop_prob, p, drop_rate is a number'),
        (GatedDropPath, 'it has parameters or buffers'),
        (Dropping, 'its class is not called DropPath or StochasticDepth'),
    ],
)
def test_what_is_not_understood_stays_and_is_told(drop_path_class, reason):
    model = net(drop_path_class, (0.0, 0.0, 0.2, 0.4))
    before = [block.drop_path for block in model]
    (text,) = told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.3)
    assert [block.drop_path for block in model][2:] == before[2:]
    assert text.startswith('Not all drop paths of Sequential are taken over.')  # an Identity is
    assert f'{drop_path_class.__name__} (2.drop_path and 1 more), as ' in text and reason in text
    assert 'timm.layers.DropPath' in text

    (text,) = told(ts.apply_stochastic_depth, net(drop_path_class, (0.1, 0.1)), 'sample', 'DropPath', 0.3)
    assert text.startswith('No DropPath found in Sequential that can be taken over: nothing changes.')
    assert f'{drop_path_class.__name__} (0.drop_path and 1 more)' in text and 'has a drop path' not in text


class OtherName(nn.Module):
    def __init__(self, drop_path):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 4)
        self.dropping = drop_path

    def forward(self, x):
        return x + self.dropping(self.fc(self.norm(x)))


def test_a_drop_path_of_timms_under_another_name_brings_its_identities():
    model = nn.Sequential(OtherName(nn.Identity()), OtherName(timm.layers.DropPath(0.2)), nn.Sequential(nn.Identity()))
    assert told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', 0.4) == []
    assert ts.drop_rates(model) == {'0': 0.0, '1': 0.4}
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4, 'uniform')
    assert ts.drop_rates(model) == {'0': 0.4, '1': 0.4}


def test_another_class_under_another_name_is_told():
    model = nn.Sequential(OtherName(DropPath(0.2)), Block(DropPath(0.2)))
    (text,) = told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', None)
    assert 'DropPath (0.dropping), as its name does not hold drop_path' in text
    assert ts.drop_rates(model) == {'1': 0.2} and type(model[0].dropping) is DropPath


def test_who_asks_for_blocks_by_name_hears_of_these_alone():
    model = nn.Sequential(Block(DropPath(0.2)), OtherName(Dropping(0.2)), *net(NoisyDropPath, (0.0, 0.1)))
    (text,) = told(ts.apply_stochastic_depth, model, 'sample', 'networks.Block', None)
    assert 'NoisyDropPath (3.drop_path)' in text and 'Dropping' not in text
    assert ts.drop_rates(model) == {'0': 0.2, '2': 0.0}


class Listed(nn.Module):
    """A network that holds its drop paths in a list."""

    def __init__(self, rates):
        super().__init__()
        self.fcs = nn.ModuleList(nn.Linear(4, 4) for _ in rates)
        self.drop_paths = nn.ModuleList(DropPath(rate) if rate else nn.Identity() for rate in rates)

    def forward(self, x):
        for fc, drop_path in zip(self.fcs, self.drop_paths):
            x = x + drop_path(fc(x))
        return x


def test_each_drop_path_of_a_list_is_taken_over():
    model = Listed([0.0, 0.1, 0.4])
    assert told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', None) == []
    assert list(ts.drop_rates(model).values()) == [0.0, 0.1, 0.4]
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.6)
    assert list(ts.drop_rates(model).values()) == [0.0, 0.3, 0.6]
    with pytest.raises(ValueError, match=r'skip_dropped must be False.*ModuleList \(drop_paths\)'):
        ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.6, skip_dropped=True)


def test_blocks_asked_for_by_kind_say_whose_drop_paths_they_lose():
    class Model(nn.Sequential):
        pass

    model = Model(*net(DropPath))
    (text,) = told(ts.apply_stochastic_depth, model, 'sample', 'networks.Block', 0.3)
    assert 'these are replaced: 1.drop_path (DropPath), 2.drop_path (DropPath).' in text
    assert told(ts.apply_stochastic_depth, model, 'sample', 'networks.Block', 0.3) == []  # its own
