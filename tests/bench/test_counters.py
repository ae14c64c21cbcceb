"""Counts of small networks, by hand: 4 bytes a float, 8 an index."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from timm_stochdepth.bench.counters import StepCounter, kept_storages


def counted(run):
    """Operations, bytes and kernels."""
    with StepCounter() as counter:
        run()
    return tuple(sum(getattr(c, key) for c in counter.by_op.values()) for key in ('operations', 'bytes', 'kernels'))


x, y, z = (torch.randn(10, 8) for _ in range(3))
kept = torch.tensor([7, 2, 5])
rows = torch.randn(3, 8)
values = nn.Parameter(torch.randn(10, 8))


@pytest.mark.parametrize(
    'run, floats, indices, kernels',
    [
        (lambda: x + y, 80 + 80 + 80, 0, 1),
        (lambda: x * x, 80 + 80, 0, 1),
        (lambda: x.clone().add_(y), (80 + 80) + (80 + 80 + 80), 0, 2),
        (lambda: torch.addcmul(x, y, torch.zeros(10, 1)), 10 + (80 + 80 + 10 + 80), 0, 2),
        # what is written to is read, too, where it is an operand
        (lambda: torch.addcmul(x, y, z, out=z), 80 + 80 + 80 + 80, 0, 1),
        (lambda: torch.add(x, y, out=torch.empty(10, 8)), 80 + 80 + 80, 0, 1),
        (lambda: torch.empty(10, 8).copy_(x), 80 + 80, 0, 1),
        (lambda: torch.zeros_like(x), 80, 0, 1),
        (lambda: x[:1].expand(10, 8) + y, 8 + 80 + 80, 0, 1),
        (lambda: x.index_select(0, kept), 24 + 24, 3, 1),
        (lambda: x[kept], 24 + 24, 3, 1),
        (lambda: z.index_add_(0, kept, rows), 24 + 24 + 24, 3, 1),
        # a copy, and the addition into it
        (lambda: x.index_add(0, kept, rows), (80 + 80) + (24 + 24 + 24), 3, 2),
        (lambda: torch.cat([x, rows]), 80 + 24 + 104, 0, 1),
        (lambda: x.sum(), 80 + 1, 0, 1),
        (lambda: bool(x[0, 0] > 0), 0, 0, 2),  # compared, 4 bytes to 1, and read
    ],
)
def test_bytes_and_kernels_of_operations(run, floats, indices, kernels):
    bools = 4 + 1 + 1 if floats == 0 else 0
    assert counted(run) == (0, 4 * floats + 8 * indices + bools, kernels)


@pytest.mark.parametrize(
    'run',
    [
        lambda: x.view(8, 10),
        lambda: x.t(),
        lambda: x[2:5, ::2],
        lambda: x.expand(4, 10, 8),
        lambda: x.reshape(80),
        lambda: x.unbind(),
        lambda: x.detach(),
        lambda: x.to(torch.float32),
        lambda: torch.empty(5),
        lambda: torch.empty_like(x),
        lambda: torch.ops.aten._unsafe_view(x, (80,)),
    ],
)
def test_who_looks_at_memory_in_another_way_moves_nothing(run):
    assert counted(run) == (0, 0, 0)


def test_a_linear_layer_forward_and_backward():
    layer = nn.Linear(8, 16)
    images, grad = torch.randn(10, 8), torch.randn(10, 16)
    forward = 80 + 128 + 16 + 160
    weight_gradient = 160 + 80 + 128
    bias_gradient = 160 + 16
    operations = 2 * (2 * 10 * 8 * 16)
    counts = counted(lambda: layer(images).backward(grad))
    assert counts == (operations, 4 * (forward + weight_gradient + bias_gradient), 3)


def test_a_convolution_forward_and_backward():
    layer = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    images, grad = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(2, 4, 6, 6)
    num_images, num_weights, num_results = 2 * 3 * 36, 4 * 3 * 9, 2 * 4 * 36
    forward = num_images + num_weights + num_results
    backward = num_results + num_images + num_weights + (num_images + num_weights)
    operations = 3 * (2 * num_results * 3 * 9)
    assert counted(lambda: layer(images).backward(grad)) == (operations, 4 * (forward + backward), 2)


def test_operations_of_a_convolutional_network_are_those_that_pytorch_counts():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.Conv2d(8, 4, 3, groups=2))
    images = torch.randn(2, 3, 9, 9)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    assert counted(lambda: model(images).sum().backward())[0] == counter.get_total_flops() > 0


def test_attention_on_a_cpu_has_two_matrix_products():
    queries, keys, features = (torch.randn(2, 3, 20, 16) for _ in range(3))
    operations, _, kernels = counted(lambda: nn.functional.scaled_dot_product_attention(queries, keys, features))
    assert (operations, kernels) == (2 * (2 * 2 * 3 * 20 * 20 * 16), 1)


def gather_and_go_back():
    values[kept].backward(rows)
    values.grad = None


def test_a_gradient_is_scattered_in_place():
    assert counted(gather_and_go_back) == (0, 4 * (24 + 24 + 80 + 24 + 24 + 24) + 8 * (3 + 3), 3)
    # as without the counter, under which autograd would rather have it copied
    with torch.profiler.profile() as profile:
        gather_and_go_back()
    names = {event.key for event in profile.key_averages()}
    assert 'aten::_index_put_impl_' in names and not names & {'aten::clone', 'aten::copy_'}


def test_saved_bytes_are_those_of_the_activations():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000))

        def forward(self, x):
            return (x * self.weight).square()  # keeps x for the weight, and the product for the square

    model = Square()
    with kept_storages(model) as sizes:
        model(torch.randn(3, 1000, requires_grad=True))  # for whose gradient the weight is kept, too
    assert sum(sizes.values()) == 2 * 3 * 1000 * 4
