import json
import random

import pytest
import torch
from networks import images
from torch import nn

import timm_stochdepth as ts
from timm_stochdepth.bench.contestants import create_contestants
from timm_stochdepth.bench.measure import median_interval, saved_storages
from timm_stochdepth.cli.main import main
from timm_stochdepth.operations import branch_shares
from timm_stochdepth.output_folder import OutputFolder


def test_the_interval_covers_the_median_as_often_as_it_says():
    generator = random.Random(0)
    num_trials = 1000
    covered = 0
    for _ in range(num_trials):
        _, low, high = median_interval([generator.expovariate(1.0) for _ in range(50)])
        covered += low <= 0.6931 <= high  # the median of an exponential distribution, log 2
    # 95%, less five standard deviations of the count
    assert covered / num_trials >= 0.95 - 5 * (0.95 * 0.05 / num_trials) ** 0.5


def test_all_networks_start_from_the_same_weights_and_drop_by_the_same_rates():
    contestants = create_contestants('resnet18', 0.4, batch_size=2, img_size=32)
    assert [c.name for c in contestants] == [
        'plain',
        'plain, again',
        'timm DropPath',
        'torchvision StochasticDepth',
        'conditional skip',
        'sample',
        'sample, skip_dropped',
        'block',
    ]
    state = contestants[0].model.state_dict()
    for contestant in contestants[1:]:
        assert all(torch.equal(v, state[k]) for k, v in contestant.model.state_dict().items())
    for index, attribute in ((2, 'drop_prob'), (3, 'p')):
        rates = [getattr(m, attribute) for m in contestants[index].model.modules() if hasattr(m, attribute)]
        assert rates == pytest.approx(list(ts.drop_rates(contestants[-1].model).values())[1:])


def test_the_limit_of_block_mode_is_that_of_the_blocks_that_were_dropped():
    contestant = create_contestants('resnet18', 1.0, batch_size=2, img_size=32)[-1]
    model = contestant.model
    ran = []
    for block in model.modules():
        if isinstance(block, ts.StochasticBlock):
            block.conv1.register_forward_hook(lambda m, args, y: ran.append(m))
    for _ in range(5):
        ran.clear()
        contestant.prepare()
        model(images(2, 32))
        # all blocks of resnet18 but the first of a stage have convolutions of the same number of operations
        assert contestant.limits[-1] == 1.0 if len(ran) == 8 else contestant.limits[-1] < 1.0
    assert len(set(contestant.limits)) > 1


def test_a_conditional_skip_drops_what_block_mode_drops():
    contestants = create_contestants('resnet18', 0.8, batch_size=2, img_size=32)
    conditional, block = (c for c in contestants if c.name in ('conditional skip', 'block'))
    x = images(2, 32)
    for _ in range(5):
        for contestant in (conditional, block):
            contestant.prepare()
            contestant.model.train().zero_grad()
            contestant.model(x).sum().backward()
        assert conditional.limits[-1] == block.limits[-1]
        for dropped, zero in zip(conditional.model.parameters(), block.model.parameters()):
            expected = torch.zeros_like(zero) if dropped.grad is None else dropped.grad
            assert (zero.grad - expected).norm() <= 1e-4 * expected.norm()
    assert len(set(block.limits)) > 1


def test_saved_bytes_are_those_of_the_activations():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000))

        def forward(self, x):
            return (x * self.weight).square()  # keeps x for the weight, and the product for the square

    assert sum(saved_storages(Square(), torch.randn(3, 1000))) == 2 * 3 * 1000 * 4


