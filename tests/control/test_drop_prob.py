"""Rates that a script writes to the drop paths themselves, as it does with timm's DropPath."""

import copy
import pickle

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import timm_stochdepth as ts

VIT = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
RATES = [0.2, 0.8, 0.0, 0.5, 1.0, 0.3, 0.6]


def vit(rate=0.2, method='sample', **settings):
    torch.manual_seed(0)
    model = timm.create_model('vit_tiny_patch16_224', drop_path_rate=rate, **VIT)
    ts.apply_stochastic_depth(model, method, 'DropPath', None, **settings)
    return model


def write(model, rate, names=('drop_path1', 'drop_path2')):
    for block in model.blocks:
        for name in names:
            getattr(block, name).drop_prob = rate


def share_dropped(block, forward, num_samples=2000):
    x = torch.randn(num_samples, 3, 16)
    with torch.no_grad():
        return float((forward(x) == x).all(2).all(1).float().mean())


@pytest.mark.usefixtures('fresh_compiler')
@pytest.mark.parametrize('first_rate', [0.2, 0.0])
@pytest.mark.parametrize(
    'settings',
    [
        {},
        dict(skip_dropped=True),
        pytest.param(dict(drop_schedule=[(0, 1)]), marks=pytest.mark.long),
        pytest.param(dict(skip_dropped=True, drop_schedule=[(0, 1)]), marks=pytest.mark.long),
    ],
)
@pytest.mark.filterwarnings('ignore:drop_rate is 0', 'ignore:drop_schedule')
def test_compiled_networks_draw_by_a_rate_that_is_written(settings, first_rate):
    block = vit(first_rate, scale_by_keep=True, **settings).blocks[1]
    counter = CompileCounterWithBackend('eager')
    compiled = torch.compile(block, backend=counter, fullgraph=True)
    for rate in (first_rate, *RATES):
        block.drop_path1.drop_prob = block.drop_path2.drop_prob = rate
        assert share_dropped(block, compiled) == pytest.approx(rate**2, abs=0.06)
        assert share_dropped(block, block) == pytest.approx(rate**2, abs=0.06)
    assert counter.frame_count <= 2


@pytest.mark.usefixtures('fresh_compiler')
@pytest.mark.parametrize('is_compiled', [False, True])
def test_inference_scales_by_a_rate_that_is_written(is_compiled):
    model = vit(scale_by_keep=False).eval()
    block, plain = model.blocks[1], timm.create_model('vit_tiny_patch16_224', **VIT).blocks[1].eval()
    plain.load_state_dict(block.state_dict())
    run = torch.compile(block, backend='eager', fullgraph=True) if is_compiled else block
    x = torch.randn(2, 3, 16)
    for rate in RATES:
        write(model, rate)
        y = x + (1 - rate) * plain.attn(plain.norm1(x))
        torch.testing.assert_close(run(x), y + (1 - rate) * plain.mlp(plain.norm2(y)))


@pytest.mark.parametrize('skip_dropped', [False, True])
def test_a_rate_that_is_written_as_torchvision_calls_it_is_torchvisions(skip_dropped):
    """`block.stochastic_depth.p`: one seed gives the output of torchvision's network at that rate."""
    results = []
    for is_ours in (False, True):
        torch.manual_seed(0)
        model = ConvNeXt([CNBlockConfig(8, None, 2)], stochastic_depth_prob=0.2, layer_scale=1.0, num_classes=3)
        if is_ours:
            ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, skip_dropped=skip_dropped)
        model.features[1][1].stochastic_depth.p = 0.7
        torch.manual_seed(1)
        results.append(model(torch.randn(16, 3, 16, 16)))
    torch.testing.assert_close(*results)
    assert ts.drop_rates(model)['features.1.1'] == 0.7


