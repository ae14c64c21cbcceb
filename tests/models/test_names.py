"""The names of the models: which there are, and what timm's registry says of them."""

import dataclasses
from importlib.machinery import ModuleSpec

import pytest
import timm
from forks import run_python
from timm.models import get_arch_pretrained_cfgs, model_entrypoint

import timm_stochdepth as ts
from timm_stochdepth.zoo.names import timm_modules
from timm_stochdepth.zoo.sources import modules_in_sources

OURS = timm.list_models('*_sd_*')
TIMMS = timm.list_models(exclude_filters='*_sd_*')
SAMPLE = {name.removesuffix('_sd_sample') for name in OURS if name.endswith('_sd_sample')}
BLOCK = {name.removesuffix('_sd_block') for name in OURS if name.endswith('_sd_block')}


def test_names_are_timms_with_a_method():
    assert set(OURS) == {f'{name}_sd_sample' for name in SAMPLE} | {f'{name}_sd_block' for name in BLOCK}
    assert BLOCK < SAMPLE < set(TIMMS)
    assert set(timm_modules()) == set(TIMMS)
    assert {'resnet18', 'vit_small_patch16_224', 'convnext_tiny', 'tf_efficientnetv2_b0'} < BLOCK
    assert 'rexnet_100' in SAMPLE - BLOCK and 'vgg16' not in SAMPLE
    assert set(timm.list_models(module='stochastic_depth')) == set(OURS)
    assert len(timm.list_models()) == len(TIMMS) + len(OURS)


def test_timms_names_can_be_read_from_its_sources():
    assert modules_in_sources() == timm_modules()


def test_sources_that_register_names_in_another_way_are_refused(tmp_path, monkeypatch):
    (tmp_path / 'models').mkdir()
    (tmp_path / 'models' / 'net.py').write_text(
        '# register_model(net)\n@register_model\ndef net(**kwargs):\n    pass\n'
    )
    spec = ModuleSpec('timm', None, is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr('timm_stochdepth.zoo.sources.find_spec', lambda name: spec)
    assert modules_in_sources() == {'net': 'timm.models.net'}
    (tmp_path / 'models' / 'other.py').write_text('for net in (a, b):\n    register_model(net)\n')
    with pytest.raises(ValueError, match='other.py registers models in a way that is not known here'):
        modules_in_sources()


def located(cfg):
    """A tag with what timm's registry fills in spelled out."""
    return {**dataclasses.asdict(cfg), 'architecture': None}


def test_every_tag_of_timm_is_a_tag_here_at_the_same_location():
    elsewhere, by_url = set(), set()
    for plain_name in SAMPLE:
        plain = get_arch_pretrained_cfgs(plain_name)
        for method in ('sample', *(['block'] if plain_name in BLOCK else [])):
            name = f'{plain_name}_sd_{method}'
            cfgs = get_arch_pretrained_cfgs(name)
            assert [key.replace(name, plain_name) for key in cfgs] == list(plain)  # in timm's order: the default first
            for cfg, (plain_key, plain_cfg) in zip(cfgs.values(), plain.items()):
                assert cfg.architecture == name and located(cfg) == located(plain_cfg)
                elsewhere |= {plain_key} if cfg.hf_hub_id not in (f'timm/{plain_key}', None) else set()
                by_url |= {plain_key} if cfg.url and not cfg.hf_hub_id else set()
        assert timm.is_model_pretrained(f'{plain_name}_sd_sample') == timm.is_model_pretrained(plain_name)
    assert len(elsewhere) >= 40 and len(by_url) >= 5  # the cases that a rule of names would miss


def test_pretrained_names_are_listed_as_timms():
    ours = timm.list_models('*_sd_sample', pretrained=True)
    theirs = timm.list_models(pretrained=True, exclude_filters='*_sd_*')
    assert set(ours) == {
        name.replace('.', '_sd_sample.', 1) if '.' in name else f'{name}_sd_sample'
        for name in theirs
        if name.partition('.')[0] in SAMPLE
    }


def test_a_wrong_tag_is_refused_by_the_name_that_was_asked_for():
    with pytest.raises(RuntimeError, match=r'\(no_such_tag\) for resnet18_sd_block'):
        timm.create_model('resnet18_sd_block.no_such_tag')


def test_models_are_entrypoints_of_the_package_and_no_attributes():
    assert ts.models.resnet18_sd_block is model_entrypoint('resnet18_sd_block')
    assert ts.models.test_vit_sd_sample(num_classes=3).num_classes == 3
    assert len(dir(ts.models)) < 30
    for name in ('resnet18', 'vgg16_sd_sample', 'no_such_sd_block'):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
            getattr(ts.models, name)
    assert run_python('-c', 'from timm_stochdepth.models.stochastic_depth import *').returncode == 0
