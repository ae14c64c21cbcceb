import json
import random
import re

import pytest
import timm
import torch
from networks import images
from timm.models.resnet import BasicBlock

import timm_stochdepth as ts
from timm_stochdepth.bench.contestants import create_contestants
from timm_stochdepth.bench.counters import Counts
from timm_stochdepth.bench.measure import Row, measure, median_interval
from timm_stochdepth.bench.report import format_rows
from timm_stochdepth.bench.settings import ROWS, BenchSettings
from timm_stochdepth.bench.step import Step
from timm_stochdepth.cli.main import main
from timm_stochdepth.inspection import drop_paths

COUNTS = ('operations', 'bytes', 'kernels', 'kept')


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
    contestants = create_contestants(BenchSettings('resnet18', 0.4, batch_size=2, img_size=32))
    names = [c.name for c in contestants]
    assert names == list(ROWS.values()) and len(names) == 9
    models = {c.name: c.model for c in contestants}
    state = models['plain'].state_dict()
    for model in models.values():
        assert model.training and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for name, attribute in (('timm DropPath', 'drop_prob'), ('torchvision StochasticDepth', 'p')):
        rates = [getattr(m, attribute) for m in models[name].modules() if hasattr(m, attribute)]
        assert rates == pytest.approx(list(ts.drop_rates(models['block']).values())[1:])


@pytest.mark.parametrize('name, scale_by_keep', [('resnet18', False), ('test_vit', True)])
def test_the_convention_is_that_of_peers_where_no_norm_looks_at_the_batch(name, scale_by_keep):
    *_, dinov2 = contestants = create_contestants(BenchSettings(name, 0.4, rows=('sample', 'skip', 'block', 'dinov2')))
    for contestant in contestants[1:]:
        expected = scale_by_keep or contestant is dinov2
        assert {place.scale_by_keep for _, place in drop_paths(contestant.model)} == {expected}


def test_rounds_end_when_time_is_up():
    settings = BenchSettings('resnet18', 0.4, rows=('block',), batch_size=2, img_size=32, max_seconds=0)
    rows = measure(create_contestants(settings), Step(images(2, 32)), settings, show_progress=False)
    assert [row.rounds for row in rows] == [1, 1]


def test_counts_are_a_ratio_to_plain():
    settings = BenchSettings('resnet18', 0.5, rows=('again', 'timm', 'block'), batch_size=2, img_size=32, max_rounds=1)
    plain, again, peer, block = measure(
        create_contestants(settings), Step(images(2, 32)), settings, show_progress=False
    )
    assert set(again.count_ratios.values()) == {1}
    assert peer.count_ratios['operations'] == 1 < min(peer.count_ratios[key] for key in ('bytes', 'kernels'))
    # of the branches that a mask has its pass over, all but the first, forward and backward
    model = timm.create_model('resnet18')
    results = []
    for layer in model.modules():
        if isinstance(layer, BasicBlock):
            layer.bn2.register_forward_hook(lambda m, args, y: results.append(4 * y.numel()))
    model(images(2, 32))
    masks = sum(2 * (2 * num_bytes + 2 * 4) + 2 * (2 * 4) + 2 * 4 for num_bytes in results[1:])
    assert peer.counts.bytes - plain.counts.bytes == pytest.approx(masks)
    assert block.counts.operations == pytest.approx(block.count_ratios['operations'] * plain.counts.operations)
    assert block.count_ratios['operations'] < 0.9 and peer.memory == peer.counts.kept > block.counts.kept


