"""Draws that all ranks share, whatever the ranks do: real groups of processes, which part and meet again."""

import copy
import os
import signal
import time
from itertools import repeat

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from draws_of import GivenDecisions
from networks import stack
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint_sequential

import timm_stochdepth as ts

NUM_BLOCKS = 8


def create(seed=0, rate=0.5):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, target_layer_name = stack('timm_basic', NUM_BLOCKS)
    ts.apply_stochastic_depth(model, 'block', target_layer_name, rate, 'uniform')
    return model


class Run:
    """A training run on one rank, that notes which blocks each step computed."""

    def __init__(self, rank, optimizer=True, group=None, model=None):
        self.rank = rank
        self.model = model or create()
        self.ddp = DistributedDataParallel(self.model, broadcast_buffers=False, process_group=group)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3) if optimizer else None
        self.steps = []

    def counters(self):
        return [int(block.bn2.num_batches_tracked) for block in self.model]

    def train(self, num_steps, forward=None):
        self.model.train()
        for _ in range(num_steps):
            self.step(forward)

    def step(self, forward=None):
        before = self.counters()
        x = torch.randn(2, 16, 4, 4)
        (self.ddp(x) if forward is None else forward(x)).square().mean().backward()
        self.steps.append([after > b for after, b in zip(self.counters(), before)])
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad()


def assert_alike(patterns, num_distinct=2):
    """All ranks dropped the same blocks in each step, and not the same ones in all of them."""
    first, *others = patterns
    assert all(other == first for other in others)
    assert len({tuple(step) for step in first}) >= num_distinct


def look_before_training(rank, with_gradients):
    torch.manual_seed(rank)
    model = create()
    if rank == 0:  # a summary, a count of operations, or a dry run
        with torch.set_grad_enabled(with_gradients):
            for _ in range(3):
                model(torch.randn(2, 16, 4, 4))
    run = Run(rank, model=model)
    run.train(4)
    run.train(4)
    return run.steps


@pytest.mark.parametrize('with_gradients', [False, True])
def test_one_rank_may_run_alone_before(with_gradients, run_ranks):
    patterns = run_ranks(look_before_training, with_gradients)
    # a pass with gradients cannot be told from training, until the optimizer makes a step
    assert_alike([steps[1:] if with_gradients else steps for steps in patterns])


def train_unevenly(rank, num_batches, has_optimizer):
    torch.manual_seed(rank)
    run = Run(rank, optimizer=has_optimizer)
    for _ in range(2):
        run.model.train()
        with run.ddp.join():
            for _ in range(num_batches[rank]):
                run.step()
        run.steps.clear()
    run.train(6)
    return run.steps


@pytest.mark.parametrize('num_batches, has_optimizer', [((3, 5), False), ((4, 2, 5, 2), False), ((3, 5, 4), True)])
def test_ranks_with_different_numbers_of_batches_meet_in_the_next_epoch(num_batches, has_optimizer, run_ranks):
    assert_alike(run_ranks(train_unevenly, num_batches, has_optimizer, world_size=len(num_batches)))


def go_back_alone(rank, is_amid_epoch):
    torch.manual_seed(rank)
    run = Run(rank)
    run.train(4)
    state = copy.deepcopy(run.model.state_dict())
    for _ in range(4):
        run.train(4)
    if rank == 0:
        run.model.load_state_dict(state)
    dist.barrier()
    if is_amid_epoch:
        for _ in range(2):
            run.step()
    run.steps.clear()
    for _ in range(3):
        run.train(4)
    return run.steps


@pytest.mark.parametrize('is_amid_epoch', [False, True])
def test_a_rank_that_is_given_weights_alone_agrees_in_the_next_epoch(is_amid_epoch, run_ranks):
    assert_alike(run_ranks(go_back_alone, is_amid_epoch), num_distinct=6)


def train_within_steps(rank, is_within):
    torch.manual_seed(rank)
    run = Run(rank)

    def begin_epoch(*args):
        run.model.train()

    if is_within:
        run.optimizer.register_step_pre_hook(begin_epoch)
    run.train(8)
    return run.steps


