"""show counts at the size that a network is for, and shows what a network has, wherever it is."""

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch.utils.flop_counter import FlopCounterMode

import timm_stochdepth as ts
from timm_stochdepth.cli.main import main

VIT = 'vit_tiny_patch16_224'


def vit_share(size, depth=12):
    """Share of the operations of a block of ViT-Ti at 1000 classes: by the formula, in multiply-adds."""
    num_tokens, dim = (size // 16) ** 2 + 1, 192
    attention_and_mlp = num_tokens * 12 * dim**2 + 2 * num_tokens**2 * dim
    return attention_and_mlp / (depth * attention_and_mlp + (num_tokens - 1) * 16 * 16 * 3 * dim + dim * 1000)


def resnet18_share(height, width):
    """Share of the first block of ResNet-18's last stage, with half of its first convolution's input channels."""
    with FlopCounterMode(display=False) as counter, torch.device('meta'):
        timm.create_model('resnet18').eval()(torch.empty(1, 3, height, width))
    num_pixels = -(-height // 32) * -(-width // 32)
    return 2 * num_pixels * 9 * 512 * (256 + 512) / counter.get_total_flops()


def shown(capsys, *line):
    """The share of each block's operations, its rate, and the size that show says."""
    assert main(['show', *map(str, line)]) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert err == ''
    rows = [row.split() for row in out.splitlines() if row.startswith(('blocks.', 'layer', 'stages.'))]
    (said,) = [row.rpartition(', at ')[2] for row in out.splitlines() if row.startswith('Operations left')]
    return {r[0]: float(r[3].rstrip('%')) / 100 for r in rows}, {r[0]: float(r[1]) for r in rows}, said


def save_run(path, model, name, **args):
    torch.save(dict(epoch=0, arch=name, state_dict=model.state_dict(), args=dict(model=name, **args)), path)


def rounded(share):
    return pytest.approx(share, abs=5.1e-5)


@pytest.mark.parametrize('options, size', [([], 224), (['--img-size', '32'], 32), (['--img-size', '48'], 48)])
def test_a_network_of_one_size_is_built_for_the_size_that_is_given(options, size, capsys):
    shares, _, said = shown(capsys, VIT, '--drop-path', '0.1', *options)
    assert list(shares.values()) == rounded([vit_share(size)] * 12) and said == f'{size} pixels.'


@pytest.mark.parametrize('options, size', [([], 224), (['--img-size', '64'], 64), (['--img-size', '100'], 100)])
def test_a_network_of_any_size_is_given_images_of_it(options, size, capsys):
    shares, _, said = shown(capsys, 'resnet18', '--drop-path', '0.1', *options)
    assert shares['layer4.0'] == rounded(resnet18_share(size, size)) and said == f'{size} pixels.'


def test_a_size_among_the_networks_arguments_is_its_own(tmp_path, capsys):
    shares, _, said = shown(capsys, VIT, '--drop-path', '0.1', '--model-kwargs', 'img_size=64')
    assert shares['blocks.0'] == rounded(vit_share(64)) and said == '64 pixels.'
    model = timm.create_model(VIT, img_size=32, depth=2)
    save_for_hf(model, str(tmp_path / 'net'), model_args=dict(img_size=32, depth=2))
    shares, _, said = shown(capsys, tmp_path / 'net', '--drop-path', '0.1')
    assert shares['blocks.0'] == rounded(vit_share(32, depth=2)) and said == '32 pixels.'


@pytest.mark.parametrize(
    'args',
    [
        dict(img_size=32, model_kwargs=dict(img_size=32, depth=2)),
        dict(img_size=None, model_kwargs=dict(img_size=32, depth=2)),
        dict(img_size=32, model_kwargs=dict(depth=2)),
    ],
)
def test_a_checkpoint_says_the_size_that_it_was_trained_at(args, tmp_path, capsys):
    path = tmp_path / 'last.pth.tar'
    save_run(path, timm.create_model(VIT, img_size=32, depth=2), VIT, drop_path=0.2, **args)
    shares, rates, said = shown(capsys, path)
    assert shares['blocks.0'] == rounded(vit_share(32, depth=2)) and said == '32 pixels.'
    assert rates == {'blocks.0': 0, 'blocks.1': 0.2}  # those that timm gave its drop paths
    shares, _, said = shown(capsys, path, '--img-size', '64')
    assert shares['blocks.0'] == rounded(vit_share(64, depth=2)) and said == '64 pixels.'


@pytest.mark.parametrize('args, size', [(dict(img_size=64), (64, 64)), (dict(input_size=[3, 64, 96]), (64, 96))])
def test_a_checkpoint_of_a_network_of_any_size_says_it_too(args, size, tmp_path, capsys):
    path = tmp_path / 'last.pth.tar'
    save_run(path, timm.create_model('resnet18'), 'resnet18', drop_path=0.2, **args)
    shares, _, said = shown(capsys, path)
    assert (
        shares['layer4.0'] == rounded(resnet18_share(*size)) and said == {64: '64', 96: '64 x 96'}[size[1]] + ' pixels.'
    )


def test_the_rates_of_a_plain_network_that_has_some(capsys):
    timms = timm.create_model('test_convnext', drop_path_rate=0.3)
    expected = [getattr(block.drop_path, 'drop_prob', 0) for stage in timms.stages for block in stage.blocks]
    _, rates, _ = shown(capsys, 'test_convnext', '--model-kwargs', 'drop_path_rate=0.3')
    assert list(rates.values()) == pytest.approx(expected, abs=5e-5) and max(expected) == pytest.approx(0.3)
    _, rates, _ = shown(
        capsys, 'test_convnext', '--model-kwargs', 'drop_path_rate=0.3', '--drop-distribution', 'uniform'
    )
    assert set(rates.values()) == {0.3}
    _, rates, _ = shown(capsys, 'test_vit', '--drop-path', '0.5')
    assert list(rates.values()) == [0, 0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize('name', ['resnet18', 'test_vit', 'test_convnext', 'swin_tiny_patch4_window7_224'])
def test_the_code_comes_without_a_warning(name, capsys):
    assert main(['show', name, '--code']) == 0
    out, err = capsys.readouterr()
    assert 'def drop_path' in out and err == ''


@pytest.mark.parametrize(
    'line, message',
    [
        ([VIT, '--drop-path', '0.1', '--img-size', '9'], '--img-size must be 16 or more for this network, but got 9.'),
        (
            ['test_vit', '--drop-path', '0.1', '--img-size', '31'],
            '--img-size must be a size that test_vit takes, as 160, but got 31: Input height (31) should be divisible',
        ),
        (['levit_128s', '--drop-path', '0.1', '--img-size', '70'], '--img-size must be a size that levit_128s takes'),
        (
            [VIT, '--img-size', '32', '--model-kwargs', 'img_size=64'],
            '--img-size must be left out with --model-kwargs img_size=..., which says the same.',
        ),
        (
            [VIT, '--drop-path', '0.1', '--model-kwargs', 'drop_path_rate=0.2'],
            '--drop-path must be left out with --model-kwargs drop_path_rate=..., which says the same.',
        ),
        (
            ['vgg11', '--drop-path', '0.1'],
            "model must have branches that can be dropped, but got 'vgg11', which has none.",
        ),
        (['test_efficientnet', '--code'], "but got 'test_efficientnet', which has none."),
        ([VIT, '--img-size', '32'], f"model must have stochastic depth, but got '{VIT}'"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_sentence(line, message, capsys):
    assert main(['show', *line]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count('\n') == 1 and out == ''


def test_weights_of_another_network_than_is_said_are_refused(tmp_path, capsys):
    torch.save(timm.create_model('test_resnet').state_dict(), tmp_path / 'alone.pth')
    line = ['show', str(tmp_path / 'alone.pth'), '--drop-path', '0.1', '--model']
    assert main([*line, 'test_resnet']) == 0
    assert main([*line, 'test_vit']) == 1
    assert "alone.pth holds the weights of, but got 'test_vit': not both have blocks.0." in capsys.readouterr().err


@pytest.mark.parametrize('line', [['shvit_s1_sd_sample'], ['shvit_s1', '--drop-path', '0.1']])
def test_blocks_to_which_timm_gives_no_drop_path_are_shown(line, capsys):
    _, rates, said = shown(capsys, *line)
    expected = {name: 0.1 * i / 38 for i, name in enumerate(ts.drop_rates(timm.create_model('shvit_s1_sd_sample')))}
    assert rates == pytest.approx(expected, abs=5e-5) and len(rates) == 39 and said == '224 pixels.'