def test_bench_prints_a_row_for_each_and_writes_json(tmp_path, capsys):
    args = ['--model', 'resnet18', '--batch-size', '2', '--img-size', '32', '--max-rounds', '3', '--rate', '0.5']
    assert main(['bench', *args, '--out', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].split()[:2] == ['plain', '1.0000']
    figures = json.loads((tmp_path / 'resnet18_rate0.5_cpu.json').read_text())
    assert [row['name'] for row in figures['rows']][-1] == 'block'
    assert figures['rows'][-1]['limit'] < 1 and figures['settings']['rate'] == 0.5
    assert '3 rounds. The 95% intervals' in out
    assert (tmp_path / 'resnet18_rate0.5_cpu.png').stat().st_size > 10_000


def test_the_limit_of_skipped_samples_is_that_of_the_samples_that_were_skipped():
    contestant = create_contestants('resnet18', 0.8, batch_size=3, img_size=32)[-2]
    shares = branch_shares(contestant.model, (3, 32, 32))
    num_kept = dict.fromkeys(shares, 0)
    for name in shares:
        contestant.model.get_submodule(name).conv1.register_forward_pre_hook(
            lambda m, args, name=name: num_kept.update({name: len(args[0])})
        )
    for _ in range(5):
        num_kept.update(dict.fromkeys(shares, 0))
        contestant.prepare()
        contestant.model(images(3, 32))
        left = 1 - sum(shares[n] * (1 - num_kept[n] / 3) for n in shares)
        assert contestant.limits[-1] == pytest.approx(left)
    assert len(set(contestant.limits)) > 1


def test_any_network_of_timm_is_timed_at_a_uniform_rate(tmp_path):
    args = ['--model', 'test_vit', '--batch-size', '2', '--img-size', '160', '--max-rounds', '2', '--rate', '0.5']
    assert main(['bench', *args, '--drop-distribution', 'uniform', '--out', str(tmp_path)]) == 0
    rows = json.loads((tmp_path / 'test_vit_rate0.5_cpu_uniform.json').read_text())['rows']
    limits = {row['name']: row['limit'] for row in rows}
    # the branches of a transformer are nearly all of it, and every one of them is dropped at a half
    assert limits['timm DropPath'] == limits['sample'] == 1 and 0.3 < limits['sample, skip_dropped'] < 0.8


SMALL = ['--model', 'resnet18', '--batch-size', '2', '--img-size', '32', '--max-rounds', '2']


def test_inference_has_nothing_to_skip(tmp_path):
    assert main(['bench', *SMALL, '--inference', '--out', str(tmp_path)]) == 0
    rows = json.loads((tmp_path / 'resnet18_rate0.1_cpu_inference.json').read_text())['rows']
    assert len(rows) == 8 and all(row['limit'] == 1 and row['memory'] == 0 for row in rows)


def test_ddp_compares_a_conditional_skip_with_block_mode(tmp_path):
    assert main(['bench', *SMALL, '--ddp', '--rate', '0.9', '--out', str(tmp_path)]) == 0
    rows = json.loads((tmp_path / 'resnet18_rate0.9_cpu_ddp.json').read_text())['rows']
    assert [row['name'] for row in rows] == ['plain', 'conditional skip, find_unused_parameters', 'block']
    assert rows[1]['limit'] == rows[2]['limit'] < 1  # the same blocks were dropped


@pytest.mark.parametrize(
    'args, message',
    [
        (['--rate', '1.5'], "--rate must be in [0, 1], but got '1.5'"),
        (['--batch-size', '0'], '--batch-size must be a whole number from 1'),
        (['--ddp', '--compile'], '--ddp must be without --compile'),
        (['--model', 'densenet121'], "--model must be a plain network of timm with drop paths, but got 'densenet121'"),
        (['--model', 'mobilevit_xxs'], 'whose branches can only be masked (byobnet.BottleneckBlock: '),
        (['--model', 'resnet50_sd_block'], '--model must be a plain network of timm with drop paths'),
        (['--model', 'resnet81'], 'did you mean resnet18'),
        (['--device', 'foo'], "--device must be cpu, cuda or cuda:N, but got 'foo'"),
        (['--device', 'cuda:99'], '--device must be a device that this machine has (cpu'),
        (['--img-size', '16'], '--img-size must be 32 or more for this network, but got 16'),
    ],
)
def test_bad_arguments_are_named(args, message, capsys):
    assert main(['bench', *args]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1


def test_figures_of_others_are_left(tmp_path, capsys):
    OutputFolder(tmp_path, 'bench').claim()
    (tmp_path / 'resnet18_rate0.1_cpu.json').write_text('{}')
    assert main(['bench', *SMALL, '--out', str(tmp_path)]) == 1
    assert 'was not written by `timm-stochdepth bench`' in capsys.readouterr().err
    assert (tmp_path / 'resnet18_rate0.1_cpu.json').read_text() == '{}'
