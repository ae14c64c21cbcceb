"""The drop rate of a network that is there: of the whole, of a part, of a single block."""

import copy
import pickle
import warnings

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.utils import ModelEmaV3
from told import told
from torch import nn

import timm_stochdepth as ts
from timm_stochdepth.hub.folder import write_folder
from timm_stochdepth.hub.load import load_model

VIT = dict(img_size=32, depth=5, embed_dim=32, num_heads=2, num_classes=4)
SD = dict(num_classes=4, layers=[1, 2, 1, 1], base_width=8)


def vit(drop_rate=0.2, distribution='linear', plain_rate=0.0, **settings):
    model = timm.create_model('vit_tiny_patch16_224', drop_path_rate=plain_rate, **VIT)
    settings = dict(scale_by_keep=True, skip_dropped=True) | settings
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'drop_rate is 0')
        ts.apply_stochastic_depth(model, 'sample', 'DropPath', drop_rate, distribution, **settings)
    return model


def rates(model):
    return list(ts.drop_rates(model).values())


@pytest.mark.parametrize('distribution, shares', [('linear', [0, 0.25, 0.5, 0.75, 1]), ('uniform', [1] * 5)])
@pytest.mark.parametrize('given', [None, 0.0])
def test_a_network_that_was_applied_at_rate_0_moves_by_its_distribution(distribution, shares, given):
    model = vit(given, distribution)
    assert rates(model) == [0.0] * 5
    assert told(ts.set_drop_rate, model, 0.4) == []
    assert rates(model) == pytest.approx([0.4 * share for share in shares])
    assert ts.stochastic_depth_args(model)['drop_path_rate'] == 0.4
    assert ts.stochastic_depth_args(model)['drop_distribution'] == distribution

    # the very draws of timm's own network at that rate, where all blocks have it
    if distribution == 'linear':
        plain = timm.create_model('vit_tiny_patch16_224', drop_path_rate=0.4, **VIT)
        plain.load_state_dict(model.state_dict())
        x = torch.randn(4, 3, 32, 32)
        torch.manual_seed(1)
        y = model(x)
        torch.manual_seed(1)
        torch.testing.assert_close(y, plain(x))


def test_rates_of_0_are_told_in_the_words_of_what_was_given():
    for rate in (None, 0.0):
        model = timm.create_model('vit_tiny_patch16_224', **VIT)
        (text,) = told(ts.apply_stochastic_depth, model, 'sample', 'DropPath', rate)
        assert text == 'drop_rate is 0: stochastic depth has no effect until set_drop_rate sets another.'


@pytest.mark.parametrize('distribution', ['linear', 'uniform'])
@pytest.mark.parametrize('index', [0, 3, 4])
def test_a_single_block_gets_the_rate(distribution, index):
    model = vit(0.2, distribution)
    expected = rates(model)
    expected[index] = 0.3
    assert told(ts.set_drop_rate, model.blocks[index], 0.3) == []
    assert rates(model) == pytest.approx(expected)
    names = list(ts.drop_rates(model))
    assert names == [f'blocks.{i}' for i in range(5)]  # by block, its drop paths alike
    expected[index] = 0.1
    for part in (model.blocks[index : index + 1], torch.compile(model.blocks[index])):  # what holds it alone
        ts.set_drop_rate(part, 0.1)
        assert rates(model) == pytest.approx(expected)
        ts.set_drop_rate(part, 0.3)

    # the whole network again: spread over the depth as before
    ts.set_drop_rate(model, 0.4)
    assert rates(model) == pytest.approx([2 * rate for rate in rates(vit(0.2, distribution))])


def test_a_blocks_rate_is_what_it_drops_at():
    model = vit(0.0, scale_by_keep=False, skip_dropped=False)
    block, x = model.blocks[0].train(), torch.randn(4000, 1, 32)
    ts.set_drop_rate(block, 0.7)
    with torch.no_grad():
        for m in block.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=0.5)
        dropped = (block(x) == x).all(-1).float().mean()  # both branches
        bound = 5 * (0.49 * 0.51 / 4000) ** 0.5
        assert abs(dropped - 0.49) < bound
        y = x + 0.3 * block.attn(block.norm1(x))
        torch.testing.assert_close(block.eval()(x), y + 0.3 * block.mlp(block.norm2(y)))


