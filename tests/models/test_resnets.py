import warnings

import pytest
import timm
import torch
from forks import run_python
from networks import ZOO_CASES, assert_same_output, images, plain_name, randomize

import timm_stochdepth as ts


@pytest.mark.parametrize('name, num_tags', [('resnet50', 19), ('resnet101', 7)])
def test_every_tag_of_timm_is_a_tag_here_with_timms_weights(name, num_tags):
    plain = {cfg.tag: cfg for cfg in timm.models.get_arch_pretrained_cfgs(name).values()}
    assert len(plain) == num_tags
    pretrained = timm.list_pretrained('*_sd_*')
    for method in ('sample', 'block'):
        cfgs = {cfg.tag: cfg for cfg in timm.models.get_arch_pretrained_cfgs(f'{name}_sd_{method}').values()}
        assert list(cfgs) == list(plain)  # in timm's order, so that the default tag is timm's too
        for tag, cfg in cfgs.items():
            ours, theirs = cfg.to_dict(), plain[tag].to_dict()
            assert ours.pop('architecture') == f'{name}_sd_{method}'
            assert theirs.pop('architecture') == name
            assert ours == theirs
            assert ours['hf_hub_id'] == f'timm/{name}.{tag}'
            assert f'{name}_sd_{method}.{tag}' in pretrained


@pytest.mark.parametrize('name', ZOO_CASES)
@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=7, in_chans=1), dict(num_classes=0, global_pool='')])
def test_state_dict_is_that_of_timms_plain_model(name, kwargs):
    with torch.device('meta'):
        model, plain = timm.create_model(name, **kwargs), timm.create_model(plain_name(name), **kwargs)
    state = {k: (v.shape, v.dtype) for k, v in model.state_dict().items()}
    assert list(state.items()) == [(k, (v.shape, v.dtype)) for k, v in plain.state_dict().items()]
    assert [n for n, _ in model.named_buffers()] == [n for n, _ in plain.named_buffers()]
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]


@pytest.fixture
def plain_checkpoint(tmp_path):
    """timm's plain ResNets, their weights in files: (model, path) of a name."""

    def create(name):
        plain = randomize(timm.create_model(name)).eval()
        path = tmp_path / f'{name}.pth'
        torch.save(dict(plain.state_dict()), path)  # without metadata: nothing says what network it is
        return plain, str(path)

    return create


@pytest.mark.parametrize('name', ZOO_CASES)
@pytest.mark.parametrize('kwargs', [{}, dict(drop_path_rate=0.7), dict(drop_path_rate=0.5, scale_by_keep=True)])
def test_plain_weights_give_the_plain_logits(name, kwargs, plain_checkpoint):
    plain, path = plain_checkpoint(plain_name(name))
    overlay = dict(file=path)
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, fold_pretrained=True, **kwargs)
    x = images(2)
    with torch.no_grad():
        y = plain(x)
        assert (model.eval()(x) - y).abs().max() <= 1e-4 * y.abs().max()
    assert max(ts.drop_rates(model).values()) > 0


def test_weights_of_unknown_origin_are_folded_and_the_user_told(plain_checkpoint):
    plain, path = plain_checkpoint('resnet50')
    with pytest.warns(UserWarning, match='fold_pretrained=False loads them as they are'):
        model = timm.create_model('resnet50_sd_block', pretrained=True, pretrained_cfg_overlay=dict(file=path))
    x = images(2)
    with torch.no_grad():
        assert_same_output(model.eval()(x), plain(x))


def test_nothing_is_said_where_folding_changes_nothing(plain_checkpoint):
    _, path = plain_checkpoint('resnet50')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        timm.create_model(
            'resnet50_sd_block', pretrained=True, pretrained_cfg_overlay=dict(file=path), scale_by_keep=True
        )


def test_weights_are_loaded_as_they_are_on_request(plain_checkpoint):
    plain, path = plain_checkpoint('resnet50')
    model = timm.create_model(
        'resnet50_sd_block', pretrained=True, pretrained_cfg_overlay=dict(file=path), fold_pretrained=False
    )
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('name', ZOO_CASES)
def test_own_checkpoints_are_loaded_as_they_are(name, tmp_path):
    model = randomize(timm.create_model(name, num_classes=10, drop_path_rate=0.6)).eval()
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert ts.drop_rates(loaded) == ts.drop_rates(model)
    x = images(2)
    assert torch.equal(loaded(x), model(x))

    torch.save(model.state_dict(), tmp_path / 'checkpoint.pth')
    loaded = timm.create_model(
        name, num_classes=10, drop_path_rate=0.6, checkpoint_path=str(tmp_path / 'checkpoint.pth')
    ).eval()
    assert torch.equal(loaded(x), model(x))


def test_a_fold_that_timm_recorded_is_not_repeated(tmp_path, plain_checkpoint):
    plain, path = plain_checkpoint('resnet50')
    model = timm.create_model(
        'resnet50_sd_block', pretrained=True, pretrained_cfg_overlay=dict(file=path), fold_pretrained=True
    )
    timm.models.save_for_hf(model, str(tmp_path / 'saved'), safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True).eval()
    x = images(2)
    with torch.no_grad():
        assert_same_output(loaded(x), plain(x))


