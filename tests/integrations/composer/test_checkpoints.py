"""A run that is saved and loaded goes on bit by bit, and computes what it computed."""

import subprocess
import sys
import warnings

import pytest
import torch

pytest.importorskip('composer.trainer')

from composer_runs import (
    DROP_RATE,
    NETWORK,
    NUM_BATCHES,
    data,
    fit,
    loader,
    logits,
    plain_loop,
    rate_of,
    stochastic_depth,
    trainer,
    weights,
)
from test_as_plain_loop import step

import timm_stochdepth as ts

pytestmark = pytest.mark.composer


@pytest.fixture(scope='module', params=['sample', 'block'])
def method(request):
    return request.param


@pytest.fixture(scope='module')
def run(method, tmp_path_factory):
    """A run of two epochs, and the folder with its checkpoints of every batch."""
    folder = tmp_path_factory.mktemp(method)
    return fit([stochastic_depth(method)], save_folder=str(folder), save_interval='1ba'), folder


@pytest.fixture
def silent():
    """Nothing is warned of that has to do with algorithms or weights."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        yield
    assert not [str(w.message) for w in caught if 'algorithm' in str(w.message) or 'weights' in str(w.message)]


def saved_at(folder, batch):
    (path,) = folder.glob(f'ep*-ba{batch}-rank0.pt')
    return str(path)


def rate_after(num_batches):
    return pytest.approx(DROP_RATE * min(num_batches / NUM_BATCHES, 1.0))


def assert_equal(made, expected):
    for name, value in weights(expected).items():
        assert torch.equal(weights(made)[name], value), name


@pytest.mark.parametrize('batch', [2, NUM_BATCHES, 7])
def test_resumed(run, method, batch, silent):
    whole, folder = run
    made = fit([stochastic_depth(method)], load_path=saved_at(folder, batch))
    assert made.rates.train == whole.rates.train[batch:]
    assert_equal(made.state.model, whole.state.model)


def test_resumed_without_naming_the_algorithm(run):
    whole, folder = run
    with pytest.warns(UserWarning, match=r'Automatically adding .*StochasticDepth\('):
        made = fit([], load_path=saved_at(folder, 2))
    assert made.rates.train == whole.rates.train[2:]
    assert_equal(made.state.model, whole.state.model)


EVALUATES_WITHOUT_OUR_NAME = """
import sys

import torch
from composer import Trainer
from composer.models import ComposerClassifier
from timm.models.resnet import Bottleneck, ResNet

path, args, images_NCHW, out = torch.load(sys.argv[1])
model = ComposerClassifier(ResNet(Bottleneck, **args), num_classes=10)
assert 'timm_stochdepth' not in sys.modules
trainer = Trainer(model=model, load_path=path, device='cpu')
with torch.no_grad():
    torch.save(model.eval()((images_NCHW, None)), out)
