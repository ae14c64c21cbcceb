"""Composer's trainer gives what a plain loop gives: its algorithms beside this one, each against its formula."""

import numpy as np
import pytest
import torch

pytest.importorskip('composer.trainer')

import composer.functional as cf
from composer.algorithms import EMA, SAM, SWA, BlurPool, ChannelsLast, LabelSmoothing, MixUp
from composer_runs import BATCH_SIZE, data, fit, logits, network, plain_loop, stochastic_depth, weights
from torch.nn.functional import cross_entropy, one_hot

pytestmark = [
    pytest.mark.composer,
    pytest.mark.parametrize('method', ['sample', 'block']),
]


@pytest.fixture
def in_double():
    """Otherwise what two formulas round apart grows from batch to batch."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()


def last(loop):
    *_, model = loop
    return model


def assert_same(made, expected, tolerance=0.0):
    for name, value in weights(made).items():
        torch.testing.assert_close(value, expected[name], atol=tolerance, rtol=tolerance, msg=name)


def test_alone(method):
    made = fit([stochastic_depth(method)]).state.model
    assert_same(made, last(plain_loop(method, step)).state_dict())


def test_microbatches(method):
    def accumulate(model, optimizer, x, y):
        optimizer.zero_grad()
        for x_micro, y_micro in zip(x.split(2), y.split(2)):
            (cross_entropy(model(x_micro), y_micro) * 2 / BATCH_SIZE).backward()
        optimizer.step()

    made = fit([stochastic_depth(method)], device_train_microbatch_size=2).state.model
    assert_same(made, last(plain_loop(method, accumulate)).state_dict())


def test_channels_last(method, in_double):
    made = fit([stochastic_depth(method), ChannelsLast()]).state.model
    expected = last(plain_loop(method, step, prepare=lambda model: model.to(memory_format=torch.channels_last)))
    assert_same(made, expected.state_dict(), tolerance=1e-6)


@pytest.mark.parametrize('is_first', [True, False])
def test_blur_pool(method, is_first):
    algorithms = [stochastic_depth(method), BlurPool()]
    made = fit(algorithms if is_first else algorithms[::-1]).state.model
    expected = last(plain_loop(method, step, prepare=cf.apply_blurpool))
    assert_same(made, expected.state_dict())


def test_label_smoothing(method, in_double):
    def smoothed(model, optimizer, x, y):
        optimizer.zero_grad()
        cross_entropy(model(x), y, label_smoothing=0.1).backward()
        optimizer.step()

    made = fit([stochastic_depth(method), LabelSmoothing(0.1)]).state.model
    assert_same(made, last(plain_loop(method, smoothed)).state_dict(), tolerance=1e-6)


def test_mixup(method, in_double):
    def mixed(model, optimizer, x, y):
        share = np.random.beta(0.2, 0.2)
        share = min(share, 1 - share)
        order_N = torch.randperm(len(x))
        y = one_hot(y, 10).float()
        optimizer.zero_grad()
        y_mixed = (1 - share) * y + share * y[order_N]
        cross_entropy(model((1 - share) * x + share * x[order_N]), y_mixed).backward()
        optimizer.step()

    made = fit([stochastic_depth(method), MixUp(alpha=0.2)]).state.model
    assert_same(made, last(plain_loop(method, mixed)).state_dict(), tolerance=1e-6)


@pytest.mark.filterwarnings('ignore:SAM has known issues')
def test_sam(method, in_double):
    def sharpness_aware(model, optimizer, x, y):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        climbs = [0.05 * p.grad / (norm + 1e-12) for p in model.parameters()]
        with torch.no_grad():
            for p, climb in zip(model.parameters(), climbs):
                p += climb
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, climb in zip(model.parameters(), climbs):
                p -= climb
        optimizer.step()

    made = fit([stochastic_depth(method), SAM(rho=0.05)]).state.model
    assert_same(made, last(plain_loop(method, sharpness_aware)).state_dict(), tolerance=1e-6)


def test_ema_evaluates_at_the_rate_in_force(method, in_double):
    average = None
    for model in plain_loop(method, step):
        now = {k: v.clone() for k, v in model.state_dict().items()}
        average = average or now
        average = {k: 0.5 * v + 0.5 * now[k] for k, v in average.items()}
    made = fit([stochastic_depth(method), EMA(half_life='1ba')])
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(average[name])
    made.state.algorithms[1]._ensure_ema_weights_active(made.state)  # as for an evaluation
    model.eval()
    torch.testing.assert_close(logits(made.state.model), model(data().tensors[0]))


@pytest.mark.filterwarnings('ignore:SWA has known issues')
def test_swa(method, in_double):
    states = [{k: v.clone() for k, v in model.state_dict().items()} for model in plain_loop(method, step)]
    expected = states[-1]
    for name, _ in network().named_parameters():  # buffers are those of the last batch
        expected[name] = torch.stack([state[name] for state in states[3:]]).mean(0)
    made = fit([stochastic_depth(method), SWA('0.5dur', '0.97dur', '1ba')], '8ba').state.model
    assert_same(made, expected, tolerance=1e-6)