def test_a_folded_model_is_saved_as_timms_own(tmp_path):
    model = randomize(timm.create_model('resnet50_sd_sample', num_classes=10)).eval()
    timm.models.save_for_hf(ts.fold_stochastic_depth(model), str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert not ts.drop_rates(loaded)
    x = images(2)
    assert_same_output(loaded(x), model(x))


@pytest.mark.parametrize('name', ZOO_CASES)
def test_rate_one_cannot_be_folded_on_load(name, plain_checkpoint):
    _, path = plain_checkpoint(plain_name(name))
    overlay = dict(file=path)
    with pytest.raises(ValueError, match=r'drop_rate must be below 1 to fold.*layer4\.2'):
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, drop_path_rate=1.0)
    timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, drop_path_rate=1.0, scale_by_keep=True)


@pytest.mark.parametrize('name', ZOO_CASES)
def test_other_classes_and_channels_load_as_in_timm(name, plain_checkpoint):
    _, path = plain_checkpoint(plain_name(name))
    kwargs = dict(pretrained=True, pretrained_cfg_overlay=dict(file=path), num_classes=7, in_chans=1)
    plain = timm.create_model(plain_name(name), **kwargs).eval()
    model = timm.create_model(name, fold_pretrained=True, **kwargs).eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert model(x).shape == (2, 7)
        assert_same_output(model.forward_features(x), plain.forward_features(x))


@pytest.mark.parametrize('name', ZOO_CASES)
def test_arguments_of_timms_resnet_work(name):
    model = timm.create_model(name, num_classes=0, output_stride=8, global_pool='max').eval()
    plain = timm.create_model(plain_name(name), num_classes=0, output_stride=8, global_pool='max').eval()
    model.load_state_dict(plain.state_dict())
    ts.set_drop_rate(model, 0.0)
    x = images(1)
    with torch.no_grad():
        assert model.forward_features(x).shape[-2:] == (8, 8)
        assert torch.equal(model(x), plain(x))


def test_classifier_dropout_is_not_stochastic_depth():
    model = timm.create_model('resnet50_sd_sample', drop_rate=0.5)
    assert model.drop_rate == 0.5
    assert max(ts.drop_rates(model).values()) == 0.1


@pytest.mark.parametrize('name', ZOO_CASES)
def test_features_are_those_of_the_folded_network(name):
    model = randomize(timm.create_model(name, num_classes=10)).eval()
    plain = ts.fold_stochastic_depth(model)
    x = images(1)
    features = timm.create_model(name, features_only=True, out_indices=(1, 4)).eval()
    features.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('fc.')})
    with torch.no_grad():
        expected = plain.forward_intermediates(x, intermediates_only=True)
        for y, y_plain in zip(model.forward_intermediates(x, intermediates_only=True), expected):
            assert_same_output(y, y_plain)
        for y, y_plain in zip(features(x), (expected[1], expected[4])):
            assert_same_output(y, y_plain)


@pytest.mark.parametrize('name', ZOO_CASES)
def test_gradients_are_the_same_with_checkpointing(name):
    model = randomize(timm.create_model(name, num_classes=10, drop_path_rate=0.5))
    x = images(2)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(1)
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for grad, grad_checkpointed in zip(*grads):
        torch.testing.assert_close(grad_checkpointed, grad)


@pytest.mark.parametrize(
    'kwargs, error, message',
    [
        (dict(drop_path_rate='high'), TypeError, "drop_path_rate must be a real number.*'high'"),
        (dict(drop_path_rate=2.0), ValueError, 'drop_path_rate must be in'),
        (dict(drop_distribution='cubic'), ValueError, 'drop_distribution must be one of'),
        (dict(drop_warmup='0.1ep'), TypeError, 'drop_warmup must be a real number'),
        (dict(fold_pretrained='no'), TypeError, "fold_pretrained must be True or False, but got 'no'"),
        (dict(drop_pathrate=0.1), TypeError, 'drop_pathrate'),
    ],
)
def test_bad_arguments_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        timm.create_model('resnet50_sd_block', **kwargs)


def test_weights_of_a_tag_are_folded_without_a_word(hub_cache):
    """The Hub's client reads its environment once, and so does a process of its own."""
    script = """
import warnings
import timm, torch
import timm_stochdepth
warnings.simplefilter('error')
x = torch.randn(2, 3, 64, 64)
plain = timm.create_model('resnet50.a1_in1k', pretrained=True).eval()
with torch.no_grad():
    y = plain(x)
    for name in ('resnet50_sd_sample.a1_in1k', 'resnet50_sd_block.a1_in1k', 'resnet50_sd_block'):
        for drop_path_rate in (None, 0.6):
            model = timm.create_model(name, pretrained=True, drop_path_rate=drop_path_rate).eval()
            assert max(timm_stochdepth.drop_rates(model).values()) >= 0.1
            assert (model(x) - y).abs().max() <= 1e-4 * y.abs().max()
"""
    result = run_python('-c', script, env=hub_cache)
    assert result.returncode == 0, result.stderr
