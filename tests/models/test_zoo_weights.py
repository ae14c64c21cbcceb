"""Weights of timm's plain networks in the registered models of fourteen families, and models on their way to others."""

import pytest
import timm
import torch
from family_networks import FAMILIES, FIRST
from networks import assert_same_output
from training_steps import assert_same_training_step, output, randomize, train_without_batch_statistics

import timm_stochdepth as ts
from timm_stochdepth.hub.folder import write_folder
from timm_stochdepth.inspection import drop_paths
from timm_stochdepth.zoo.exceptions import can_scale_at_inference
from timm_stochdepth.zoo.names import timm_modules

QUICK = ['convnext.ConvNeXtBlock', 'regnet.Bottleneck', 'vision_transformer.Block']
FOURTEEN = [pytest.param(family, marks=[] if family in QUICK else pytest.mark.long) for family in FIRST]
MODULES = timm_modules()


def create(family, method='', **settings):
    name, kwargs, _ = FAMILIES[family]
    return timm.create_model(f'{name}_sd_{method}' if method else name, num_classes=5, **kwargs, **settings)


def conventions(family):
    name = FAMILIES[family][0]
    return (True, False) if can_scale_at_inference(name, MODULES[name]) else (True,)


def image(family):
    size = FAMILIES[family][2]
    return torch.randn(2, 3, size, size, dtype=torch.float64)


@torch.no_grad()
def assert_same_function(model, reference, family):
    """In double precision, so that what is left is the rounding of the weights, which are in single precision."""
    x = image(family)
    assert_same_output(output(model.double().eval(), x), output(reference.double().eval(), x))


@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('family', FOURTEEN)
def test_plain_weights_give_the_plain_logits(family, method, tmp_path):
    plain = randomize(create(family))
    path = tmp_path / 'plain.pth'
    torch.save(plain.state_dict(), path)
    for scale_by_keep in conventions(family):
        model = create(
            family,
            method,
            drop_path_rate=0.6,
            scale_by_keep=scale_by_keep,
            pretrained=True,
            pretrained_cfg_overlay=dict(file=str(path), num_classes=5),
        )
        assert model.pretrained_cfg['file'] == str(path) and 'state_dict' not in model.pretrained_cfg
        assert max(ts.drop_rates(model).values()) > 0.3
        assert_same_function(model, plain, family)


@pytest.mark.parametrize('family', QUICK)
def test_other_classes_and_channels_load_as_in_timm(family, tmp_path):
    path = tmp_path / 'plain.pth'
    torch.save(randomize(create(family)).state_dict(), path)
    kwargs = {**FAMILIES[family][1], 'num_classes': 7, 'in_chans': 1, 'pretrained': True}
    kwargs.update(pretrained_cfg_overlay=dict(file=str(path)))
    name, x = FAMILIES[family][0], image(family)[:, :1]
    plain = timm.create_model(name, **kwargs).double().eval()
    model = timm.create_model(f'{name}_sd_sample', scale_by_keep=False, fold_pretrained=True, **kwargs).double().eval()
    with torch.no_grad():
        assert model(x).shape == (2, 7)
        assert_same_output(model.forward_features(x), plain.forward_features(x))


@pytest.mark.parametrize('scale_by_keep, gamma', [(True, 1.0), (False, 2.0)])  # which has taken up 1 / (1 - rate)
def test_weights_of_other_formats_go_through_the_networks_own_loader(scale_by_keep, gamma, monkeypatch):
    def load_pretrained(self, path):
        assert path == 'weights.npz'
        torch.nn.init.ones_(self.blocks[5].ls2.gamma)

    monkeypatch.setattr(timm.models.vision_transformer.VisionTransformer, 'load_pretrained', load_pretrained)
    model = timm.create_model(
        'vit_tiny_patch16_224_sd_sample',
        depth=6,
        init_values=0.1,
        drop_path_rate=0.5,
        scale_by_keep=scale_by_keep,
        fold_pretrained=True,
        pretrained=True,
        pretrained_cfg_overlay=dict(file='weights.npz', custom_load=True),
    )
    assert (model.blocks[5].ls2.gamma == gamma).all()


