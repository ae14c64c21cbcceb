import pytest
import torch
from timm.layers import DropPath

from timm_stochdepth.demo.digits import FORMAT as DIGITS
from timm_stochdepth.demo.fashion_mnist import FORMAT as FASHION
from timm_stochdepth.demo.methods import METHODS
from timm_stochdepth.demo.network import Network, check_method, fitted
from timm_stochdepth.inspection import drop_paths


@pytest.mark.parametrize(
    'model_name, args, num_tokens',
    [
        ('vit_tiny_patch16_224', {}, 4 * 4 + 1),
        ('vit_tiny_patch16_224', dict(patch_size=4), 7 * 7 + 1),
        ('eva02_tiny_patch14_224', {}, 2 * 2 + 1),  # its own patches fit
    ],
)
def test_patches_tile_the_image(model_name, args, num_tokens):
    network = fitted(Network(model_name, args, 0.4, 'skip'), FASHION)
    with torch.device('meta'):
        model = network.create()
        assert model(torch.empty(2, 1, 28, 28)).shape == (2, 10)
    assert model.pos_embed.shape[1] == num_tokens


def test_a_cifar_style_resnet_of_110_layers():
    args = dict(layers=(18, 18, 18, 0), channels=(16, 32, 64, 64))
    network = fitted(Network('resnet18', args, 0.5, 'block'), FASHION)
    assert 'img_size' not in network.model_args
    with torch.device('meta'):
        model = network.create()
        assert model(torch.empty(2, 1, 28, 28)).shape == (2, 10)
    rates = [place.drop_prob for _, place in drop_paths(model)]
    assert rates == pytest.approx([0.5 * i / 53 for i in range(54)])
    # two convolutions in each of them, the first one of all, and the classifier
    assert 2 * len(rates) + 2 == 110


def test_a_transformer_takes_the_digits_too():
    network = fitted(Network('vit_tiny_patch16_224'), DIGITS)
    with torch.device('meta'):
        assert network.create()(torch.empty(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    'network, message',
    [
        (Network('vit_tiny_patch16_224', dict(patch_size=5)), 'take images of 28 x 28 pixels'),
        (Network('vit_tiny_patch16_224', dict(no_such=1)), '--model-kwargs must be arguments of vit_tiny_patch16_224'),
        (Network('inception_v3'), "take images of 28 x 28 pixels, but got 'inception_v3'"),
    ],
)
def test_what_takes_no_such_images_is_refused(network, message):
    with pytest.raises(ValueError, match=message):
        fitted(network, FASHION)


def test_what_cannot_drop_is_refused():
    with pytest.raises(ValueError, match="must be networks with drop paths, but got 'vgg11'"):
        check_method(Network('vgg11', {}, 0.4, 'skip'))
    check_method(Network('vgg11', {}, 0.4, 'plain'))
    with pytest.raises(ValueError, match="can take, but got 'block'"):
        check_method(Network('rexnet_100', {}, 0.4, 'block'))


def test_methods_are_what_they_say():
    models = {name: Network('test_vit', dict(in_chans=1), 0.4, name).create() for name in METHODS}
    timms = {name: sum(isinstance(m, DropPath) for m in model.modules()) for name, model in models.items()}
    assert timms == dict(plain=0, timm=10, skip=0, sample=0, block=0)  # 6 blocks of 2 branches, the first at rate 0
    settings = {name: place.settings for name, model in models.items() for _, place in drop_paths(model)}
    assert set(settings) == {'skip', 'sample', 'block'}
    assert {
        (n, s.stochastic_method, s.scale_by_keep, s.skip_dropped, round(s.drop_rate, 6)) for n, s in settings.items()
    } == {
        ('skip', 'sample', True, True, 0.4),
        ('sample', 'sample', False, False, 0.4),
        ('block', 'block', False, False, 0.4),
    }