def test_a_part_with_several_blocks_keeps_its_shares():
    model = vit(0.2)
    assert told(ts.set_drop_rate, model.blocks[2:4], 0.4) == []
    assert rates(model) == pytest.approx([0, 0.05, 0.2, 0.3, 0.2])
    ts.set_drop_rate(model.blocks[3], 0.9)
    ts.set_drop_rate(model.blocks[2:4], 0.4)
    assert rates(model) == pytest.approx([0, 0.05, 0.2, 0.3, 0.2])


def test_one_of_two_drop_paths_is_listed_by_its_own_name():
    model = vit(0.2, 'uniform')
    ts.set_drop_rate(model.blocks[1].drop_path2, 0.5)
    assert ts.drop_rates(model)['blocks.1.drop_path1'] == 0.2
    assert ts.drop_rates(model)['blocks.1.drop_path2'] == 0.5


@pytest.mark.parametrize('drop_rate', [0.3, 1.0])
def test_copies_follow_a_single_block(drop_rate):
    model = vit(0.2)
    ema = ModelEmaV3(model)
    ts.set_drop_rate(model.blocks[1], drop_rate)
    expected = [0, drop_rate, 0.1, 0.15, 0.2]
    assert rates(model) == rates(ema) == pytest.approx(expected)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert rates(other) == pytest.approx(expected)
    ts.set_drop_rate(ema.module.blocks[1], 0.5)  # the run's, of which it is a copy
    assert rates(model) == rates(ema) == pytest.approx([0, 0.5, 0.1, 0.15, 0.2])
    ts.set_drop_rate(model, 0.4)
    assert rates(model) == rates(ema) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize('in_inference_mode', ['copied', 'made'])
def test_what_inference_mode_has_made_follows(in_inference_mode):
    """An evaluation that keeps a copy; the tensors of which nobody may write to outside."""
    with torch.inference_mode(in_inference_mode == 'made'):
        model = timm.create_model('test_vit_sd_sample', drop_path_rate=0.4, scale_by_keep=False)
    with torch.inference_mode():
        copied = copy.deepcopy(model)
        ts.set_drop_rate(copied, 0.3)
    ts.set_drop_rate(model, 0.2)
    assert ts.drop_rates(copied) == ts.drop_rates(model) and max(ts.drop_rates(model).values()) == 0.2
    x = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        torch.testing.assert_close(copied.eval()(x), model.eval()(x))


def test_a_single_block_keeps_its_function_and_its_warmup():
    model = timm.create_model('resnet50_sd_block', **SD, drop_warmup=0.5).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
    x = torch.randn(2, 3, 64, 64)
    y = model(x)
    ts.set_drop_rate(model.layer1[0], 0.6, keep_function=True)
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    ts.set_training_progress(model, 0.25)
    assert ts.drop_rates(model)['layer1.0'] == pytest.approx(0.3)
    ts.set_training_progress(model, 1.0)
    before = ts.drop_rates(model)
    with pytest.raises(ValueError, match='drop_rate must be below 1'):
        ts.set_drop_rate(model.layer1[0], 1.0, keep_function=True)
    assert ts.drop_rates(model) == before and before['layer1.0'] == 0.6  # undone


def test_rates_of_blocks_are_taken_over_by_another_call():
    model = vit(0.2)
    ts.set_drop_rate(model.blocks[0], 0.6)
    expected = rates(model)
    ts.apply_stochastic_depth(model, 'block', 'DropPath', None, scale_by_keep=True)
    assert rates(model) == pytest.approx(expected) and max(expected) == 0.6
    ts.set_drop_rate(model, 0.3)
    assert rates(model) == pytest.approx([rate / 2 for rate in expected])  # the shares that it has now