def test_a_checkpoint_of_the_model_is_loaded_as_it_is(tmp_path):
    args = dict(drop_path_rate=0.5, scale_by_keep=False)
    model = randomize(timm.create_model('test_vit_sd_sample', **args))
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    loaded = timm.create_model('test_vit_sd_sample', checkpoint_path=str(tmp_path / 'model.pth'), **args)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.filterwarnings('error')
def test_a_file_that_names_a_model_of_timms_convention_needs_to_say_no_rate(tmp_path):
    model = randomize(timm.create_model('test_vit_sd_sample', num_classes=3, drop_path_rate=0.4)).eval()
    path = tmp_path / 'model.pth'
    torch.save(dict(arch='test_vit_sd_sample', state_dict=dict(model.state_dict())), path)
    overlay = dict(file=str(path), num_classes=3)
    for settings in ({}, dict(scale_by_keep=False, drop_path_rate=0.6)):
        loaded = timm.create_model(
            'test_vit_sd_sample', num_classes=3, pretrained=True, pretrained_cfg_overlay=overlay, **settings
        )
        x = torch.randn(1, 3, *model.pretrained_cfg['input_size'][1:])
        with torch.no_grad():
            assert_same_output(loaded.eval()(x), model(x))


@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('family', FOURTEEN)
def test_a_model_comes_back_from_a_folder_of_the_hub(family, method, tmp_path):
    for scale_by_keep in conventions(family):
        model = randomize(create(family, method, drop_path_rate=0.6, scale_by_keep=scale_by_keep, drop_warmup=0.1))
        folders = tmp_path / f'pushed_{scale_by_keep}', tmp_path / f'saved_{scale_by_keep}'
        write_folder(model, folders[0], 'user/net')
        timm.models.save_for_hf(model, folders[1], safe_serialization=True)
        for folder in folders:
            loaded = timm.create_model(f'local-dir:{folder}', pretrained=True)
            assert ts.stochastic_depth_args(loaded) == ts.stochastic_depth_args(model)
            assert ts.drop_rates(loaded) == ts.drop_rates(model)
            assert_same_function(loaded, model, family)
            other = timm.create_model(f'local-dir:{folder}', pretrained=True, drop_path_rate=0.2)
            assert ts.stochastic_depth_args(other)['drop_path_rate'] == 0.2
            assert_same_function(other, model, family)
            model.float()


@pytest.mark.parametrize('feature_cls', ['dict', 'fx', 'getter', 'hook', 'list'])
def test_features_of_a_stochastic_network_keep_its_function_at_another_rate(feature_cls, tmp_path):
    args = dict(drop_path_rate=0.6, scale_by_keep=False)
    whole = randomize(timm.create_model('test_convnext_sd_sample', **args)).eval()
    timm.models.save_for_hf(whole, tmp_path, safe_serialization=True)
    features = timm.create_model(
        f'local-dir:{tmp_path}',
        pretrained=True,
        drop_path_rate=0.2,
        features_only=True,
        feature_cls=feature_cls,
        out_indices=(1, 2),
    ).eval()
    assert 0 < max(ts.drop_rates(features).values()) < 0.2 or feature_cls != 'getter'
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = features(x)
        expected = whole.forward_intermediates(x, indices=(1, 2), intermediates_only=True)
        for y, y_whole in zip(found.values() if isinstance(found, dict) else found, expected):
            assert_same_output(y, y_whole)


@pytest.mark.parametrize('features', [{}, dict(features_only=True), dict(features_only=True, feature_cls='fx')])
def test_no_part_of_a_network_holds_on_to_the_weights_of_a_file(features, tmp_path):
    torch.save(timm.create_model('test_vit').state_dict(), tmp_path / 'plain.pth')
    overlay = dict(file=str(tmp_path / 'plain.pth'))
    model = timm.create_model('test_vit_sd_sample', pretrained=True, pretrained_cfg_overlay=overlay, **features)
    configs = [m.pretrained_cfg for m in model.modules() if hasattr(m, 'pretrained_cfg')]
    assert configs and not any('state_dict' in config for config in configs)
    assert all(config['file'] == overlay['file'] for config in configs)


@pytest.mark.parametrize('family', FOURTEEN)
def test_a_training_step_is_that_of_timms_drop_path(family):
    """In single precision, in which most families of timm compute their rates."""
    torch.manual_seed(0)
    plain = randomize(create(family, drop_path_rate=0.5))
    for settings in ({}, dict(skip_dropped=True)):
        model = create(family, 'sample', drop_path_rate=0.5, scale_by_keep=True, **settings)
        model.load_state_dict(plain.state_dict())
        assert_same_training_step(
            family, train_without_batch_statistics(plain), train_without_batch_statistics(model), seed=1
        )
    assert any(d.skip_dropped for _, d in drop_paths(model))