@pytest.mark.parametrize('skip_dropped', [False, True])
def test_a_convention_that_is_written_is_timms(skip_dropped):
    model, plain = (
        vit(0.5, scale_by_keep=True, skip_dropped=skip_dropped),
        timm.create_model('vit_tiny_patch16_224', drop_path_rate=0.5, **VIT),
    )
    plain.load_state_dict(model.state_dict())
    for network in (model, plain):
        for block in network.blocks[1:]:
            block.drop_path1.scale_by_keep = block.drop_path2.scale_by_keep = False
    x, outputs = torch.randn(8, 3, 32, 32), []
    for network in (model, plain):
        torch.manual_seed(3)
        outputs.append(network.train()(x))
    torch.testing.assert_close(*outputs)
    assert model.state_dict()._metadata['blocks.1.drop_path1']['settings']['scale_by_keep'] is False
    assert model.state_dict()._metadata['blocks.1.drop_path1']['inference_scale'] == 0.5


def test_block_mode_draws_by_a_rate_that_is_written():
    block = vit(method='block').blocks[1]
    for rate in (0.0, 1.0):
        block.drop_path1.drop_prob = block.drop_path2.drop_prob = rate
        assert {share_dropped(block, block, 2) for _ in range(20)} == {rate}


def test_small_rates_survive_a_small_default_type():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        drop_path = vit(0.0015).blocks[1].drop_path1
    finally:
        torch.set_default_dtype(before)
    assert float(drop_path.keep_prob) == 1 - drop_path.drop_prob == pytest.approx(1 - 0.0015, abs=1e-5)
    drop_path.drop_prob = 0.0025
    assert float(drop_path.keep_prob) == 1 - 0.0025


def test_a_rate_that_is_written_holds_until_the_package_sets_another():
    model = vit(0.2)
    averaged = copy.deepcopy(model)
    write(model, 0.4)
    assert ts.drop_rates(model) == {'blocks.0': 0.4, 'blocks.1': 0.4}
    assert ts.drop_rates(averaged) == {'blocks.0': 0.0, 'blocks.1': pytest.approx(0.2)}
    write(model, 0.3, ['drop_path2'])
    assert ts.drop_rates(model)['blocks.1.drop_path2'] == 0.3
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert ts.drop_rates(copied) == ts.drop_rates(model)
    said = model.state_dict()._metadata['blocks.1.drop_path1']
    assert said['own_rate'] == 0.4 and said['full_inference_scale'] == 1.0  # timm's convention
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None)
    assert list(ts.drop_rates(model).values()) == [0.4, 0.3] * 2
    ts.set_drop_rate(model, 0.1)
    assert list(ts.drop_rates(model).values()) == [0.1, pytest.approx(0.075)] * 2


def test_a_schedule_goes_on_from_a_rate_that_is_written():
    model = vit(0.2, drop_warmup=0.5)
    ts.set_training_progress(model, 0.25)
    write(model, 0.4)
    assert set(ts.drop_rates(model).values()) == {0.4}
    assert 'drop_prob=0.400 of 0.200' in repr(model.blocks[1].drop_path1)
    ts.set_training_progress(model, 0.5)
    assert ts.drop_rates(model)['blocks.1'] == pytest.approx(0.2)


def test_a_network_that_was_pickled_with_a_single_rate_goes_on_with_a_double_one():
    model = vit(0.2)
    drop_path = model.blocks[1].drop_path1
    drop_path.keep_prob = drop_path.keep_prob.float()
    loaded = pickle.loads(pickle.dumps(model)).blocks[1].drop_path1
    assert loaded.keep_prob.dtype == torch.float64 and float(loaded.keep_prob) == 1 - loaded.drop_prob


@pytest.mark.parametrize(
    'name, value, error',
    [('drop_prob', 1.1, ValueError), ('drop_prob', '0.1', TypeError), ('scale_by_keep', 1, TypeError)],
)
def test_wrong_values_are_named_and_change_nothing(name, value, error):
    drop_path = vit().blocks[1].drop_path1
    before = getattr(drop_path, name)
    with pytest.raises(error, match=f'{name} must be'):
        setattr(drop_path, name, value)
    assert getattr(drop_path, name) == before


def test_what_timms_takes_is_taken():
    ours, theirs = vit().blocks[1].drop_path1, DropPath(0.2)
    for rate in (torch.tensor(0.25), 1, 0):
        ours.drop_prob = theirs.drop_prob = rate
        assert ours.drop_prob == float(theirs.drop_prob) and type(ours.drop_prob) is float
    assert isinstance(ours, nn.Module)
