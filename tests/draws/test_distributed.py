"""Stochastic depth on two gloo ranks, which timm's train.py seeds differently."""

import copy
import itertools
import random
from contextlib import nullcontext
from itertools import repeat

import pytest
import timm
import torch
import torch.distributed as dist
from draws_of import GivenDecisions, NotedDraws
from networks import randomize
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import timm_stochdepth as ts
from timm_stochdepth.draws.shared import SharedDraws

NUM_STEPS = 6


MODES = [('sample', True), ('sample, skip_dropped', True), ('block', True), ('block', False)]


def create(method, same_seed, rate=0.5, seed=0):
    """A small ResNet, with the same weights on all ranks if it has a seed."""
    if seed is not None:
        torch.manual_seed(seed)
    sizes = dict(layers=(2, 2, 1, 1), channels=(16, 16, 32, 32), num_classes=10)
    model = randomize(timm.models.ResNet(timm.models.resnet.Bottleneck, **sizes))
    args = dict(use_same_gpu_seed=same_seed) if method == 'block' else dict(skip_dropped='skip' in method)
    ts.apply_stochastic_depth(model, method.split(',')[0], 'ResNetBottleneck', rate, 'uniform', **args)
    return model


def seed_as_timm(seed, rank):
    timm.utils.random_seed(seed, rank)


def record_kept(model):
    """Lists, for each forward pass, the blocks whose branch ran."""
    kept = []
    model.register_forward_pre_hook(lambda m, args: kept.append([]))
    for name, block in model.named_modules():
        if isinstance(block, ts.StochasticBlock):
            block.conv1.register_forward_hook(lambda m, args, y, name=name: kept[-1].append(name))
    return kept


def gathered_mean(tensors):
    out = []
    for tensor in tensors:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        out.append(tensor / dist.get_world_size())
    return out


def before_step(model, method, same_seed):
    """The model as it is, without hooks and wrappers, and the state of the generator."""
    rng_state = torch.get_rng_state()
    local = create(method, same_seed)
    local.load_state_dict(model.state_dict())
    torch.set_rng_state(rng_state)
    return local, rng_state


def local_gradients(before, kept, x, target):
    """Gradients of one rank's batch alone, for the blocks that were kept in block mode, or for the same draws."""
    local, rng_state = before
    for name, module in local.named_modules():
        if isinstance(module, ts.StochasticBlock):
            module.drop_path.draws = GivenDecisions(repeat(name in kept))
    with torch.random.fork_rng():
        torch.set_rng_state(rng_state)
        torch.nn.functional.cross_entropy(local(x), target).backward()
    return [p.grad for p in local.parameters()]


def batch(method):
    # a lone value is normalized by the running statistics, which a copy that saw no other batches doesn't have
    size = 48 if 'skip_dropped' in method else 32
    return torch.randn(4, 3, size, size), torch.randint(10, (4,))


