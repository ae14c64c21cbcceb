"""A training step in double precision, and what it gives."""

import torch


def step(model, x, run=None, seed=None):
    """Output of a step, and the gradients, of which each parameter is to have one.

    Args:
        model: The network.
        x: Its input.
        run: What is called, if it is not the model itself: compiled, for instance.
        seed: For the generators; None leaves them.
    """
    model.zero_grad()
    if seed is not None:
        torch.manual_seed(seed)
    y = (model if run is None else run)(x)
    y.square().mean().backward()
    return [y.detach(), *(p.grad for p in model.parameters())]


def assert_same(tensors, expected):
    """Whether steps are the same, to rounding."""
    for tensor, reference in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor, reference, rtol=1e-9, atol=1e-12)
