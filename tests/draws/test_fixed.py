"""Draws of a fixed number: as many samples run each branch in every batch, and each sample keeps it at its rate."""

import copy
import math

import pytest
import timm
import torch
from networks import images, randomize
from steps import assert_same, step
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import timm_stochdepth as ts
from timm_stochdepth.draws.bernoulli import Draws
from timm_stochdepth.draws.fixed import FixedDraws
from timm_stochdepth.inspection import drop_paths

NETWORKS = {
    'vit_tiny_patch16_224': dict(img_size=32, depth=3, embed_dim=48, num_heads=3),
    'test_convnext': {},
}
SKIPPING = ts.Settings('sample', 0.4, 'uniform', scale_by_keep=True, skip_dropped=True, draw='fixed')


def create(name, settings=SKIPPING, **kwargs):
    torch.manual_seed(0)
    plain = randomize(timm.create_model(name, num_classes=3, **NETWORKS.get(name, kwargs))).double()
    model = copy.deepcopy(plain)
    ts.apply_stochastic_depth(model, settings=settings, target_layer_name='DropPath')
    return plain.train(), model.train()


@pytest.mark.parametrize('num_samples, rate', [(10, 0.6), (7, 0.33), (5, 0.05), (2, 0.9), (128, 0.4), (9, 1.0)])
def test_as_many_run_in_each_batch_and_each_sample_keeps_its_branch_at_its_rate(num_samples, rate):
    torch.manual_seed(0)
    num_draws = 4000
    kept = torch.zeros(num_samples)
    for _ in range(num_draws // 4):
        for s in FixedDraws().select([rate] * 4, torch.empty(num_samples, 3)):
            assert len(s.run_K) == math.ceil(round(num_samples * (1 - rate), 6))
            assert len(set(s.run_K.tolist())) == len(s.run_K)
            runs = torch.zeros(num_samples).index_fill_(0, s.run_K, 1.0)
            assert (s.keep_N <= runs).all() and len(s.run_K) - s.keep_N.sum() in (0, 1)
            assert s.keep_N[s.run_K[: s.num_sure]].all()
            assert all(s.run_K[s.row_N[n]] == n for n in s.run_K)
            kept += s.keep_N
    # the draws of one sample are independent of each other: five standard deviations of its mean
    assert ((kept / num_draws - (1 - rate)).abs() <= 5 * math.sqrt(rate * (1 - rate) / num_draws) + 1e-9).all()


@pytest.mark.parametrize('as_tensor', [False, True])
@pytest.mark.parametrize('scale_by_keep', [False, True])
def test_masks_have_the_same_distribution(scale_by_keep, as_tensor):
    torch.manual_seed(0)
    num_draws, rate = 4000, 0.33
    drop_prob = torch.tensor([rate], dtype=torch.float64) if as_tensor else rate
    draws = torch.stack([FixedDraws().samples(torch.empty(7), drop_prob, scale_by_keep) for _ in range(num_draws)])
    assert set((draws != 0).sum(1).tolist()) == {4, 5}  # of 4.69 in the mean
    value = 1 / (1 - rate) if scale_by_keep else 1.0
    torch.testing.assert_close(draws.max(), torch.tensor(value))
    mean = draws.mean(0) / value
    assert ((mean - (1 - rate)).abs() <= 5 * math.sqrt(rate * (1 - rate) / num_draws)).all()


@pytest.fixture
def bfloat16_by_default():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_rates_do_not_hang_on_the_default_type(bfloat16_by_default, monkeypatch):
    torch.manual_seed(0)
    x, num_draws = torch.empty(256, dtype=torch.float32), 2000
    more = sum(FixedDraws().samples(x, 0.3).sum().item() - 179 for _ in range(num_draws)) / num_draws
    assert abs(more - 0.2) <= 5 * math.sqrt(0.2 * 0.8 / num_draws)  # 179.2 are kept in the mean
    torch.manual_seed(0)
    together = FixedDraws().select([0.3] * 300, x)
    torch.manual_seed(0)
    alone = [s for _ in range(300) for s in FixedDraws().select([0.3], x)]
    assert all(torch.equal(s.keep_N, t.keep_N) for s, t in zip(together, alone))
    noted, rand = [], torch.rand
    monkeypatch.setattr(torch, 'rand', lambda *args, **kwargs: noted.append(rand(*args, **kwargs)) or noted[-1])
    FixedDraws().select([0.3], x)
    Draws().samples(x.to('meta'), torch.tensor([0.3]))  # as a graph draws on a device
    assert [drawn.dtype for drawn in noted] == [torch.float32] * 2


class Factor(nn.Module):
    """Multiplies a branch's samples with what was noted."""

    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def forward(self, x):
        return x * next(self.factors).view(-1, *[1] * (x.ndim - 1)).to(x.dtype)


def note_selections(model):
    """Note which samples the drop paths of a model keep in a step."""
    noted = []
    for _, drop_path in drop_paths(model):

        def select(shortcut, drawn=drop_path.select):
            noted.append(drawn(shortcut))
            return noted[-1]

        drop_path.select = select
    return noted


def with_factors(plain, model, factors):
    """timm's network, the branches of which are multiplied with factors."""
    plain, factors = copy.deepcopy(plain), iter(factors)
    for name, _ in drop_paths(model):
        parent, _, attribute = name.rpartition('.')
        setattr(plain.get_submodule(parent), attribute, Factor(factors))
    return plain


@pytest.mark.parametrize('scale_by_keep', [True, False])
@pytest.mark.parametrize('name', NETWORKS)
def test_a_step_is_that_of_timms_network_with_the_same_factors(name, scale_by_keep):
    settings = ts.Settings('sample', 0.4, 'uniform', scale_by_keep=scale_by_keep, skip_dropped=True, draw='fixed')
    plain, model = create(name, settings)
    noted = note_selections(model)
    x = images(7, 32).double()
    for seed in range(3):
        noted.clear()
        torch.manual_seed(seed)
        tensors = step(model, x)
        assert {len(s.run_K) for s in noted} == {5}  # of 4.2 in the mean
        scale = 1 / 0.6 if scale_by_keep else 1.0
        assert_same(tensors, step(with_factors(plain, model, [s.keep_N * scale for s in noted]), x))


@pytest.mark.parametrize('rate', [0.4, 1.0])
def test_a_compiled_step_is_one_graph_and_that_of_eager_mode(rate, fresh_compiler):
    _, model = create('vit_tiny_patch16_224', ts.Settings(
        'sample', rate, 'uniform', scale_by_keep=True, skip_dropped=True, draw='fixed'))  # fmt: skip
    counter = CompileCounterWithBackend('aot_eager')
    run = torch.compile(model, backend=counter, fullgraph=True)
    x = images(7, 32).double()
    for seed in range(3):
        torch.manual_seed(seed)
        expected = step(model, x)
        torch.manual_seed(seed)
        model.zero_grad()
        y = run(x)
        y.square().mean().backward()
        if rate < 1:  # in a graph one sample runs whose factor is 0
            assert_same([y.detach(), *(p.grad for p in model.parameters())], expected)
        assert all(p.grad is not None for p in model.parameters())
    assert counter.frame_count == 1
    for _, node in enumerate(n for graph in counter.graphs for n in graph.graph.nodes):
        value = node.meta.get('example_value')
        sizes = value.shape if isinstance(value, torch.Tensor) else ()
        assert all(isinstance(size, int) for size in sizes)  # as a CUDA graph needs it


def test_a_registered_model_has_it_and_says_so(tmp_path):
    model = timm.create_model('test_vit_sd_sample', draw='fixed', drop_path_rate=0.4, num_classes=3)
    timm.models.save_for_hf(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}')
    for network in (model, again):
        assert "skip_dropped=True, draw='fixed'" in repr(network.blocks[1].drop_path1)
        noted = note_selections(network)
        network.train()(torch.randn(5, 3, 160, 160))
        assert [len(s.run_K) for s in noted] == [5, 5, 5, 5, 4, 4, 4, 4, 3, 3]  # 4.6, 4.2, 3.8, 3.4, 3


def test_a_norm_sees_as_many_samples_in_each_batch():
    _, model = create('resnet18', ts.Settings('sample', 0.4, 'uniform', skip_dropped=True, draw='fixed'))
    seen = []
    model.layer3[1].bn1.register_forward_hook(lambda module, args, y: seen.append(len(y)))
    for _ in range(6):
        step(model, images(7, 32).double())
    assert seen == [5] * 6


def test_another_rate_has_another_number():
    _, model = create('vit_tiny_patch16_224')
    noted = note_selections(model)
    ts.set_drop_rate(model, 0.75)
    step(model, images(8, 32).double())
    assert {len(s.run_K) for s in noted} == {2}


def test_a_checkpointed_step_is_the_same():
    _, model = create('vit_tiny_patch16_224')
    x = images(7, 32).double()
    torch.manual_seed(1)
    expected = step(model, x)
    model.set_grad_checkpointing()
    torch.manual_seed(1)
    assert_same(step(model, x), expected)


@pytest.mark.parametrize('rate, real_first', [(0.3, False), (0.35, True)])
def test_fake_tensors_and_real_ones_take_turns(rate, real_first):
    def select():
        return [s.keep_N for s in FixedDraws().select([rate, 0.5], torch.empty(7, 3))]

    if real_first:
        select()
    with FakeTensorMode():  # to estimate the memory of a training, for instance
        assert all(isinstance(keep_N, FakeTensor) for keep_N in select())
    assert all(keep_N.sum() <= 5 for keep_N in select())


@pytest.mark.parametrize('settings, message', [
    (dict(stochastic_method='block'), "draw must be 'independent' with stochastic_method='block'"),
    (dict(drop_warmup=0.1), "draw must be 'independent' with a drop_warmup"),
    (dict(round_up=True), "round_up must be False with draw='fixed'"),
    (dict(draw='few'), "draw must be one of 'independent', 'fixed', but got 'few'"),
])  # fmt: skip
def test_what_has_no_fixed_number_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ts.Settings(**{**dict(stochastic_method='sample', draw='fixed'), **settings})
