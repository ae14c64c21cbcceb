"""Every residual network of timm: what is dropped is what timm drops, and is not computed."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from family_networks import FAMILIES, FIRST
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from training_steps import (
    assert_equal,
    assert_same_training_step,
    gradients,
    images,
    output,
    randomize,
    train_without_batch_statistics,
)

import timm_stochdepth as ts
from timm_stochdepth.analysis.survey import format_survey, survey_families
from timm_stochdepth.draws.bernoulli import Draws
from timm_stochdepth.layers.targets import class_name, find_targets
from timm_stochdepth.zoo.exceptions import methods_of, why_only_masked
from timm_stochdepth.zoo.names import timm_modules
from timm_stochdepth.zoo.without_drop_paths import RESIDUAL_MODULES, UNFIT_MODULES

QUICK = [
    '_efficientnet_blocks.InvertedResidual',
    'convnext.ConvNeXtBlock',
    'regnet.Bottleneck',
    'swin_transformer.SwinTransformerBlock',
    'vision_transformer.Block',
]


def marks_of(family):
    if family in QUICK:
        return []
    return pytest.mark.long if family in FIRST else pytest.mark.families


CLASSES = [pytest.param(name, marks=marks_of(name), id=name) for name in sorted(FAMILIES)]
# whose branches can only be masked
MASKED = {
    'coat.ParallelBlock',
    'container.Sequential',
    'edgenext.SplitTransposeBlock',
    'efficientvim.EfficientViMBlock',
    'mvitv2.MultiScaleBlock',
    'rdnet.DenseBlock',
    'resnest.ResNestBottleneck',
    'rexnet.LinearBottleneck',
}

# in whose networks a branch ends in something else than a scale, a norm, a linear layer or a convolution, or is masked
UNFOLDED = MASKED | {
    'byobnet.MobileOneBlock',
    'coat.SerialBlock',
    'convit.Block',
    'csatv2.Block',
    'csatv2.TransformerBlock',
    'cspnet.DarkBlock',
    'cspnet.EdgeBlock',
    'cspnext.CspNextBlock',
    'edgenext.ConvBlock',
    'levit.LevitBlock',
    'levit.LevitDownsample',
    'lowformer.ResidualBlock',
    'maxxvit.ParallelPartitionAttention',
    'metaformer.MetaFormerBlock',
    'mobilevit.LinearTransformerBlock',
    'nfnet.NormFreeBlock',
    'tiny_vit.MBConv',
    'tiny_vit.TinyVitBlock',
    'twins.Block',
    'vision_transformer_sam.Block',
    'vovnet.OsaBlock',
    'xcit.ClassAttentionBlock',
    'xcit.XCABlock',
}


def create(family, drop_path_rate=0.5):
    name, kwargs, _ = FAMILIES[family]
    model = timm.create_model(name, drop_path_rate=drop_path_rate, num_classes=5, **kwargs)
    return model.double() if family in FIRST else model


def is_masked(family, model):
    return any(t.stochastic_class is None for t in find_targets(model, 'DropPath'))


def twins(family, stochastic_method='sample', drop_path_rate=0.5, **settings):
    """timm's network, and ours with the same weights."""
    torch.manual_seed(0)
    plain = randomize(create(family, drop_path_rate))
    model = create(family, drop_path_rate)
    model.load_state_dict(plain.state_dict())
    ts.apply_stochastic_depth(model, stochastic_method, 'DropPath', None, scale_by_keep=True, **settings)
    return train_without_batch_statistics(plain), train_without_batch_statistics(model)


class KeepFirst(Draws):
    def samples(self, x, *args):
        return torch.zeros(len(x)).index_fill(0, torch.tensor([0]), 2.0)


@pytest.mark.parametrize('family', CLASSES)
def test_masking_and_skipping_are_timms_drop_path(family):
    plain, model = twins(family)
    keys = list(plain.state_dict())
    assert list(model.state_dict()) == keys
    assert_same_training_step(family, plain, model, seed=1)
    if is_masked(family, model):
        block = next(t for t in find_targets(model, 'DropPath') if t.stochastic_class is None)
        with pytest.raises(ValueError, match=rf'skip_dropped must be False .*{class_name(block.block)}'):
            ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, skip_dropped=True)
        return
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, scale_by_keep=True, skip_dropped=True)
    for seed in (1, 2):
        assert_same_training_step(family, plain, model, seed)
    assert list(model.state_dict()) == keys


def flops(model, x):
    with FlopCounterMode(display=False) as counter:
        output(model, x)
    return counter.get_total_flops(), counter.get_flop_counts()


