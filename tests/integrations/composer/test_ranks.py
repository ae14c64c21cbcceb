"""`composer -n 2`, over gloo."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip('composer.trainer')

from composer.models import ComposerClassifier
from composer_runs import DROP_RATE, logits, network, stochastic_depth, trainer
from pages import ROOT
from rank_script import NUM_UPDATES, SAVED_AT, SETTINGS

import timm_stochdepth as ts

pytestmark = pytest.mark.composer

NUM_BLOCKS = 4


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('ranks')


@pytest.fixture(scope='module')
def results(folder):
    """The weights of each rank after each kind of run, and the blocks that ran in it; two launches."""
    script = ROOT / 'tests' / 'support' / 'rank_script.py'
    path = os.pathsep.join([str(script.parent), *sys.path])
    for task in ('train', 'resume'):
        launcher = [sys.executable, '-m', 'composer.cli.launcher', '-n', '2', str(script), task, str(folder)]
        ran = subprocess.run(launcher, env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    return [
        {**torch.load(folder / f'train-{rank}.pt'), **torch.load(folder / f'resume-{rank}.pt')} for rank in range(2)
    ]


@pytest.mark.parametrize('name', SETTINGS)
def test_ranks_have_the_same_weights(results, name):
    (here, _), (there, _) = (of_rank[f'by Composer, {name}'] for of_rank in results)
    for key, value in here.items():
        if 'running' not in key and 'batches' not in key:  # norms see the batches of their own rank
            assert torch.equal(value, there[key]), key


@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('name', SETTINGS)
def test_as_a_plain_loop(results, name, rank):
    assert_equal(results[rank][f'by Composer, {name}'], results[rank][f'by hand, {name}'])


@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('name', SETTINGS)
def test_a_resumed_run_goes_on_bit_by_bit(results, name, rank):
    weights, ran = results[rank][f'by Composer, {name}']
    resumed, ran_again = results[rank][f'resumed, {name}']
    assert_equal((resumed, ran_again), (weights, ran[-len(ran_again) :]))


def assert_equal(run, expected):
    (weights, ran), (expected_weights, expected_ran) = run, expected
    assert ran == expected_ran
    for key, value in expected_weights.items():
        assert torch.equal(weights[key], value), key


@pytest.mark.parametrize('name, is_same', [('same', True), ('different', False)])
def test_ranks_drop_the_same_blocks_or_their_own(results, name, is_same):
    (_, here), (_, there) = (of_rank[f'by Composer, {name}'] for of_rank in results)
    assert len(here) < NUM_BLOCKS * NUM_UPDATES
    assert (here == there) == is_same


@pytest.mark.filterwarnings('ignore:(?s).*Potential parameter discrepancies')
def test_weights_alone_of_several_ranks_keep_their_function(results, folder):
    path = str(folder / 'sample' / f'ep0-ba{SAVED_AT}-rank0.pt')
    model = ComposerClassifier(network(), num_classes=10)
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBottleneck', DROP_RATE, drop_warmup=0.5)
    model.load_state_dict(torch.load(path, weights_only=False)['state']['model'])
    ts.set_training_progress(model, SAVED_AT / NUM_UPDATES)
    made = trainer([stochastic_depth('sample', drop_warmup=0)], load_path=path, load_weights_only=True)
    torch.testing.assert_close(logits(made.state.model), logits(model), atol=1e-5, rtol=1e-4)
