import json
import random

import pytest
import torch
from networks import images
from torch import nn

import timm_stochdepth as ts
from timm_stochdepth.bench.contestants import create_contestants
from timm_stochdepth.bench.measure import median_interval, saved_bytes
from timm_stochdepth.cli.main import main


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
    contestants = create_contestants('resnet18', 0.4, img_size=32)
    names = [c.name for c in contestants]
    assert names == ['plain', 'timm DropPath', 'torchvision StochasticDepth', 'sample', 'block']
    state = contestants[0].model.state_dict()
    for contestant in contestants[1:]:
        assert all(torch.equal(v, state[k]) for k, v in contestant.model.state_dict().items())
    for index, attribute in ((1, 'drop_prob'), (2, 'p')):
        rates = [getattr(m, attribute) for m in contestants[index].model.modules() if hasattr(m, attribute)]
        assert rates == pytest.approx(list(ts.drop_rates(contestants[3].model).values())[1:])


def test_the_limit_of_block_mode_is_that_of_the_blocks_that_were_dropped():
    contestant = create_contestants('resnet18', 1.0, img_size=32)[-1]
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


def test_saved_bytes_are_those_of_the_activations():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000))

        def forward(self, x):
            return (x * self.weight).square()  # keeps x for the weight, and the product for the square

    contestant = create_contestants('resnet18', 0.1, img_size=32)[0]
    contestant.model = Square()
    assert saved_bytes(contestant, torch.randn(3, 1000)) == 2 * 3 * 1000 * 4


def test_bench_prints_a_row_for_each_and_writes_json(tmp_path, capsys):
    args = ['--model', 'resnet18', '--batch-size', '2', '--img-size', '32', '--max-rounds', '3', '--rate', '0.5']
    assert main(['bench', *args, '--out', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:2] == ['plain', '1.0000']
    figures = json.loads((tmp_path / 'resnet18_0.5.json').read_text())
    assert [row['name'] for row in figures['rows']][-1] == 'block'
    assert figures['rows'][-1]['limit'] < 1 and figures['settings']['rate'] == 0.5
    assert 'rounds, intervals' in out
