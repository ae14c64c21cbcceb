"""Training steps of two networks of a family, to be compared."""

import torch
from family_networks import FAMILIES
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# convolutions in double precision take long on a CPU: the others are compared to single precision's rounding
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-3}


def assert_equal(value, reference, largest, name=''):
    assert (value - reference).abs().max() <= ROUNDING[value.dtype] * largest, name


def randomize(model):
    """Give what starts as zero or as one a random value: a branch of zeros would prove nothing."""
    for p in model.parameters():
        if p.ndim <= 1 or not p.any():
            nn.init.uniform_(p, 0.1, 0.5)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def images(family, model, batch_size=3):
    size = FAMILIES[family][2]
    return torch.randn(batch_size, 3, size, size, dtype=next(model.parameters()).dtype)


def train_without_batch_statistics(model):
    """In training mode, but for what makes a sample depend on others, or a run on a seed that is not a drop path's."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def output(model, x):
    y = model(x)
    return y[0] if isinstance(y, tuple) else y


def gradients(model, x, seed):
    model.zero_grad()
    torch.manual_seed(seed)
    y = output(model, x)
    y.square().sum().backward()
    return y.detach(), {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def assert_same_training_step(family, plain, model, seed):
    x = images(family, plain)
    y_plain, grads_plain = gradients(plain, x, seed)
    y, grads = gradients(model, x, seed)
    assert_equal(y, y_plain, y_plain.abs().max())
    largest = max(g.abs().max() for g in grads_plain.values())
    for name, grad in grads.items():
        assert_equal(grad, grads_plain[name], largest, name)