def test_an_epoch_may_begin_between_a_draw_and_its_step(run_ranks):
    within, _ = run_ranks(train_within_steps, True)
    assert [within] * 2 == run_ranks(train_within_steps, False)


def seed_again(rank):
    run = Run(rank, optimizer=False)
    for _ in range(3):
        run.model.train()
        for _ in range(4):
            if rank == 0:
                torch.manual_seed(1234)
            run.step()
    return run.steps


def test_a_rank_may_seed_again(run_ranks):
    first, second = run_ranks(seed_again)
    assert_alike([first, second], num_distinct=8)
    assert first[:4] != first[4:8] != first[8:]


def train_by_another_seed(rank, slow_rank, seed):
    torch.manual_seed(0)
    run = Run(rank)
    torch.manual_seed(seed + rank)
    if rank == slow_rank:
        time.sleep(1)
    run.train(6)
    return run.steps


def test_no_rank_decides_by_its_pace(run_ranks):
    patterns = run_ranks(train_by_another_seed, 0, 100)
    assert_alike(patterns)
    assert run_ranks(train_by_another_seed, 1, 100) == patterns
    assert run_ranks(train_by_another_seed, 1, 200) != patterns


def train_alone_before(rank):
    torch.manual_seed(0)
    run = Run(rank)
    torch.manual_seed(100 + rank)
    if rank == 1:
        optimizer = torch.optim.SGD(run.model.parameters(), lr=0.0)
        for _ in range(2):
            run.model.train()(torch.randn(2, 16, 4, 4)).sum().backward()
            optimizer.step()
        dist.barrier()
    else:
        dist.barrier()
    run.train(4)
    run.train(6)
    return run.steps[4:]


def test_a_rank_that_trained_alone_before_finds_the_seed(run_ranks):
    assert_alike(run_ranks(train_alone_before))


def train_again(rank, *runs):
    for num_steps in runs:
        run = None  # the one before is gone
        torch.manual_seed(rank)
        run = Run(rank)
        for _ in range(3):
            run.train(num_steps)
        dist.barrier()
    return run.steps


def test_a_network_takes_nothing_over_from_one_that_is_gone(run_ranks):
    assert run_ranks(train_again, 6, 4) == run_ranks(train_again, 4)


def num_keys_after_epochs(rank):
    run = Run(rank)
    num_keys = []
    for _ in range(6):
        run.train(1)
        dist.barrier()
        num_keys.append(dist.distributed_c10d._get_default_store().num_keys())
    return num_keys


def test_the_store_does_not_grow_by_epochs(run_ranks):
    for num_keys in run_ranks(num_keys_after_epochs):
        assert num_keys[-1] == num_keys[2]


def train_in_a_fake_group(rank):
    dist.destroy_process_group()
    dist.init_process_group('fake', store=FakeStore(), rank=3, world_size=8)
    run = Run(rank)
    model = copy.deepcopy(run.model)  # without the wrapper, whose reductions are not there
    for _ in range(6):
        model.train()(torch.randn(2, 16, 4, 4)).sum().backward()
        run.optimizer.step()
    model.load_state_dict(model.state_dict())
    return [int(block.bn2.num_batches_tracked) for block in model]


def test_a_dry_run_with_a_fake_group_drops_blocks(run_ranks):
    (counters,) = run_ranks(train_in_a_fake_group, world_size=1)
    assert 0 < sum(counters) < 6 * NUM_BLOCKS


def repeat_passes(rank, grad_modes):
    torch.manual_seed(rank)
    run = Run(rank)
    for _ in range(3):
        run.step()
    run.steps.clear()
    for is_repeated in (True, False):
        state = torch.get_rng_state()
        for mode in grad_modes:
            if is_repeated:
                torch.set_rng_state(state)
            before = run.counters()
            with torch.set_grad_enabled(mode):
                y = run.ddp(torch.randn(2, 16, 4, 4))
            if mode:
                y.sum().backward()
            run.steps.append([after > b for after, b in zip(run.counters(), before)])
        run.optimizer.step()
    return run.steps


