"""A small network, and the plain loop that trains it: the reference of what a trainer does with it."""

import pytest
import timm
import torch
from networks import randomize
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import timm_stochdepth
from timm_stochdepth import drop_rates, set_training_progress

# what every test of a trainer has: none is told of its own weights, or of a warm-up that nobody drives
TRAINERS = [pytest.mark.trainers, pytest.mark.filterwarnings('error:(The weights|drop_warmup)')]
RATE, WARMUP, LR = 0.5, 0.5, 0.05
NUM_EPOCHS, NUM_BATCHES, BATCH_SIZE = 2, 4, 4
NUM_STEPS = NUM_EPOCHS * NUM_BATCHES
RATES = [RATE * min(1.0, step / NUM_STEPS / WARMUP) for step in range(NUM_STEPS)]
SMALL = dict(num_classes=4, channels=(8, 16, 32, 64), layers=(1, 2, 2, 1), stem_width=8)


def network(method, **kwargs):
    torch.manual_seed(0)
    name = f'resnet50_sd_{method}' if method else 'resnet50'
    settings = dict(drop_warmup=WARMUP) if method else {}
    return randomize(timm.create_model(name, drop_path_rate=RATE, **SMALL, **settings, **kwargs))


def samples():
    generator = torch.Generator().manual_seed(1)
    num = NUM_BATCHES * BATCH_SIZE
    images = torch.randn(num, 3, 32, 32, generator=generator)
    return TensorDataset(images, torch.randint(4, (num,), generator=generator))


def batches():
    return DataLoader(samples(), batch_size=BATCH_SIZE)


def watch(model, offset=0):
    """Give each forward pass in training a seed of its own, whatever else draws; the rate of each, as they come."""
    rates = []

    def before(module, args):
        if module.training:
            rates.append(max(drop_rates(module).values(), default=0.0))
            torch.manual_seed(offset + len(rates))

    model.register_forward_pre_hook(before)
    return rates


def train(model, forward=None, loader=None, after_step=lambda: None):
    """Train by a plain loop, model through forward if that is a wrapper."""
    forward, loader = forward or model, loader or batches()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for epoch in range(NUM_EPOCHS):
        forward.train()
        for i, (images, targets) in enumerate(loader):
            set_training_progress(model, (epoch * NUM_BATCHES + i) / NUM_STEPS)
            optimizer.zero_grad()
            cross_entropy(forward(images), targets).backward()
            optimizer.step()
            set_training_progress(model, (epoch * NUM_BATCHES + i + 1) / NUM_STEPS)
            after_step()
    return model


def trained(method, **kwargs):
    """The network after the plain loop."""
    model = network(method, **kwargs)
    timm_stochdepth.start_warmup(model)
    watch(model)
    return train(model)


def assert_same_state(model, reference, **tolerances):
    """Equal parameters and statistics of norms."""
    state = model.state_dict()
    assert list(state) == list(reference.state_dict())
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(state[name], tensor, **tolerances, msg=lambda text, name=name: f'{name}: {text}')


def logits(model):
    was_training = model.training
    with torch.no_grad():
        y = model.eval()(samples().tensors[0])
    model.train(was_training)
    return y
