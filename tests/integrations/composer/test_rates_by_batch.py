"""The rate at each batch against the formula: rate * min(progress / drop_warmup, 1), progress by the batch."""

import pytest

pytest.importorskip('composer.trainer')

import torch
from composer import Callback
from composer.core import DataSpec, Time
from composer.models import ComposerClassifier
from composer_runs import (
    BATCH_SIZE,
    DROP_RATE,
    NUM_BATCHES,
    NUM_SAMPLES,
    data,
    fit,
    loader,
    logits,
    network,
    rate_of,
    stochastic_depth,
    trainer,
)
from torch.utils.data import DataLoader, IterableDataset

import timm_stochdepth as ts

pytestmark = pytest.mark.composer


def ramp(num_batches, length):
    """Rates of so many batches, the warm-up of which lasts so many."""
    return pytest.approx([DROP_RATE * min(batch / length, 1.0) for batch in range(num_batches)])


@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('max_duration, num_batches', [('1ep', 4), ('2ep', 8), ('8ba', 8), ('128sp', 16)])
def test_every_batch_counts_whatever_the_duration_is_counted_in(method, max_duration, num_batches):
    made = fit([stochastic_depth(method)], max_duration, eval_dataloader=loader())
    assert made.rates.train == ramp(num_batches, num_batches / 2)
    assert made.rates.eval[-NUM_BATCHES:] == [DROP_RATE] * NUM_BATCHES


@pytest.mark.parametrize('max_duration', ['1ep', '4ba'])
def test_the_last_evaluation_is_at_the_full_rate(max_duration):
    made = fit([stochastic_depth(drop_warmup=1.0)], max_duration, eval_dataloader=loader(), eval_interval='2ba')
    halves = [DROP_RATE / 2] * NUM_BATCHES + [DROP_RATE] * NUM_BATCHES
    assert made.rates.eval == pytest.approx(halves)


def test_tokens():
    tokens = DataSpec(loader(), get_num_tokens_in_batch=lambda batch: 10 * len(batch[0]))
    made = fit([stochastic_depth(drop_warmup=1.0)], f'{10 * NUM_SAMPLES}tok', train_dataloader=tokens)
    assert made.rates.train == ramp(NUM_BATCHES, NUM_BATCHES)


@pytest.mark.parametrize('length, num_batches', [('1ep', 2 * NUM_BATCHES), (f'{10 * BATCH_SIZE}tok', 2)])
def test_iterations(length, num_batches):
    tokens = DataSpec(loader(), get_num_tokens_in_batch=lambda batch: 10 * len(batch[0]))
    made = trainer([stochastic_depth(drop_warmup=1.0)], '2iter', train_dataloader=tokens)
    made.state._iteration_length = length
    made.fit()
    assert made.rates.train == ramp(num_batches, num_batches)


@pytest.mark.parametrize(
    'drop_warmup, length',
    [
        ('0.25dur', 2),
        ('1ep', NUM_BATCHES),
        ('3ba', 3),
        ('24sp', 3),
        ('3ep', 3 * NUM_BATCHES),
        (Time(3, 'ba'), 3),
        (Time(0.25, 'dur'), 2),
        (1, 2 * NUM_BATCHES),
    ],
)
@pytest.mark.parametrize('max_duration', ['2ep', '8ba'])
def test_the_warmup_in_every_unit(drop_warmup, length, max_duration):
    made = fit([stochastic_depth(drop_warmup=drop_warmup)], max_duration)
    assert made.rates.train == ramp(2 * NUM_BATCHES, length)


@pytest.mark.parametrize('drop_warmup', [0, 0.0, '0ba', '0dur', Time(0, 'ep')])
def test_no_warmup(drop_warmup):
    assert fit([stochastic_depth(drop_warmup=drop_warmup)], '2ba').rates.train == [DROP_RATE] * 2


@pytest.mark.parametrize('drop_warmup', ['0.1', 'ten ba', '2.5ep', '-1ba', '1.5dur', Time(-1, 'ep')])
def test_a_warmup_that_is_no_time_is_named(drop_warmup):
    with pytest.raises(ValueError, match='drop_warmup must be'):
        stochastic_depth(drop_warmup=drop_warmup)


def test_a_schedule():
    early = [(0, 1), (0.5, 0)]
    made = fit([stochastic_depth('sample', drop_warmup=0, drop_schedule=early)])
    expected = [DROP_RATE * max(1 - batch / NUM_BATCHES, 0.0) for batch in range(2 * NUM_BATCHES)]
    assert made.rates.train == pytest.approx(expected)