@pytest.mark.parametrize('family', CLASSES)
def test_what_is_dropped_is_not_computed(family):
    plain, model = twins(family)
    if is_masked(family, model):
        with pytest.raises(ValueError, match="stochastic_method must be 'sample' .*, but got 'block'"):
            ts.apply_stochastic_depth(model, 'block', 'DropPath', 0.5)
        return
    x = images(family, plain)
    total, by_module = flops(plain, x)
    # what timm's drop path leaves without a gradient when it drops all is the branches'
    for module in plain.modules():
        if isinstance(module, timm.layers.DropPath):
            module.drop_prob = 1.0
    _, grads = gradients(plain, x, 0)
    places = {t.name for t in find_targets(model, 'DropPath') if max(t.rates()) > 0}
    in_branches = 0
    for name, module in plain.named_modules():
        if any(module.children()):
            continue
        own = [n for n, _ in module.named_parameters(prefix=name, recurse=False)]
        if own and any(name.startswith(f'{p}.') for p in places) and not any(grads[n].any() for n in own):
            in_branches += sum(by_module.get(f'{type(plain).__name__}.{name}', {}).values())
    assert in_branches > 0
    for method, settings in (('block', {}), ('sample', dict(skip_dropped=True))):
        ts.apply_stochastic_depth(model, method, 'DropPath', None, scale_by_keep=True, **settings)
        for place in (p for _, p in ts.inspection.drop_paths(model)):
            place.drop_prob = float(place.drop_prob > 0)
        assert flops(model, x)[0] <= total - in_branches
        y, grads_model = gradients(model, x, 0)
        largest = max(g.abs().max() for g in grads.values())
        for name, grad in grads.items():
            assert_equal(grads_model[name], grad, largest, name)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, scale_by_keep=True, skip_dropped=True)
    for _, place in ts.inspection.drop_paths(model):
        place.draws = KeepFirst()
    assert flops(model, x)[0] < total - in_branches / 2


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('family', CLASSES)
@pytest.mark.filterwarnings('ignore:drop_rate is 0')
def test_rate_zero_is_timms_network_bit_for_bit(family, training):
    plain = randomize(create(family, 0.0)).train(training)
    model = create(family, 0.0).train(training)
    model.load_state_dict(plain.state_dict())
    x = images(family, plain)
    before = copy.deepcopy(plain)
    torch.manual_seed(0)
    y = output(before, x)
    for method in ('sample', 'block'):
        if method == 'block' and is_masked(family, model):
            continue
        ts.apply_stochastic_depth(model, method, 'DropPath', None)
        torch.manual_seed(0)
        assert torch.equal(output(copy.deepcopy(model), x), y)


@pytest.mark.parametrize('family', CLASSES)
def test_folding_gives_timms_network(family):
    model = randomize(create(family, 0.0)).eval()
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4)
    x = images(family, model, 2)
    if family in UNFOLDED:
        with pytest.raises(ValueError, match=' to be folded, but is '):
            ts.fold_stochastic_depth(model)
        return
    folded = ts.fold_stochastic_depth(model)
    plain = create(family, 0.0).eval()
    plain.load_state_dict(folded.state_dict(), strict=True)
    y = output(model, x)
    for network in (plain, folded):
        assert_equal(output(network, x), y, y.abs().max())
    classes = [
        [nn.Identity if isinstance(m, timm.layers.DropPath) else type(m) for m in network.modules()]
        for network in (folded, plain)
    ]
    assert classes[0] == classes[1]


@pytest.mark.parametrize('family', CLASSES)
def test_a_trained_network_stays_the_function_that_it_is(family):
    model = randomize(create(family, 0.1)).eval()
    plain = copy.deepcopy(model)
    x = images(family, model, 2)
    y = output(plain, x)
    tensors = {name: id(p) for name, p in model.named_parameters()}
    if family in UNFOLDED:
        with pytest.raises(ValueError, match=' to be folded, but is '):
            ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4, keep_function=True)
        assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
        assert torch.equal(output(model, x), y)
        return
    for method, rate in (('sample', 0.4), ('block', 0.7)):
        ts.apply_stochastic_depth(model, method, 'DropPath', rate, keep_function=True)
        assert_equal(output(model, x), y, y.abs().max())
    ts.set_drop_rate(model, 0.2, keep_function=True)
    assert_equal(output(model, x), y, y.abs().max())
    assert {name: id(p) for name, p in model.named_parameters()} == tensors


@pytest.mark.families
def test_every_class_of_timm_with_a_drop_path_is_tested():
    modules = timm_modules()
    survey = survey_families(list(modules))
    assert set(survey.families) == set(FAMILIES)
    assert {name for name, family in survey.families.items() if not family.can_skip} == MASKED
    assert len(survey.families) - len(MASKED) >= 108 and len(survey.whole) >= 1150
    assert format_survey(survey) in (Path(__file__).parents[2] / 'docs' / 'families.md').read_text()
    without = survey.modules
    assert {name for name, module in without.items() if module.blocks} == set(RESIDUAL_MODULES)
    assert set(without) - set(RESIDUAL_MODULES) - {'efficientnet', 'mobilenetv3'} == set(UNFIT_MODULES)
    joined = {name for module in without.values() if module.blocks for name in module.models}
    assert len(joined) >= 83
    of_timm = [c for c in ts.STOCHASTIC_LAYER_MAPPING['ResidualBlock'] if c.__module__.startswith('timm.')]
    assert {name for module in without.values() for name in module.blocks} == {
        f'{c.__module__.rpartition(".")[2]}.{c.__name__}' for c in of_timm
    }

    # the tables by which names are registered, without a look at the networks
    methods = {name: methods_of(name, module) for name, module in modules.items()}
    assert {name for name, m in methods.items() if m == ('sample', 'block')} == {*survey.whole, *joined}
    assert {name for name, m in methods.items() if m == ('sample',)} == set(survey.masked)
    for name in survey.masked:
        reasons = [r for family in survey.families.values() for r, names in family.reasons.items() if name in names]
        assert any(why_only_masked(name, modules[name]) in reason for reason in reasons), name
