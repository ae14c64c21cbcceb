"""What is said of a step before it is taken is what happens in it."""

from dataclasses import replace

import pytest
import timm
import torch
from networks import images

import timm_stochdepth as ts
from timm_stochdepth.analysis.flops import drop_path_shares
from timm_stochdepth.bench.contestants import create_contestants
from timm_stochdepth.bench.dinov2 import FixedNumberDraws, FixedNumberDropPath
from timm_stochdepth.bench.settings import BenchSettings
from timm_stochdepth.inspection import drop_paths

RESNET = BenchSettings('resnet18', 0.8, batch_size=3, img_size=32)
VIT = BenchSettings('test_vit', 0.5, 'uniform', batch_size=3, img_size=32, model_args=dict(img_size=32))
SKIPPING = ('dinov2', 'conditional', 'skip', 'block', 'ahead', 'fixed')


def num_run_by_place(model):
    """For each place the number of samples that run its branch, noted in the steps to come."""
    num_run = {}
    firsts = {'drop_path': 'conv1', 'drop_path1': 'norm1', 'drop_path2': 'norm2'}
    for name, _ in drop_paths(model):
        block_name, _, place = name.rpartition('.')
        first = model.get_submodule(f'{block_name}.{firsts[place]}')
        first.register_forward_pre_hook(lambda m, args, name=name: num_run.update({name: len(args[0])}))
    return num_run


@pytest.mark.parametrize('settings, row', [*((s, row) for s in (RESNET, VIT) for row in SKIPPING), (VIT, 'round')])
def test_the_limit_of_a_step_is_that_of_what_ran_in_it(settings, row):
    settings = replace(settings, rows=(row,))
    _, contestant = create_contestants(settings)
    shares = drop_path_shares(contestant.model, settings.input_size)
    num_run = num_run_by_place(contestant.model)
    limits = []
    x = images(3, 32)
    for seed in range(6):
        num_run.clear()
        limits.append(contestant.draws.seed(seed))
        contestant.model(x)
        left = 1 - sum(share * (1 - num_run.get(name, 0) / 3) for name, share in shares.items())
        assert limits[-1] == pytest.approx(left)
    assert len(set(limits)) > 1 or row in ('dinov2', 'fixed', 'round')  # of 3 samples all or none run, rounded up
    assert min(limits) < 0.9 or row == 'round'


def test_who_computes_all_has_no_limit_below_1():
    for contestant in create_contestants(replace(RESNET, rows=('again', 'timm', 'torchvision', 'sample'))):
        assert [contestant.draws.seed(seed) for seed in range(3)] == [1, 1, 1]


def test_all_rows_drop_the_same_in_a_step():
    """timm's DropPath, masks, and skipping draw alike from one seed: outputs are equal where norms see one sample."""
    outputs = []
    x = images(3, 32)
    for contestant in create_contestants(replace(VIT, rows=('timm', 'sample', 'skip')))[1:]:
        contestant.draws.seed(5)
        outputs.append(contestant.model(x))
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


def test_a_conditional_skip_drops_what_block_mode_drops():
    _, conditional, block = create_contestants(replace(RESNET, rows=('conditional', 'block')))
    x = images(2, 32)
    limits = set()
    for seed in range(5):
        seen = set()
        for contestant in (conditional, block):
            seen.add(contestant.draws.seed(seed))
            contestant.model.zero_grad()
            contestant.model(x).sum().backward()
        assert len(seen) == 1
        limits |= seen
        for dropped, zero in zip(conditional.model.parameters(), block.model.parameters()):
            expected = torch.zeros_like(zero) if dropped.grad is None else dropped.grad
            assert (zero.grad - expected).norm() <= 1e-4 * expected.norm()
    assert len(limits) > 1


@pytest.mark.parametrize('row', SKIPPING)
def test_typical_steps_leave_what_the_rates_leave(row):
    _, contestant = create_contestants(replace(VIT, rows=(row,), batch_size=8))
    shares = drop_path_shares(contestant.model, VIT.input_size)
    expected = 1 - sum(shares[name] * place.drop_prob for name, place in drop_paths(contestant.model))
    seeds = contestant.draws.typical_seeds(4)
    assert len(set(seeds)) == 4
    # the mean of the 256 candidates, in five standard errors at most of one draw for each place
    bound = 5 * sum((share * 0.5) ** 2 for share in shares.values()) ** 0.5 / 256**0.5
    for seed in seeds:
        assert contestant.draws.seed(seed) == pytest.approx(expected, abs=bound)


