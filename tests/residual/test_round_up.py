"""Numbers of samples that are rounded up: few sizes, and what runs beyond counts nothing."""

import copy

import pytest
import timm
import torch
from networks import images, randomize
from steps import assert_same, step

import timm_stochdepth as ts
from timm_stochdepth.draws.bernoulli import Draws
from timm_stochdepth.draws.selection import rows_to_run
from timm_stochdepth.residual.skip_in_graph import draw_in_graph

NETWORKS = {
    'vit_tiny_patch16_224': dict(img_size=32, depth=3, embed_dim=48, num_heads=3),
    'test_convnext': {},
}


def twins(name, rate=0.5, **settings):
    """timm's network of a drop_path_rate, and ours with its weights."""
    torch.manual_seed(0)
    plain = randomize(timm.create_model(name, num_classes=3, drop_path_rate=rate, **NETWORKS[name])).double()
    model = copy.deepcopy(plain)
    settings = ts.Settings('sample', None, scale_by_keep=True, skip_dropped=True, round_up=True, **settings)
    ts.apply_stochastic_depth(model, settings=settings, target_layer_name='DropPath')
    return plain.train(), model.train()


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('name', NETWORKS)
def test_a_step_is_that_of_timms_drop_path(name, compiled, fresh_compiler):
    plain, model = twins(name)
    run = torch.compile(model, backend='aot_eager', fullgraph=True) if compiled else None
    x = images(6, 32).double()
    for seed in range(6):
        torch.manual_seed(seed)
        expected = step(plain, x)
        torch.manual_seed(seed)
        assert_same(step(model, x, run), expected)


def test_few_numbers_of_samples_run():
    _, model = twins('vit_tiny_patch16_224')
    seen, in_graph = set(), set()
    model.blocks[2].mlp.fc1.register_forward_pre_hook(lambda module, args: seen.add(args[0].shape[0]))
    for seed in range(30):
        torch.manual_seed(seed)
        model(images(18, 32).double()).sum().backward()
        selection = draw_in_graph(Draws(), torch.tensor([0.5]), 0, 2.0, True, torch.empty(18, 3))
        in_graph.add(len(selection.run_K))
    for numbers in (seen, in_graph):
        assert numbers <= {4, 8, 12, 16, 18} and len(numbers) > 1


MULTIPLES = [
    (12, {0: 0, 1: 4, 4: 4, 5: 8, 12: 12}),
    (14, {0: 0, 1: 4, 4: 4, 5: 8, 13: 14}),
    (128, {0: 0, 1: 8, 8: 8, 9: 16, 121: 128}),
]


@pytest.mark.parametrize('num_samples, expected', MULTIPLES)
def test_multiples(num_samples, expected):
    assert {n: rows_to_run(n, num_samples) for n in expected} == expected


def test_a_norm_that_looks_at_the_batch_is_refused():
    model = timm.create_model('resnet18')
    settings = ts.Settings('sample', 0.5, skip_dropped=True, round_up=True)
    with pytest.raises(ValueError, match='round_up must be False where a norm looks at the batch'):
        ts.apply_stochastic_depth(model, settings=settings, target_layer_name='DropPath')
    _, model = twins('vit_tiny_patch16_224')
    model.blocks[2].norm1 = torch.nn.BatchNorm1d(5)
    with pytest.raises(ValueError, match='round_up must be False where a norm looks at the batch'):
        for _ in range(9):
            model(images(6, 32).double())


def test_without_skipping_it_has_no_effect_and_says_so():
    settings = ts.Settings('sample', 0.5, round_up=True)
    with pytest.warns(UserWarning, match='round_up=True has no effect without skip_dropped=True'):
        ts.apply_stochastic_depth(timm.create_model('test_vit'), settings=settings, target_layer_name='DropPath')