def test_a_schedule_and_a_warmup_are_refused():
    with pytest.raises(ValueError, match="drop_warmup must be 0 .* got '10ba'"):
        stochastic_depth(drop_warmup='10ba', drop_schedule=[(0, 1), (0.5, 0)])


def test_a_smaller_last_batch_and_a_shorter_epoch():
    algorithms = [stochastic_depth(drop_warmup=1.0)]
    assert fit(algorithms, '1ep', train_dataloader=loader(NUM_SAMPLES - 3)).rates.train == ramp(
        NUM_BATCHES, NUM_BATCHES
    )
    assert fit(algorithms, '2ep', train_subset_num_batches=3).rates.train == ramp(6, 6)


class Stream(IterableDataset):
    """Images that come without saying how many."""

    def __iter__(self):
        return iter(data())


def stream():
    return DataLoader(Stream(), batch_size=BATCH_SIZE)


def test_a_stream_has_no_epochs_to_warm_up_by():
    with pytest.raises(ValueError, match='drop_warmup must be in batches or samples.*train_subset_num_batches'):
        fit([stochastic_depth(drop_warmup='1ep')], '8ba', train_dataloader=stream())


@pytest.mark.parametrize(
    'max_duration, drop_warmup, kwargs',
    [
        ('8ba', 0.5, {}),
        ('64sp', 0.5, {}),
        ('8ba', '32sp', {}),
        ('2ep', 0.5, dict(train_subset_num_batches=NUM_BATCHES)),
        ('8ba', '1ep', dict(train_subset_num_batches=NUM_BATCHES)),
    ],
)
def test_a_stream_warms_up_by_batches_and_samples(max_duration, drop_warmup, kwargs):
    made = fit([stochastic_depth(drop_warmup=drop_warmup)], max_duration, train_dataloader=stream(), **kwargs)
    assert made.rates.train == ramp(2 * NUM_BATCHES, NUM_BATCHES)


class StopAfter(Callback):
    def __init__(self, num_batches):
        self.num_batches = num_batches

    def batch_end(self, state, logger):
        if state.timestamp.batch == self.num_batches:
            state.stop_training()


@pytest.mark.parametrize('max_duration', ['2ep', '8ba', '64sp'])
def test_a_run_that_is_stopped_keeps_its_rate(max_duration):
    made = fit([stochastic_depth(drop_warmup=1.0)], max_duration, callbacks=[StopAfter(4)], eval_dataloader=loader())
    assert made.rates.train == ramp(4, 8)
    assert {round(rate, 6) for rate in made.rates.eval} <= {DROP_RATE / 2}
    assert rate_of(made.state.model) == DROP_RATE / 2


def test_fit_again_for_longer():
    made = trainer([stochastic_depth(drop_warmup=1.0)], '1ep', train_dataloader=loader())
    made.fit()
    made.fit(duration='1ep')
    assert made.rates.train[:4] == ramp(4, 4)
    assert made.rates.train[4:] == pytest.approx([DROP_RATE * batch / 8 for batch in range(4, 8)])


def test_data_that_is_given_to_fit():
    made = trainer([stochastic_depth()], None)
    made.fit(train_dataloader=loader(), duration='2ep')
    assert made.rates.train == ramp(8, 4)


def test_a_network_that_had_stochastic_depth_keeps_its_function():
    model = ComposerClassifier(network(), num_classes=10)
    ts.apply_stochastic_depth(model, 'block', 'ResNetBottleneck', DROP_RATE)
    expected = logits(model)
    made = trainer([stochastic_depth()], train_dataloader=loader(), model=model)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)
    made.engine.run_event('fit_start')
    assert rate_of(model) == 0
    torch.testing.assert_close(logits(model), expected)


@pytest.mark.parametrize('warmup', [0, 0.5])
def test_present_weights_are_right_at_the_rate_that_it_starts_with(warmup):
    plain = network().eval()
    x = torch.randn(4, 3, 32, 32)
    y = plain(x)
    algorithm = stochastic_depth(drop_warmup=warmup, keep_function=True)
    made = trainer([algorithm], model=ComposerClassifier(plain, num_classes=10))
    assert rate_of(made.state.model) == (0.0 if warmup else DROP_RATE)
    torch.testing.assert_close(plain.eval()(x), y, rtol=1e-4, atol=1e-4)
