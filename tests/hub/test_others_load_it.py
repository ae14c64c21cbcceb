"""What is pushed is what timm itself would write, but for what has to differ, and transformers loads it."""

import json
import warnings

import pytest
import timm
import torch
from networks import assert_same_output, randomize
from PIL import Image
from timm.models._hub import save_config_for_hf

import timm_stochdepth as ts
from timm_stochdepth.hub.folder import write_folder
from timm_stochdepth.hub.record import TrainingRecord

NAMES = ['ant', 'bee', 'cat', 'dog']
NETWORKS = {
    'rate': ('resnet50_sd_block', dict(drop_path_rate=0.5)),
    'distribution': ('resnet50_sd_sample', dict(drop_distribution='uniform')),
    'convention': ('resnet50_sd_sample', dict(scale_by_keep=True, skip_dropped=True)),
    'shape': ('resnet50_sd_block', dict(in_chans=1, global_pool='max', output_stride=16)),
    'warm-up': ('resnet50_sd_block', dict(drop_warmup=0.5)),
    'folded': ('resnet50_sd_block', dict(drop_path_rate=0.5, drop_distribution='uniform')),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    name, kwargs = NETWORKS[request.param]
    model = randomize(timm.create_model(name, num_classes=4, layers=[1, 2, 1, 1], base_width=8, **kwargs)).eval()
    return ts.fold_stochastic_depth(model) if request.param == 'folded' else model


def difference(ours, theirs, prefix=''):
    """Keys of either whose values differ, those of dictionaries below them."""
    keys = set()
    for key in {**ours, **theirs}:
        if isinstance(ours.get(key), dict) and isinstance(theirs.get(key), dict):
            keys |= difference(ours[key], theirs[key], f'{prefix}{key}.')
        elif ours.get(key, difference) != theirs.get(key, difference):
            keys.add(f'{prefix}{key}')
    return keys


def test_the_config_is_timms_but_for_what_has_to_differ(network, tmp_path):
    write_folder(network, tmp_path / 'net', 'user/net', TrainingRecord(label_names=NAMES))
    ours = json.loads((tmp_path / 'net' / 'config.json').read_text())
    model_args = ts.stochastic_depth_args(network) if ts.drop_rates(network) else {}
    save_config_for_hf(network, tmp_path / 'config.json', model_config=dict(label_names=NAMES), model_args=model_args)
    theirs = json.loads((tmp_path / 'config.json').read_text())
    assert difference(ours, theirs) == {
        'pretrained_cfg.tag',  # of timm's weights, which these are not
        'pretrained_cfg.origin_url',
        'pretrained_cfg.paper_ids',
        'pretrained_cfg.license',
    }
    assert list(ours) == list(theirs)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_transformers_computes_what_timm_computes(network, tmp_path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    in_chans = network.in_chans if hasattr(network, 'in_chans') else 3
    x = torch.randn(2, in_chans, 64, 64)
    write_folder(network, tmp_path / 'net', 'user/net', TrainingRecord(label_names=NAMES, args=dict(img_size=64)))
    with torch.no_grad():
        expected = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval()(x)
        assert_same_output(network(x), expected)
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / 'net').eval()
        loaded.save_pretrained(tmp_path / 'again')
        again = AutoModelForImageClassification.from_pretrained(tmp_path / 'again').eval()
        for wrapped in (loaded, again):
            assert_same_output(wrapped(pixel_values=x).logits, expected)
            assert [wrapped.config.id2label[i] for i in range(4)] == NAMES
    if in_chans == 3:
        image = Image.effect_noise((64, 64), 50).convert('RGB')
        answers = pipeline('image-classification', model=str(tmp_path / 'net'), device='cpu')(image)
        pixels = AutoImageProcessor.from_pretrained(tmp_path / 'net')(image)['pixel_values']
        with torch.no_grad():
            scores = network(pixels.detach().clone()).softmax(1)[0]
        expected_scores = {name: float(score) for name, score in zip(NAMES, scores)}
        assert {a['label']: a['score'] for a in answers} == pytest.approx(expected_scores, abs=1e-4)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_transformers_loads_what_timm_itself_saves(network, tmp_path):
    from transformers import AutoModelForImageClassification

    timm.models.save_for_hf(network, tmp_path, dict(label_names=NAMES), safe_serialization=True)
    x = torch.randn(2, getattr(network, 'in_chans', 3), 64, 64)
    with torch.no_grad():
        for loaded in (
            timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval(),
            lambda x: AutoModelForImageClassification.from_pretrained(tmp_path).eval()(pixel_values=x).logits,
        ):
            assert_same_output(loaded(x), network(x))


APPLIED = {
    'resnet18': ('ResNetBasicBlock', {}),
    'test_vit': ('DropPath', dict(img_size=32)),
}


@pytest.fixture(params=APPLIED)
def applied(request):
    """A network, and what gives it stochastic depth at the rate 0.4, with other settings."""
    layer, kwargs = APPLIED[request.param]
    model = timm.create_model(request.param, num_classes=4, **kwargs).eval()
    for p in model.parameters():
        if p.ndim == 1:
            torch.nn.init.uniform_(p, 0.2, 0.8)
    settings = dict(stochastic_method='sample', target_layer_name=layer, drop_rate=0.4, drop_distribution='uniform')
    return model, lambda **others: ts.apply_stochastic_depth(model, **{**settings, **others})


@torch.no_grad()
def assert_timm_saves_the_function(model, folder):
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    x = torch.randn(2, 3, 32, 32)
    assert_same_output(timm.create_model(f'local-dir:{folder}', pretrained=True).eval()(x), model(x))


@pytest.mark.filterwarnings('ignore:The network has been trained', 'ignore:drop_rate is 0')
def test_timm_saves_no_weights_of_another_function_under_a_plain_name(applied, tmp_path):
    model, apply = applied
    apply()
    words = r'plain name \w+, .*fold_stochastic_depth\(model\).*push_to_hub'
    with pytest.raises(ValueError, match=words):
        timm.models.save_for_hf(model, tmp_path / 'refused', safe_serialization=True)
    assert not (tmp_path / 'refused' / 'config.json').exists()
    folded = ts.fold_stochastic_depth(model)
    assert_timm_saves_the_function(folded, tmp_path / 'folded')
    apply(drop_rate=0.0)
    assert_timm_saves_the_function(model, tmp_path / 'rate_0')
    apply(scale_by_keep=True)
    assert_timm_saves_the_function(model, tmp_path / 'scale_by_keep')
    apply(drop_warmup=0.5)
    ts.start_warmup(model)
    assert_timm_saves_the_function(model, tmp_path / 'start_of_warmup')
    ts.set_training_progress(model, 0.1)
    with pytest.raises(ValueError, match=words):
        timm.models.save_for_hf(model, tmp_path / 'amid_warmup', safe_serialization=True)


@pytest.mark.filterwarnings('ignore:The network has been trained')
def test_a_folded_network_that_is_given_stochastic_depth_again_is_one_of_a_plain_name(tmp_path):
    network = timm.create_model('resnet50_sd_block', num_classes=4, layers=[1, 2, 1, 1], base_width=8)
    model = ts.fold_stochastic_depth(randomize(network).eval())
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.3)
    with pytest.raises(ValueError, match='plain name resnet50, '):
        timm.models.save_for_hf(model, tmp_path / 'refused')
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.3, scale_by_keep=True)
    assert_timm_saves_the_function(model, tmp_path / 'net')


def test_timms_push_refuses_before_anything_is_sent(applied, monkeypatch):
    calls = []

    class Api:
        def __init__(self, **kwargs):
            pass

        def create_repo(self, repo_id, **kwargs):
            return type('Url', (), dict(repo_id=repo_id))

        def file_exists(self, **kwargs):
            return False

        def upload_folder(self, **kwargs):
            calls.append(kwargs)

    monkeypatch.setattr('timm.models._hub.HfApi', Api)
    model, apply = applied
    apply(scale_by_keep=True)
    timm.models.push_to_hf_hub(model, 'user/net')
    assert len(calls) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        apply()
    with pytest.raises(ValueError, match='plain name'):
        timm.models.push_to_hf_hub(model, 'user/net')
    assert len(calls) == 1


def test_timm_writes_other_networks_as_before(tmp_path):
    plain = timm.create_model('resnet18', num_classes=4)
    save_config_for_hf(plain, tmp_path / 'config.json')
    assert json.loads((tmp_path / 'config.json').read_text())['model_args']['num_classes'] == 4