"""


@pytest.mark.parametrize('method', ['block'], indirect=True)
def test_a_script_that_does_not_know_of_us(run, tmp_path):
    whole, folder = run
    given, out = tmp_path / 'given.pt', tmp_path / 'out.pt'
    torch.save((saved_at(folder, 8), NETWORK, data().tensors[0], str(out)), given)
    script = subprocess.run([sys.executable, '-c', EVALUATES_WITHOUT_OUR_NAME, given], capture_output=True, text=True)
    assert script.returncode == 0, script.stderr
    assert 'Automatically adding' in script.stderr
    torch.testing.assert_close(torch.load(out), logits(whole.state.model))


def test_resumed_at_another_rate_is_told(run, method):
    _, folder = run
    other = ts.StochasticDepth(method, 'ResNetBottleneck', 0.3, drop_warmup=0.5)
    with pytest.warns(UserWarning, match='(?s)drop_rate=0.5.* is now specified .*drop_rate=0.3'):
        trainer([other], load_path=saved_at(folder, 2), train_dataloader=loader())


def test_autoresume(method, tmp_path, silent):
    def start(max_duration):
        algorithms = [stochastic_depth(method, drop_warmup='4ba')]
        folder = str(tmp_path)
        return fit(
            algorithms, max_duration, run_name='run', save_folder=folder, save_interval='3ba', autoresume=True
        ).rates.train

    assert start('3ba') == [rate_after(batch) for batch in range(3)]
    assert start('8ba') == [rate_after(batch) for batch in range(3, 8)]


@pytest.mark.parametrize('batch', [2, 8])
@pytest.mark.parametrize('is_named', [True, False])
@pytest.mark.parametrize('max_duration', ['2ep', None])
@pytest.mark.filterwarnings('ignore:(?s).*Automatically adding')
def test_loaded_it_has_the_rate_of_the_moment_that_was_saved(run, method, batch, is_named, max_duration):
    _, folder = run
    algorithms = [stochastic_depth(method)] if is_named else []
    made = trainer(algorithms, max_duration, load_path=saved_at(folder, batch), eval_dataloader=loader())
    assert rate_of(made.state.model) == rate_after(batch)
    made.eval()
    assert made.rates.eval == [rate_after(batch)] * NUM_BATCHES


@pytest.mark.parametrize('load_weights_only', [False, True])
def test_another_trainer_evaluates_what_the_run_ended_with(run, method, load_weights_only, silent):
    whole, folder = run
    made = trainer(
        [stochastic_depth(method)],
        load_path=saved_at(folder, 8),
        load_weights_only=load_weights_only,
        eval_dataloader=loader(),
    )
    made.eval()
    assert rate_of(made.state.model) == DROP_RATE
    assert torch.equal(logits(made.state.model), logits(whole.state.model))


def plain_logits(method, num_batches):
    """What a run computes after so many batches, as a loop without Composer has it."""
    for update, model in enumerate(plain_loop(method, step), 1):
        if update == num_batches:
            ts.set_training_progress(model, num_batches / (2 * NUM_BATCHES))
            return model.eval()(data().tensors[0])


@pytest.mark.parametrize('save_weights_only', [False, True])
@pytest.mark.parametrize(
    'kwargs',
    [dict(), dict(drop_warmup=0), dict(drop_warmup='3ba'), dict(drop_warmup=0, scale_by_keep=True)],
    ids=str,
)
@pytest.mark.filterwarnings('ignore:(?s).*Potential parameter discrepancies')
def test_weights_alone_keep_their_function(tmp_path, method, save_weights_only, kwargs):
    fit(
        [stochastic_depth(method)],
        save_folder=str(tmp_path),
        save_interval='3ba',
        save_weights_only=save_weights_only,
    )
    expected = plain_logits(method, 3)
    made = trainer(
        [stochastic_depth(method, **kwargs)],
        load_path=saved_at(tmp_path, 3),
        load_weights_only=True,
        train_dataloader=loader(),
    )
    torch.testing.assert_close(logits(made.state.model), expected, atol=1e-5, rtol=1e-4)
    made.engine.run_event('fit_start')
    assert rate_of(made.state.model) == (DROP_RATE if kwargs.get('drop_warmup') == 0 else 0)
    torch.testing.assert_close(logits(made.state.model), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('load_weights_only', [False, True])
@pytest.mark.parametrize('drop_warmup', [0, 0.5])
@pytest.mark.filterwarnings('ignore:StochasticDepth is not in the state_dict')
def test_a_plain_run_that_goes_on_with_stochastic_depth(tmp_path, method, load_weights_only, drop_warmup):
    plain = fit([], '1ep', save_folder=str(tmp_path))
    expected = logits(plain.state.model)
    made = trainer(
        [stochastic_depth(method, drop_warmup=drop_warmup)],
        load_path=saved_at(tmp_path, NUM_BATCHES),
        load_weights_only=load_weights_only,
        train_dataloader=loader(),
    )
    torch.testing.assert_close(logits(made.state.model), expected, atol=1e-5, rtol=1e-4)
    made.engine.run_event('fit_start')
    # half of the run is done where the trainer goes on, and with it the warm-up
    assert rate_of(made.state.model) == (0 if load_weights_only and drop_warmup else DROP_RATE)
    torch.testing.assert_close(logits(made.state.model), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings('ignore:(?s).*Automatically adding')
def test_a_checkpoint_of_composers_own_is_told(tmp_path):
    import composer.algorithms

    own = composer.algorithms.StochasticDepth('ResNetBottleneck', drop_rate=0.2)
    fit([own], '1ba', save_folder=str(tmp_path))
    with pytest.raises(ValueError, match=r"Composer's own: StochasticDepth\(target_layer_name='ResNetBottleneck'"):
        trainer([stochastic_depth()], load_path=saved_at(tmp_path, 1))