def dinov2_add(x, branch, drop_prob):
    """x with the branch of a fixed number of its samples added: DINOv2's formula."""
    num_samples = x.shape[0]
    num_run = max(int(num_samples * (1 - drop_prob)), 1)
    chosen = torch.randperm(num_samples)[:num_run]
    y = x.clone()
    for sample, result in zip(chosen, branch(torch.stack([x[i] for i in chosen]))):
        y[sample] = x[sample] + result * num_samples / num_run
    return y


def test_dinov2_is_its_formula():
    plain, dinov2 = (timm.create_model('test_vit', img_size=32) for _ in range(2))
    dinov2.load_state_dict(plain.state_dict())
    ts.apply_stochastic_depth(dinov2, 'sample', 'DropPath', 0.7, scale_by_keep=True)
    for _, place in drop_paths(dinov2):
        place.__class__, place.draws = FixedNumberDropPath, FixedNumberDraws()
    rates = list(ts.drop_rates(dinov2).values())
    x = torch.randn(5, 5, 64)
    results = []
    for use_formula in (False, True):
        torch.manual_seed(3)
        model, y = (plain if use_formula else dinov2), x.clone().requires_grad_()
        total = y
        for block, rate in zip(model.blocks, rates):
            if use_formula and rate > 0:
                total = dinov2_add(total, lambda x, b=block: b.ls1(b.attn(b.norm1(x))), rate)
                total = dinov2_add(total, lambda x, b=block: b.ls2(b.mlp(b.norm2(x))), rate)
            else:
                total = block(total)
        total.square().sum().backward()
        results.append((total, y.grad, *(p.grad for p in model.blocks.parameters())))
    assert rates[-1] == 0.7
    for result, formula in zip(*results):
        torch.testing.assert_close(result, formula)
    x = images(2, 32)
    assert torch.equal(dinov2.eval()(x), plain.eval()(x))


@pytest.mark.parametrize('batch_size, rate, num_run', [(16, 0.4, 9), (5, 0.9, 1), (4, 1.0, 1), (10, 0.1, 9)])
def test_the_fixed_number(batch_size, rate, num_run):
    keep_N = FixedNumberDraws().samples(torch.empty(batch_size), rate)
    assert keep_N.count_nonzero() == num_run and keep_N.sum() == pytest.approx(batch_size)


@pytest.mark.parametrize(
    'row', ['sample', *(pytest.param(row, marks=pytest.mark.long) for row in ('timm', 'dinov2', 'skip'))]
)
def test_rows_compile_to_one_graph(row):
    _, contestant = create_contestants(replace(VIT, rows=(row,)))
    compiled = torch.compile(contestant.model, backend='aot_eager', fullgraph=True)
    x = images(3, 32)
    outputs = []
    for run in (compiled, contestant.model):
        contestant.draws.seed(1)
        outputs.append(run(x))
        outputs[-1].sum().backward()
    torch.testing.assert_close(*outputs)


def test_the_limit_of_a_compiled_graph_is_that_of_the_rates():
    eager, compiled = (
        create_contestants(replace(VIT, rows=('skip',), compile=compile))[1] for compile in (False, True)
    )
    shares = drop_path_shares(eager.model, VIT.input_size)
    limits = [compiled.draws.seed(seed) for seed in range(3)]
    assert limits == pytest.approx([1 - 0.5 * sum(shares.values())] * 3)
    # what is counted are eager steps
    assert compiled.draws.typical_seeds(4) == eager.draws.typical_seeds(4)


def test_a_size_is_new_once():
    settings = replace(VIT, rows=('skip', 'fixed', 'sample'), batch_size=8)
    _, skip, fixed, sample = create_contestants(settings)
    numbers = {c.name: [] for c in (skip, fixed, sample)}
    for seed in range(40):
        for contestant in (skip, fixed, sample):
            contestant.draws.seed(seed)
            numbers[contestant.name].append(contestant.draws.num_new_sizes)
    # two branches, of 0 to 8 samples, whatever the block
    assert numbers[skip.name][0] > 0 and sum(numbers[skip.name]) <= 18 and not any(numbers[skip.name][30:])
    assert numbers[fixed.name] == [2] + [0] * 39 and not any(numbers[sample.name])
