"""Networks that another release of the package pickled as a whole, by torch.save(model)."""

from pathlib import Path

import pytest
import torch
from forks import run_python
from torchvision.models.resnet import BasicBlock

import timm_stochdepth as ts

# two of torchvision's BasicBlock(4, 4) for each method, saved by 0.4.0 at 0.4 of a training run after
# apply_stochastic_depth(model, method, 'ResNetBasicBlock', 0.5, 'uniform', drop_warmup=0.5)
FILE = Path(__file__).with_name('networks_0.4.pt')
RATE = 0.5 * 0.4 / 0.5


@pytest.fixture
def networks():
    return torch.load(FILE, weights_only=False)


@pytest.mark.parametrize('method', ['block', 'sample'])
def test_they_compute_at_inference_what_they_computed(networks, method):
    x = torch.randn(6, 4, 5, 5)
    y = x
    for block in networks[method]:
        plain = BasicBlock(4, 4).eval()
        plain.load_state_dict(block.state_dict())
        branch = plain.bn2(plain.conv2(torch.relu(plain.bn1(plain.conv1(y)))))
        y = torch.relu(y + (1 - RATE) * branch)
    torch.testing.assert_close(networks[method].eval()(x), y)


@pytest.mark.parametrize('method', ['block', 'sample'])
def test_they_drop_as_they_did_and_can_be_trained_on(networks, method):
    model, x = networks[method], torch.randn(6, 4, 5, 5)
    assert ts.drop_rates(model) == pytest.approx({'0': RATE, '1': RATE})
    num_dropped = {int((model[0](x) == torch.relu(x)).flatten(1).all(1).sum()) for _ in range(30)}
    assert num_dropped == {0, 6} if method == 'block' else len(num_dropped) > 3
    ts.set_training_progress(model, 1.0)
    assert ts.drop_rates(model) == pytest.approx({'0': 0.5, '1': 0.5})


def test_they_are_loaded_by_a_process_that_has_not_imported_the_package():
    script = 'import sys, torch; print(len(torch.load(sys.argv[1], weights_only=False)))'
    result = run_python('-c', script, FILE)
    assert result.stdout == '2\n', result.stderr


def test_saved_again_they_need_no_old_name(networks, tmp_path):
    torch.save(networks, tmp_path / 'networks.pt')
    for name in ('blocks', 'site', 'progress', 'shared_draws'):
        assert f'timm_stochdepth.{name}\n'.encode() in FILE.read_bytes()
        assert f'timm_stochdepth.{name}\n'.encode() not in (tmp_path / 'networks.pt').read_bytes()