@pytest.mark.parametrize('grad_modes', [(False, True), (True, True)], ids=['GradCache', 'SAM'])
def test_a_pass_that_is_repeated_from_the_same_generators_drops_the_same_blocks(grad_modes, run_ranks):
    patterns = run_ranks(repeat_passes, grad_modes)
    assert_alike(patterns, num_distinct=3)
    first, repeated, another, one_more = patterns[0]
    assert first == repeated and another != one_more


def repeat_chunks(rank):
    torch.manual_seed(rank)
    run = Run(rank)
    chunks, patterns = [torch.randn(2, 16, 4, 4) for _ in range(5)], []
    for is_first in (True, False):  # the representations of all chunks, then the gradients of each
        for i, chunk in enumerate(chunks):
            if is_first:
                patterns.append([torch.get_rng_state()])
            with torch.random.fork_rng(enabled=not is_first), torch.set_grad_enabled(not is_first):
                torch.set_rng_state(patterns[i][0])
                before = run.counters()
                y = run.model(chunk)
                patterns[i].append([after > b for after, b in zip(run.counters(), before)])
            if not is_first:
                y.sum().backward()
    return [pattern[1:] for pattern in patterns]


def test_chunks_that_are_run_again_drop_the_same_blocks(run_ranks):
    first, second = run_ranks(repeat_chunks)
    assert first == second and all(before == again for before, again in first)
    assert len({tuple(before) for before, _ in first}) > 1


def seed_in_each_step(rank):
    run = Run(rank)
    for _ in range(8):
        torch.manual_seed(rank)
        run.step()
    return run.steps


def test_a_loop_that_seeds_in_each_step_draws_anew(run_ranks):
    assert_alike(run_ranks(seed_in_each_step), num_distinct=6)