@pytest.mark.parametrize('settings', [dict(), dict(scale_by_keep=True)])
def test_a_blocks_rate_is_in_no_config(settings, tmp_path):
    model = timm.create_model('resnet50_sd_sample', **SD, **settings)
    write_folder(model, tmp_path / 'one_rate', 'user/net')
    args = ts.stochastic_depth_args(model)
    ts.set_drop_rate(model.layer1[0], 0.6)
    with pytest.warns(UserWarning, match=r'Blocks were given settings of their own.*: layer1.0.drop_path\.'):
        assert ts.stochastic_depth_args(model) == args  # those of the network
    with pytest.warns(UserWarning), pytest.raises(ValueError, match='model must have one drop rate and distribution'):
        write_folder(model, tmp_path / 'two_rates', 'user/net')
    ts.set_drop_rate(model, args['drop_path_rate'])
    assert told(ts.stochastic_depth_args, model) == []
    write_folder(model, tmp_path / 'again', 'user/net')
    configs = {(tmp_path / name / 'config.json').read_text() for name in ('one_rate', 'again')}
    assert len(configs) == 1


def test_what_cannot_move_is_told():
    model = timm.create_model('resnet50_sd_sample', **SD)  # its first stage has one block, of rate 0
    (text,) = told(ts.set_drop_rate, nn.Sequential(*vit(0.2).blocks[:1], *vit(0.2).blocks[:1]), 0.3)
    assert text.startswith('drop_rate=0.3 has no effect: the share of the rate that each of these blocks has is 0')
    assert told(ts.set_drop_rate, model, 0.3) == told(ts.set_drop_rate, model, 0.3) == []
    assert told(ts.set_drop_rate, model, 0.0) == []

    plain = timm.create_model('vit_tiny_patch16_224', **VIT)
    for index, rate in enumerate((0.0, 0.0, 0.0, 0.1, 0.2)):
        plain.blocks[index].drop_path1, plain.blocks[index].drop_path2 = DropPath(rate), DropPath(rate)
    ts.apply_stochastic_depth(plain, 'sample', 'DropPath', None)
    assert len(told(ts.set_drop_rate, plain.blocks[:3], 0.3)) == 1
    assert told(ts.set_drop_rate, plain.blocks[:4], 0.3) == []
    assert told(ts.set_drop_rate, plain.blocks[0], 0.3) == []
    assert rates(plain) == pytest.approx([0.3, 0, 0, 0.15, 0.2])


def test_the_only_block_of_a_network():
    block = timm.models.resnet.BasicBlock(8, 8)
    (text,) = told(ts.apply_stochastic_depth, block, 'sample', 'ResNetBasicBlock', 0.5)
    assert "drop_rate=0.5 has no effect: with drop_distribution='linear' the first block has the rate 0" in text
    assert told(ts.set_drop_rate, block, 0.4) == [] and rates(block) == [0.4]
    assert told(ts.apply_stochastic_depth, block, 'sample', 'ResNetBasicBlock', 0.5, 'uniform') == []
    ts.set_drop_rate(block, 0.3)
    assert told(ts.stochastic_depth_args, block) == [] and ts.stochastic_depth_args(block)['drop_path_rate'] == 0.3


@pytest.mark.parametrize('function, args', [(ts.start_warmup, ()), (ts.set_training_progress, (0.3,))])
def test_a_network_without_a_schedule_is_told_once(function, args):
    model = vit(0.2)
    (text,) = told(function, model, *args)
    assert text.startswith(f'{function.__name__} has no effect: the drop rates of VisionTransformer do not move')
    assert 'drop_warmup' in text and 'drop_schedule' in text
    for step in (0.4, 0.6, 1.0):  # of a loop
        assert told(ts.set_training_progress, model, step) == []
    assert rates(model) == rates(vit(0.2))
    for settings in (dict(drop_warmup=0.5), dict(drop_schedule=[(0, 1), (0.2, 0)])):
        model = vit(0.2, **settings)
        assert told(function, model, *args) == [] == told(ts.set_training_progress, model, 0.5)
        assert told(function, nn.ModuleList([vit(0.2), model]), *args) == []  # of a trainer that holds several


def test_a_file_of_weights_says_the_rate_of_a_single_block(tmp_path):
    model = timm.create_model('test_vit', num_classes=4)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4)
    ts.set_drop_rate(model.blocks[2], 0.5)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    loaded, _ = load_model(tmp_path / 'weights.pth', model_name='test_vit')
    assert ts.drop_rates(loaded) == ts.drop_rates(model) and ts.drop_rates(loaded)['blocks.2'] == 0.5
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(x), model.eval()(x))
