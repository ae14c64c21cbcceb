import enum

import pytest
import timm
import torch

import timm_stochdepth as ts
from timm_stochdepth.places import drop_paths


class Event(enum.Enum):
    """Events as Composer names them."""

    INIT = 'init'
    BATCH_START = 'batch_start'
    BATCH_END = 'batch_end'


class State:
    def __init__(self, model, elapsed=None):
        self.model = model
        self.elapsed = elapsed

    def get_elapsed_duration(self):
        return self.elapsed


class Logger:
    def __init__(self):
        self.metrics = []

    def log_metrics(self, metrics):
        self.metrics.append(metrics)


class Time:
    """A duration that turns into a number, as Composer's Time does."""

    def __init__(self, value):
        self.value = value

    def __float__(self):
        return self.value


@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('events', [(Event.INIT, Event.BATCH_START), ('init', 'batch_start')])
def test_init_applies_and_batch_start_warms_up(method, events):
    init, batch_start = events
    algorithm = ts.StochasticDepth(method, 'ResNetBottleneck', drop_rate=0.4, drop_warmup=0.5)
    state, logger = State(timm.create_model('resnet50')), Logger()
    assert algorithm.match(init, state) and algorithm.match(batch_start, state)
    assert algorithm.apply(init, state, logger) is None
    assert logger.metrics == [{'stochastic_depth/num_stochastic_layers': 16}]
    assert set(ts.drop_rates(state.model).values()) == {0.0}
    for elapsed, rate in ((0.0, 0.0), (Time(0.25), 0.2), (0.5, 0.4), (Time(1.0), 0.4)):
        state.elapsed = elapsed
        algorithm.apply(batch_start, state, logger)
        assert logger.metrics.pop() == {'stochastic_depth/drop_rate': pytest.approx(rate)}
        assert list(ts.drop_rates(state.model).values()) == pytest.approx([rate * i / 15 for i in range(16)])
    assert {place.settings.stochastic_method for _, place in drop_paths(state.model)} == {method}


def test_it_takes_all_settings():
    settings = dict(drop_schedule=[(0.5, 0), (1, 1)], scale_by_keep=True, skip_dropped=True)
    algorithm = ts.StochasticDepth('sample', 'DropPath', None, **settings)
    model = timm.create_model('test_vit', drop_path_rate=0.3)
    state, logger = State(model, 0.75), Logger()
    algorithm.apply(Event.INIT, state, logger)
    assert max(ts.drop_rates(model).values()) == 0.0 and algorithm.match(Event.BATCH_START, state)
    algorithm.apply(Event.BATCH_START, state, logger)
    assert max(ts.drop_rates(model).values()) == pytest.approx(0.15)
    given = next(place.settings for _, place in drop_paths(model))
    assert given.scale_by_keep and given.skip_dropped and given.drop_schedule == ((0.5, 0.0), (1.0, 1.0))


def test_without_warmup_it_acts_on_init_alone():
    algorithm = ts.StochasticDepth('sample', 'ResNetBottleneck')
    state, logger = State(timm.create_model('resnet50')), Logger()
    assert algorithm.match(Event.INIT, state)
    assert not algorithm.match(Event.BATCH_START, state) and not algorithm.match(Event.BATCH_END, state)
    algorithm.apply(Event.INIT, state, logger)
    assert max(ts.drop_rates(state.model).values()) == 0.2


def test_a_trained_model_starts_as_the_function_that_it_was():
    model = timm.create_model('resnet50', num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64)
    y = model(x)
    ts.StochasticDepth('block', 'ResNetBottleneck', drop_warmup=0.1).apply('init', State(model), Logger())
    assert torch.equal(model(x), y)


def test_an_unknown_duration_is_told():
    algorithm = ts.StochasticDepth('sample', 'ResNetBottleneck', drop_warmup=0.5)
    state = State(timm.create_model('resnet50'))
    algorithm.apply(Event.INIT, state, Logger())
    with pytest.raises(RuntimeError, match='get_elapsed_duration'):
        algorithm.apply(Event.BATCH_START, state, Logger())


@pytest.mark.parametrize(
    'changes, error',
    [
        (dict(stochastic_method='x'), ValueError),
        (dict(target_layer_name='x'), ValueError),
        (dict(drop_rate=2), ValueError),
        (dict(drop_rate='a'), TypeError),
        (dict(drop_distribution='x'), ValueError),
        (dict(drop_warmup=-1), ValueError),
        (dict(use_same_gpu_seed='x'), TypeError),
    ],
)
def test_bad_arguments_are_named_at_once(changes, error):
    arguments = dict(stochastic_method='block', target_layer_name='ResNetBottleneck')
    with pytest.raises(error, match=next(iter(changes))):
        ts.StochasticDepth(**{**arguments, **changes})


def test_repr_shows_the_settings():
    assert 'drop_warmup=0.5' in repr(ts.StochasticDepth('sample', 'ResNetBottleneck', drop_warmup=0.5))