def train_ddp(rank, method, same_seed, seed=42):
    model = create(method, same_seed)
    seed_as_timm(seed, rank)
    ddp = DistributedDataParallel(model, broadcast_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    kept = record_kept(model)
    errors = []
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        x, target = batch(method)
        expected = []
        for is_last in (False, True) if step % 2 else (True,):  # accumulate, as timm's --grad-accum-steps does
            before = before_step(model, method, same_seed)
            with nullcontext() if is_last else ddp.no_sync():
                torch.nn.functional.cross_entropy(ddp(x), target).backward()
            expected.append(local_gradients(before, kept[-1], x, target))
            x, target = batch(method)
        expected = gathered_mean([sum(gradients) for gradients in zip(*expected)])
        errors += [(p.grad - e).abs().max().item() for p, e in zip(model.parameters(), expected)]
        optimizer.step()
    return {
        'kept': list(kept),
        'parameters': [p.detach() for p in model.parameters()],
        'error': max(errors),
    }


@pytest.mark.parametrize('method, same_seed', MODES)
def test_ddp_without_find_unused_parameters(method, same_seed, run_ranks):
    first, second = run_ranks(train_ddp, method, same_seed)
    assert all(torch.equal(p, q) for p, q in zip(first['parameters'], second['parameters']))
    assert first['error'] < 1e-6 and second['error'] < 1e-6
    if method == 'block':
        assert (first['kept'] == second['kept']) == same_seed
        assert len({tuple(names) for names in first['kept']}) > 1


def kept_of_seeds(rank, folder, seeds):
    patterns = []
    for seed in seeds:
        dist.destroy_process_group()  # a run of its own
        dist.init_process_group('gloo', init_method=f'file://{folder}/{len(patterns)}', rank=rank, world_size=2)
        seed_as_timm(seed, rank)
        model = None  # the last one is gone: this one is the first of its kind
        model = create('block', True, seed=None)
        dist.barrier()  # as DistributedDataParallel is one: rank 0 has its network, and has said its seed
        kept = record_kept(model)
        for _ in range(NUM_STEPS):
            model(torch.randn(2, 3, 32, 32))
        patterns.append(list(kept))
    return patterns


def test_the_seed_of_rank_0_decides(tmp_path, run_ranks):
    first, second = run_ranks(kept_of_seeds, tmp_path, (1, 2, 1))
    assert first == second
    assert first[0] == first[2] and first[0] != first[1]


def frequencies(rank, num_draws):
    seed_as_timm(3, rank)
    draws = SharedDraws('a network')
    return torch.tensor(
        [[draws.draw_keep_block(place, 0.3) for place in range(3)] for _ in range(num_draws)], dtype=torch.float64
    )


def test_shared_draws_have_the_right_frequency_and_are_independent(run_ranks):
    num_draws = 3000
    first, second = run_ranks(frequencies, num_draws)
    assert torch.equal(first, second)
    assert ((first.mean(0) - 0.7).abs() <= 5 * (0.21 / num_draws) ** 0.5).all()
    lagged = torch.cat([first[1:], first[:-1]], dim=1)
    correlation = torch.corrcoef(lagged.T) - torch.eye(6)
    assert correlation.abs().max() <= 5 / (num_draws - 1) ** 0.5


class FirstDraws(NotedDraws):
    """Notes the draws of first passes, or gives them again."""

    def __init__(self, draws, noted, are_given):
        super().__init__(draws, noted)
        self.are_given = are_given

    def samples(self, *args):
        return self.draws.samples(*args)

    def batch(self, drop_prob):
        if self.are_given:
            return self.noted.pop(0)
        if torch._C._current_graph_task_id() == -1:  # the first pass, and not the one again in the backward pass
            return super().batch(drop_prob)
        return self.draws.batch(drop_prob)


def error_of_checkpointed_gradients(rank, method, same_seed, reseeds):
    model = create(method, same_seed)
    seed_as_timm(5, rank)
    x = torch.randn(4, 3, 32, 32)
    blocks = torch.nn.Sequential(*itertools.chain(*[getattr(model, f'layer{i}') for i in range(1, 5)]))
    features = model.maxpool(model.act1(model.bn1(model.conv1(x)))).detach()

    def gradients_of_run(use_reentrant, decisions, are_given=False):
        copied = copy.deepcopy(blocks)
        for module in copied.modules():
            if isinstance(module, ts.StochasticBlock):
                module.drop_path.draws = FirstDraws(module.drop_path.draws, decisions, are_given)
        torch.manual_seed(7 + rank)
        losses = []
        for _ in range(3):  # several forward passes before their backward pass
            if reseeds:
                torch.manual_seed(3)
            x_in = features.clone().requires_grad_()
            y = copied(x_in) if are_given else checkpoint_sequential(copied, 3, x_in, use_reentrant=use_reentrant)
            losses.append(y.square().sum())
        if reseeds:  # autograd goes back from the last of them
            losses = [sum(losses)]
        random.Random(rank).shuffle(losses)
        for loss in losses:
            loss.backward()
        return [p.grad for p in copied.parameters()]

    errors = []
    for use_reentrant in (True, False):
        decisions = []
        gradients = gradients_of_run(use_reentrant, decisions)
        assert ('block' not in method) == (len(set(decisions)) == 0)
        reference = gradients_of_run(use_reentrant, decisions, are_given=True)
        largest = max(p.abs().max().item() for p in reference)
        errors.append(max((g - p).abs().max().item() for g, p in zip(gradients, reference)) / largest)
    return max(errors)


@pytest.mark.parametrize('method, same_seed', MODES)
def test_recomputation_takes_the_decision_of_the_first_pass(method, same_seed, run_ranks):
    assert max(run_ranks(error_of_checkpointed_gradients, method, same_seed, False)) <= 1e-4


def test_recomputation_of_passes_that_start_from_one_seed(run_ranks):
    assert max(run_ranks(error_of_checkpointed_gradients, 'block', True, True)) <= 1e-4


def recompute_without_generator(rank):
    model = create('block', True)
    blocks = torch.nn.Sequential(*model.layer1)
    x = torch.randn(2, 64, 8, 8, requires_grad=True)
    y = checkpoint(blocks, x, use_reentrant=False, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match='preserve_rng_state=True'):
        y.sum().backward()


def test_a_recomputation_that_cannot_repeat_is_refused(run_ranks):
    run_ranks(recompute_without_generator)


def train_fsdp(rank, method, same_seed):
    reference = create(method, same_seed)
    model = copy.deepcopy(reference)
    mesh = init_device_mesh('cpu', (2,))
    for block in model.modules():
        if isinstance(block, ts.StochasticBlock):
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    seed_as_timm(42, rank)
    kept = record_kept(model)
    errors = []
    for _ in range(4):
        model.zero_grad()
        x, target = batch(method)
        before = before_step(reference, method, same_seed)
        torch.nn.functional.cross_entropy(model(x), target).backward()
        expected = gathered_mean(local_gradients(before, kept[-1], x, target))
        for p, e in zip(model.parameters(), expected):
            errors.append((p.grad.full_tensor() - e).abs().max().item() / max(e.abs().max().item(), 1e-3))
    return max(errors)


@pytest.mark.skipif(
    torch.__version__ < '2.8', reason='FSDP2 does not train on the CPU up to torch 2.7, plain ones neither'
)
@pytest.mark.parametrize('method, same_seed', MODES)
def test_fsdp2(method, same_seed, run_ranks):
    assert max(run_ranks(train_fsdp, method, same_seed)) < 1e-3


def sync_batch_norm(rank, method, message):
    model = timm.layers.convert_sync_batchnorm(create(method, False))
    with pytest.raises(ValueError, match=message):
        model.layer1(torch.randn(2, 64, 8, 8))


@pytest.mark.parametrize(
    'method, message',
    [
        ('block', 'use_same_gpu_seed must be True with SyncBatchNorm, but got False'),
        ('sample, skip_dropped', 'skip_dropped must be False with SyncBatchNorm, but got True'),
    ],
)
def test_sync_batch_norm_with_different_draws_is_refused_and_does_not_hang(method, message, run_ranks):
    run_ranks(sync_batch_norm, method, message)