def evaluate_alone(rank, num_evaluations):
    torch.manual_seed(rank)
    run = Run(rank)
    for _ in range(3):
        run.model.train()
        for step in range(12):
            if rank == 0 and step % (12 // num_evaluations) == 3:
                run.model.eval()
                with torch.no_grad():
                    run.model(torch.randn(2, 16, 4, 4))
                run.model.train()
            run.step()
    return run.steps


@pytest.mark.parametrize('num_evaluations', [1, 3])
def test_a_rank_may_evaluate_within_an_epoch(num_evaluations, run_ranks):
    first, second = run_ranks(evaluate_alone, num_evaluations)
    between = 12 // num_evaluations
    # it is in an epoch of its own for one step, until the others' gradients have shown that it is alone
    steps = [i for i in range(36) if i % between != 3 and not (i and i % 12 == 0 and num_evaluations == 3)]
    assert_alike([[pattern[i] for i in steps] for pattern in (first, second)], num_distinct=8)
    assert len({tuple(map(tuple, first[i : i + 12])) for i in (0, 12, 24)}) == 3


def look_within_an_epoch(rank):
    torch.manual_seed(rank)
    run = Run(rank)
    for _ in range(2):
        run.model.train()
        for step in range(9):
            if rank == 0 and step % 3 == 1:  # to log a map of gradients, say
                run.model(torch.randn(2, 16, 4, 4)).sum().backward()
                run.optimizer.zero_grad()
            run.step()
    return run.steps


def test_a_rank_may_run_alone_within_an_epoch(run_ranks):
    patterns = run_ranks(look_within_an_epoch)
    assert_alike([[p for i, p in enumerate(steps) if i % 3 != 1] for steps in patterns], num_distinct=8)


def train_in_a_part_of_the_ranks(rank):
    group = dist.new_group([1, 3])
    torch.manual_seed(rank)
    steps = []
    if rank in (1, 3):
        run = Run(rank, group=group)
        run.train(4)
        run.train(4)
        steps = run.steps
    dist.barrier()
    return steps


def test_a_part_of_the_ranks_may_train(run_ranks):
    patterns = run_ranks(train_in_a_part_of_the_ranks, world_size=4)
    assert_alike([patterns[1], patterns[3]])


def train_alone(rank):
    torch.manual_seed(rank)
    steps = []
    if rank == 1:
        model = create()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(4):
            model.train()
            for _ in range(6):
                before = [int(block.bn2.num_batches_tracked) for block in model]
                model(torch.randn(2, 16, 4, 4)).sum().backward()
                optimizer.step()
                steps.append([int(block.bn2.num_batches_tracked) - b for block, b in zip(model, before)])
    dist.barrier()
    return steps


def test_a_rank_that_trains_alone_draws_anew_in_each_epoch(run_ranks):
    _, steps = run_ranks(train_alone)
    # of 24 patterns of 8 blocks 22.9 are distinct on average, with a deviation of 1.04; 18 if an epoch repeats one
    assert len({tuple(step) for step in steps}) >= 19


def train_two_networks(rank):
    torch.manual_seed(rank)
    if rank == 0:
        create()(torch.randn(2, 16, 4, 4))  # looked at, and gone
    student = create()
    copied = copy.deepcopy(student)
    if rank == 0:
        averaged = AveragedModel(student)
    runs = [Run(rank, model=model) for model in (student, create(seed=1), copied)]
    for _ in range(2):
        for run in runs[:: 1 if rank else -1]:
            run.model.train()
    for _ in range(12):
        for run in runs:
            run.step()
    if rank == 0:
        averaged.update_parameters(student)
    return [run.steps for run in runs]


def test_networks_of_one_process_draw_independently(run_ranks):
    first, second = run_ranks(train_two_networks)
    for network in range(3):
        assert_alike([first[network], second[network]], num_distinct=8)
    # of 12 times 8 decisions of two networks half are equal, if they are independent: 48, with a deviation of 4.9
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        equal = sum(a == b for x, y in zip(first[one], first[other]) for a, b in zip(x, y))
        assert abs(equal - 48) <= 4 * 4.9


def forward_with_checkpoints(run, use_reentrant):
    def forward(x):
        return checkpoint_sequential(run.model, 2, x.requires_grad_(), use_reentrant=use_reentrant)

    return forward


def train_and_be_killed(rank, folder, use_reentrant):
    torch.manual_seed(rank)
    run = Run(rank)
    run.train(3)
    if rank == 0:
        torch.save([run.model.state_dict(), run.optimizer.state_dict()], folder / 'checkpoint.pt')
    dist.barrier()
    if rank == dist.get_world_size() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    run.train(2)


def resume(rank, folder, use_reentrant):
    torch.manual_seed(10 + rank)
    run = Run(rank)
    for loaded, own in zip(torch.load(folder / 'checkpoint.pt'), (run.model, run.optimizer)):
        own.load_state_dict(loaded)
    run.train(4)
    x, state = torch.randn(2, 16, 4, 4), torch.get_rng_state()
    gradients = []
    patterns = []
    for forward in (forward_with_checkpoints(run, use_reentrant), None):
        if forward is None:  # the same once more, with the decisions of the pass before
            for block, decision in zip(run.model, patterns[0]):
                block.drop_path.draws = GivenDecisions(repeat(decision))
        torch.set_rng_state(state)
        before = run.counters()
        (run.model if forward is None else forward)(x).square().mean().backward()
        patterns.append([after > b for after, b in zip(run.counters(), before)])
        gradients.append([p.grad.clone() for p in run.model.parameters()])
        run.optimizer.zero_grad()
    for gradient, reference in zip(*gradients):
        torch.testing.assert_close(gradient, reference)
    return run.steps + patterns[:1]


@pytest.mark.parametrize('world_size, use_reentrant', [(2, True), (4, False)])
def test_a_run_that_was_killed_goes_on_alike(world_size, use_reentrant, tmp_path, run_ranks):
    with pytest.raises(mp.ProcessExitedException, match='SIGKILL'):
        run_ranks(train_and_be_killed, tmp_path, use_reentrant, world_size=world_size)
    assert_alike(run_ranks(resume, tmp_path, use_reentrant, world_size=world_size))
