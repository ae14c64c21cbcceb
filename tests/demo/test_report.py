import random
import re

import pytest
from scipy.stats import binom, ttest_1samp, ttest_rel

from timm_stochdepth.demo.intervals import mean_interval
from timm_stochdepth.demo.report import format_agreement, format_means, format_results
from timm_stochdepth.demo.train import Result

PLAIN = {1: 90.0, 2: 92.0, 3: 94.0, 4: 89.0}
SAMPLE = {1: 91.0, 2: 92.5, 3: 96.0, 4: 90.0}


def result(method, seed=1, top1=90.0, losses=(2.0, 1.0), seconds=(1.0, 1.0), **kwargs):
    kwargs = {'beside': ['a', 'b'], **kwargs}
    return Result('net', method, seed, 2, list(losses), list(seconds), {1: top1}, reloaded_top1=top1, **kwargs)


def test_intervals_are_those_of_students_test():
    values = list(PLAIN.values())
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    mean, half_width = mean_interval(values)
    assert (mean - half_width, mean + half_width) == pytest.approx((expected.low, expected.high))
    assert mean_interval([1.0, 1.0]) == (1.0, 0.0)


def test_means_and_paired_differences_have_intervals():
    results = [result(m, seed, t) for m, top1s in (('plain', PLAIN), ('sample', SAMPLE)) for seed, t in top1s.items()]
    row = next(line for line in format_means(results).splitlines() if line.startswith('net, sample'))
    mean, half_width, difference, of_difference = map(float, re.findall(r'[+-]?\d+\.\d+', row.replace('+- ', '')))
    alone = ttest_1samp(list(SAMPLE.values()), 0).confidence_interval()
    paired = ttest_rel(list(SAMPLE.values()), list(PLAIN.values())).confidence_interval()
    assert mean == pytest.approx(92.375, abs=6e-3) and half_width == pytest.approx(
        (alone.high - alone.low) / 2, abs=6e-3
    )
    assert difference == pytest.approx(1.125, abs=6e-3)
    assert of_difference == pytest.approx((paired.high - paired.low) / 2, abs=6e-3)


def cells(results, column):
    """A column of the table, without its title."""
    head, *lines = format_results(results).splitlines()
    end = head.index(column) + len(column)
    return [line[:end].split('  ')[-1].strip() for line in lines[: len(results)]]


def test_the_ratio_is_to_the_network_that_drops_nothing():
    stochastic = result('block', seconds=(0.5, 1.0), drop_rates={'layer1.0': 0.1})
    assert cells([result('plain'), stochastic], 'ratio to plain') == ['1.000', '0.750']
    assert cells([result('timm'), stochastic], 'ratio to timm') == ['1.000', '0.750']


@pytest.mark.parametrize('slow', ['plain', 'block'])
def test_one_slow_step_moves_no_ratio(slow):
    seconds = {'plain': [1.0 + 0.01 * i for i in range(21)], 'block': [0.8 + 0.008 * i for i in range(21)]}
    seconds[slow][0] = 50.0
    plain, block = (result(m, seconds=s, drop_rates={'a': 0.1} if m == 'block' else {}) for m, s in seconds.items())
    assert cells([plain, block], 'ratio to plain') == ['1.000', '0.800']
    assert cells([plain, block], '95% interval') == ['', '0.800 to 0.800']


def test_a_ratio_has_the_interval_of_its_median_once_there_are_steps_enough():
    generator = random.Random(0)
    seconds = [generator.uniform(0.5, 1.5) for _ in range(40)]
    stochastic = result('block', seconds=seconds, drop_rates={'layer1.0': 0.1})
    plain = result('plain', seconds=[1.0] * 40)
    low, high = map(float, cells([plain, stochastic], '95% interval')[1].split(' to '))
    # of 40 values in order, those between which the median is at 95% by the binomial distribution
    ranks = binom(40, 0.5).ppf([0.025, 0.975])
    ordered = sorted(seconds)
    assert ordered[int(ranks[0]) - 2] <= low <= ordered[int(ranks[0])]
    assert ordered[int(ranks[1]) - 1] <= high <= ordered[int(ranks[1]) + 1]
    assert 'could not tell the network from plain' in format_results([plain, stochastic]).replace('\n', ' ')
    few = [result('plain', seconds=[1.0] * 5), result('block', seconds=seconds[:5], drop_rates={'layer1.0': 0.1})]
    assert cells(few, '95% interval') == ['', ''] and 'could not tell' not in format_results(few)


def test_there_is_no_ratio_to_a_network_of_another_time():
    stochastic = result('block', drop_rates={'layer1.0': 0.1})
    assert cells([stochastic], 'ratio to plain') == ['-']
    for other in (result('plain', seed=2), result('plain', beside=['a'])):
        assert cells([other, stochastic], 'ratio to plain')[1] == '-'


def test_the_largest_differences_of_the_losses_are_told():
    losses = [1.0] * 12
    losses[3], losses[11] = 1.25, 3.0
    timm, ours = result('timm', losses=[1.0] * 12), result('skip', losses=losses, seconds=(0.5, 0.5), top1=91.0)
    text = format_agreement([timm, ours])
    assert '2.5e-01 at the most in the first 10 steps, by 2.0e+00 in all 12' in text
    assert 'top-1 91.00% and 90.00%' in text and 'training took 1.0 s and 2.0 s.' in text
    assert format_agreement([ours]) == '' and format_agreement([result('plain'), ours]) == ''
    ours.beside = ['b']
    assert ' s and ' not in format_agreement([timm, ours])