@pytest.mark.long
def test_bench_prints_a_row_for_each_and_writes_json(tmp_path, capsys):
    args = ['--model', 'resnet18', '--batch-size', '2', '--img-size', '32', '--max-rounds', '6', '--rate', '0.5', '0.9']
    assert main(['bench', *args, '--profile', '--out', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[3].split()[:2] == ['plain', '1.000']
    assert max(map(len, out.splitlines())) <= 120
    for rate in (0.5, 0.9):
        figures = json.loads((tmp_path / f'resnet18_rate{rate}_cpu.json').read_text())
        rows = {row['name']: row for row in figures['rows']}
        assert list(rows) == list(ROWS.values())
        assert rows['block']['limit'] < 1 and figures['settings']['rate'] == rate
        assert set(rows['block']['counts']) == set(COUNTS)
        shares = [f'{rows["sample"]["count_ratios"][key]:.3f}' for key in COUNTS]
        assert re.search('^sample  .*' + ' +'.join(shares), out, re.M)
        assert (tmp_path / f'resnet18_rate{rate}_cpu.png').stat().st_size > 10_000
    assert '6 rounds. The 95% intervals' in out
    # twice the two gathers and the two scatters of each block that drops, forward and backward
    dinov2 = out.split('\nDINOv2: ')[1].split('\ntorchvision')[0]
    assert re.search(r'index_add .*\b14 \(\+14\)', dinov2)


@pytest.mark.parametrize('device, memory', [('cpu', 'MB kept'), ('cuda', 'MB at peak')])
def test_the_help_explains_every_column(device, memory, capsys):
    row = Row('plain', 1, 1, 1, 1, 0, 1, 1, 20, Counts(1, 1, 1, 1), dict.fromkeys(COUNTS, 1.0), {})
    loop = ['in a loop'] if device == 'cuda' else []
    titles = ['ratio', '95% interval', 'limit', 'over it', *loop, 'ms', memory, *COUNTS]
    head = format_rows([row], torch.device(device)).splitlines()[0]
    assert head.replace('|', '').split() == ' '.join(['network', *titles]).split()
    assert main(['bench', '--help']) == 0
    text = capsys.readouterr().out
    for title in titles:
        assert re.search(rf'^  {title} {{2,}}\w|"{title}", ', text, re.M), title
    assert re.search(r'takes .* s on [^:]*: .* minutes a rate', text)


@pytest.mark.long
def test_any_network_of_timm_is_timed_at_a_uniform_rate(tmp_path):
    args = ['--model', 'test_vit', '--batch-size', '2', '--max-rounds', '2', '--rate', '0.5']
    assert main(['bench', *args, '--distribution', 'uniform', '--out', str(tmp_path)]) == 0
    figures = json.loads((tmp_path / 'test_vit_rate0.5_cpu_uniform.json').read_text())
    assert figures['settings']['img_size'] == 160  # its own
    rows = figures['rows']
    limits = {row['name']: row['limit'] for row in rows}
    # the branches of a transformer are nearly all of it, and every one of them is dropped at a half
    assert limits['timm DropPath'] == limits['sample'] == 1 and 0.3 < limits['sample, skip_dropped'] < 0.8


def test_branches_that_can_only_be_masked_are_measured_in_the_rows_that_mask(capsys):
    args = ['--model', 'mobilevit_xxs', '--batch-size', '2', '--img-size', '64', '--max-rounds', '1']
    assert main(['bench', *args, '--rows', 'timm', 'sample']) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[3:6]] == ['plain', 'timm', 'sample']
    assert '1 rounds are too few for a 95% interval' in out


SMALL = ['--model', 'resnet18', '--batch-size', '2', '--img-size', '32', '--max-rounds', '2']


def test_a_name_of_this_package_means_the_plain_network(tmp_path, capsys):
    args = ['--batch-size', '2', '--img-size', '32', '--max-rounds', '1', '--rows', 'timm', 'block', '--rate', '0.5']
    assert main(['bench', '--model', 'resnet10t_sd_sample', *args, '--out', str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith('resnet10t, rate 0.5')
    figures = json.loads((tmp_path / 'resnet10t_rate0.5_cpu.json').read_text())
    assert figures['settings']['model'] == 'resnet10t'
    assert [row['name'] for row in figures['rows']] == ['plain', 'timm DropPath', 'block']


@pytest.mark.long
def test_inference_has_nothing_to_skip(tmp_path):
    assert main(['bench', *SMALL, '--inference', '--out', str(tmp_path)]) == 0
    rows = json.loads((tmp_path / 'resnet18_rate0.1_cpu_inference.json').read_text())['rows']
    assert len(rows) == 9 and all(row['limit'] == 1 and row['memory'] == 0 for row in rows)


@pytest.mark.long
def test_ddp_compares_a_conditional_skip_with_block_mode(tmp_path):
    assert main(['bench', *SMALL, '--ddp', '--rate', '0.9', '--out', str(tmp_path)]) == 0
    rows = json.loads((tmp_path / 'resnet18_rate0.9_cpu_ddp.json').read_text())['rows']
    assert [row['name'] for row in rows] == ['plain', 'conditional skip', 'block']
    assert rows[1]['limit'] == rows[2]['limit'] < 1  # the same blocks were dropped


@pytest.mark.parametrize(
    'args, message',
    [
        (['--rate', '1.5'], "--rate must be in [0, 1], but got '1.5'"),
        (['--batch-size', '0'], '--batch-size must be a whole number from 1'),
        (['--ddp', '--compile'], '--ddp must be without --compile'),
        (['--model', 'densenet121'], "--model must be a plain network of timm with drop paths, but got 'densenet121'"),
        (['--model', 'mobilevit_xxs'], 'whose branches can only be masked (byobnet.BottleneckBlock: '),
        (
            ['--model', 'mobilevit_xxs', '--rows', 'sample', 'skip'],
            'must be a network that can leave out its branches for the rows skip, but',
        ),
        (
            ['--rows', 'skipped'],
            "sample, skip, block, ahead, round, fixed, but got 'skipped': did you mean skip?",
        ),
        (['--ddp', '--rows', 'block'], '--ddp must be without --compile, --inference, --distribution and --rows'),
        (['--rate', '0.1', '0.10'], '--rate must be different ones, but got 0.1 0.1'),
        (['--model', 'test_vit', '--img-size', '7'], '--img-size must be 16 or more for this network, but got 7'),
        (
            ['--model', 'xcit_nano_12_p16_224', '--img-size', '100'],
            '--img-size must be a size that xcit_nano_12_p16_224',
        ),
        (['--max-seconds', '0'], '--max-seconds must be a whole number from 1'),
        (['--model', 'shvit_s1_sd_block'], "a plain network of timm with drop paths, but got 'shvit_s1'"),
        (['--model', 'vgg11_sd_block'], 'vgg11 has no branches that could be dropped: it has no shortcuts.'),
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


def test_figures_that_are_there_are_left(tmp_path, capsys):
    (tmp_path / 'resnet18_rate0.1_cpu.json').write_text('{}')
    assert main(['bench', *SMALL, '--out', str(tmp_path)]) == 2
    assert "resnet18_rate0.1_cpu.json', which is there already: --force" in capsys.readouterr().err
    assert (tmp_path / 'resnet18_rate0.1_cpu.json').read_text() == '{}'
