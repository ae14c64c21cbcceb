import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from timm_stochdepth.bench.counters import StepCounter
from timm_stochdepth.draws import bernoulli
from timm_stochdepth.residual import mask


@pytest.mark.parametrize('drop_prob', [0.0, 0.1, 0.5, 0.9, 1.0])
def test_sample_draws_have_the_right_frequency(drop_prob):
    num_draws = 40_000
    keep_N = bernoulli.draw_keep_samples(torch.empty(num_draws, 1, 1, 1), drop_prob)
    assert set(keep_N.tolist()) <= {0.0, 1.0}
    # five standard deviations of the mean of independent Bernoulli variables
    bound = 5 * math.sqrt(drop_prob * (1 - drop_prob) / num_draws)
    assert abs(keep_N.mean().item() - (1 - drop_prob)) <= bound


@pytest.mark.parametrize('drop_prob', [0.0, 0.1, 0.5, 0.9, 1.0])
def test_block_draws_have_the_right_frequency(drop_prob):
    num_draws = 10_000
    frequency = sum(bernoulli.draw_keep_block(drop_prob) for _ in range(num_draws)) / num_draws
    assert abs(frequency - (1 - drop_prob)) <= 5 * math.sqrt(drop_prob * (1 - drop_prob) / num_draws)


def test_scale_by_keep_divides_what_is_kept():
    keep_N = bernoulli.draw_keep_samples(torch.empty(1000, 2), 0.2, scale_by_keep=True)
    assert set(keep_N.tolist()) == {0.0, torch.tensor(1 / 0.8).item()}


def test_scale_by_keep_at_rate_one_drops_all_and_divides_by_nothing():
    assert bernoulli.draw_keep_samples(torch.empty(100, 2), 1.0, scale_by_keep=True).tolist() == [0.0] * 100


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_draws_follow_the_dtype(dtype):
    assert bernoulli.draw_keep_samples(torch.empty(3, 2, dtype=dtype), 0.5).dtype == dtype


def test_additions_equal_their_formula():
    shortcut, branch = torch.randn(2, 5, 3, 4, 4).unbind(0)
    keep_N = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(mask.add_branch(shortcut, branch, 0.7), shortcut + 0.7 * branch)
    torch.testing.assert_close(
        mask.add_masked_branch(shortcut, branch.clone(), keep_N), shortcut + keep_N[:, None, None, None] * branch
    )


def test_a_masked_sum_of_two_types_moves_the_bytes_of_the_plain_sum():
    x, y = torch.randn(5, 1000), torch.randn(5, 1000).bfloat16()

    def bytes_of(add):
        shortcut, branch = x.clone().requires_grad_(), y.clone().requires_grad_()
        with StepCounter() as counter:
            add(shortcut, branch).backward(torch.ones(5, 1000))
        return sum(counts.bytes for counts in counter.by_op.values())

    keep_N = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    masked = bytes_of(lambda shortcut, branch: mask.add_masked_branch(shortcut, branch, keep_N, inplace_add=False))
    # but for the mask itself
    assert masked == pytest.approx(bytes_of(torch.add), rel=0.01)


@pytest.mark.parametrize('inplace_add', [False, True])
def test_masked_addition_needs_no_values(inplace_add):
    """As where FakeTensorMode counts what a step would take."""
    with FakeTensorMode():
        x, y = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
        keep_N = bernoulli.draw_keep_samples(x, 0.5)
        mask.add_masked_branch(x, y * 1, keep_N, inplace_add).sum().backward()
    assert x.grad.shape == y.grad.shape == (3, 2)


def test_masked_addition_keeps_channels_last():
    shortcut, branch = (t.to(memory_format=torch.channels_last) for t in torch.randn(2, 5, 3, 4, 4).unbind(0))
    y = mask.add_masked_branch(shortcut, branch, torch.ones(5))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('keep', [[1.0, 0.0, 1.0], [2.0, 2.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.5]])
def test_masked_addition_has_the_derivatives_of_its_formula(keep, memory_format):
    shortcut, branch = (
        t.to(memory_format=memory_format).requires_grad_()
        for t in torch.randn(2, 3, 2, 2, 2, dtype=torch.float64).unbind(0)
    )
    keep_N = torch.tensor(keep, dtype=torch.float64)

    def add(shortcut, branch):
        return mask.add_masked_branch(shortcut, branch * 1.0, keep_N)

    assert torch.autograd.gradcheck(add, (shortcut, branch))
    assert torch.autograd.gradgradcheck(add, (shortcut, branch))


def test_masked_addition_takes_the_memory_of_the_branch():
    shortcut, branch = torch.randn(2, 5, 3, requires_grad=True).unbind(0)
    branch = branch * 1.0
    before = shortcut.detach().clone()
    y = mask.add_masked_branch(shortcut, branch, torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]))
    assert y.data_ptr() == branch.data_ptr()
    assert torch.equal(shortcut, before)
    y = mask.add_masked_branch(shortcut, (branch * 1.0).bfloat16(), torch.tensor([0.0] * 5, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16  # as a sum in place of a plain block


def test_inference_takes_the_memory_of_the_branch_unless_gradients_are_asked_for():
    shortcut, branch = torch.randn(2, 5, 3).unbind(0)
    expected = shortcut + 0.7 * branch
    assert mask.add_branch(shortcut, branch, 0.7).data_ptr() != branch.data_ptr()
    with torch.no_grad():
        y = mask.add_branch(shortcut, branch, 0.7)
    assert y.data_ptr() == branch.data_ptr()
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize('branch_is_left', [False, True])
def test_a_plain_sum_has_the_memory_format_of_its_left_operand(branch_is_left):
    shortcut = torch.randn(2, 3, 4, 5)
    branch = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    plain = branch + shortcut if branch_is_left else shortcut + branch
    for inplace_add in (False, True)[: 1 + branch_is_left]:  # what is added in place is on the left
        y = mask.add_plain_branch(shortcut, branch.clone(), inplace_add, branch_is_left)
        assert torch.equal(y, plain) and y.stride() == plain.stride()
