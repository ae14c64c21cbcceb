import pytest

pytest.importorskip('composer.trainer')

from composer.core import Algorithm
from composer_runs import DROP_RATE, fit, loader, network, stochastic_depth

import timm_stochdepth as ts

pytestmark = pytest.mark.composer


def test_it_has_all_that_an_algorithm_has():
    assert {name for name in dir(Algorithm) if not name.startswith('_')} <= set(dir(stochastic_depth()))


def test_the_logged_rate_is_the_one_in_force():
    made = fit([stochastic_depth()])
    logged = [(int(time.batch), rate) for time, rate in made.logged.data['stochastic_depth/drop_rate']]
    assert logged[:-1] == list(enumerate(made.rates.train))
    assert logged[-1] == (8, DROP_RATE)


@pytest.mark.parametrize('is_loaded', [False, True])
def test_a_rate_that_stays_is_logged_once(is_loaded, tmp_path):
    made = fit([stochastic_depth(drop_warmup=0)], '2ba', save_folder=str(tmp_path), save_interval='1ba')
    if is_loaded:
        path = str(tmp_path / 'ep0-ba1-rank0.pt')
        made = fit([stochastic_depth(drop_warmup=0)], '2ba', load_path=path)
    assert [rate for _, rate in made.logged.data['stochastic_depth/drop_rate']] == [DROP_RATE]


def test_the_number_of_blocks_and_the_settings_are_logged():
    logged = fit([stochastic_depth('sample', drop_warmup='3ba', skip_dropped=True)], '1ba').logged
    model = network()
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBottleneck')
    assert logged.most_recent_values['stochastic_depth/num_stochastic_layers'] == len(ts.drop_rates(model))
    settings = {name.partition('/')[2]: v for name, v in logged.hyperparameters.items() if 'stochastic_depth/' in name}
    assert settings == dict(
        stochastic_method='sample',
        target_layer_name='ResNetBottleneck',
        drop_rate=DROP_RATE,
        drop_distribution='linear',
        drop_warmup='3ba',
        use_same_gpu_seed=True,
        drop_schedule=None,
        scale_by_keep=False,
        skip_dropped=True,
        round_up=False,
        draw='independent',
        keep_function=False,
    )


def test_other_places_and_conventions():
    made = fit([ts.StochasticDepth('sample', 'DropPath', 0.4, 'uniform', scale_by_keep=True)], '1ep')
    assert set(ts.drop_rates(made.state.model).values()) == {0.4}


def test_the_event_of_another_algorithm_is_none_of_its_business():
    algorithm = stochastic_depth(drop_warmup=0)
    made = fit([algorithm], '1ba', eval_dataloader=loader())
    assert not algorithm.match('batch_start', made.state) and not algorithm.match('eval_start', made.state)
