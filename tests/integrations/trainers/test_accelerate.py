"""Accelerate, against plain loops."""

import loops
import pytest
import torch
from torch.nn.functional import cross_entropy

import timm_stochdepth
from timm_stochdepth import drop_rates, set_training_progress, start_warmup

pytest.importorskip('accelerate')
from accelerate import Accelerator, load_checkpoint_in_model  # noqa: E402

pytestmark = loops.TRAINERS


def train(model, accelerator, num_steps=loops.NUM_STEPS):
    """As in docs/trainers.md."""
    optimizer = torch.optim.SGD(model.parameters(), lr=loops.LR)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loops.batches())
    for step in range(num_steps):
        if step % loops.NUM_BATCHES == 0:
            model.train()
        images, targets = list(loader)[step % loops.NUM_BATCHES]
        set_training_progress(model, step / loops.NUM_STEPS)
        optimizer.zero_grad()
        accelerator.backward(cross_entropy(model(images), targets))
        optimizer.step()
        set_training_progress(model, (step + 1) / loops.NUM_STEPS)
    return accelerator.unwrap_model(model)


def create_network(method):
    model = loops.network(method)
    start_warmup(model)
    return model


@pytest.mark.parametrize('method', ['sample', 'block'])
def test_training_is_that_of_a_plain_loop(method):
    model = create_network(method)
    rates = loops.watch(model)
    train(model, Accelerator(cpu=True))
    assert rates == pytest.approx(loops.RATES)
    assert max(drop_rates(model).values()) == loops.RATE
    loops.assert_same_state(model, loops.trained(method))


def test_a_state_is_loaded_with_a_word_to_a_fresh_network_alone(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = train(create_network('block'), accelerator, num_steps=2)
    at_step = loops.logits(model)
    accelerator.save_state(tmp_path)
    accelerator.load_state(tmp_path)  # into the network that trains

    other = create_network('block')
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(other, torch.optim.SGD(other.parameters(), lr=loops.LR))
    set_training_progress(other, 2 / loops.NUM_STEPS)
    with pytest.warns(UserWarning, match='That is right for a run that goes on'):
        accelerator.load_state(tmp_path)
    torch.testing.assert_close(loops.logits(other), at_step)
    accelerator.load_state(tmp_path)  # once a process


def test_weights_alone(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = train(create_network('block'), accelerator)
    accelerator.save_model(model, tmp_path)
    plain = timm_stochdepth.fold_stochastic_depth(model)
    accelerator.save_model(plain, tmp_path / 'plain')

    other = loops.network(None)
    load_checkpoint_in_model(other, tmp_path / 'plain')
    torch.testing.assert_close(loops.logits(other), loops.logits(model))
