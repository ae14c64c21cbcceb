"""Stochastic depth on two gloo ranks, which timm's train.py seeds differently."""

import copy
import itertools
import random

import pytest
import timm
import torch
import torch.distributed as dist
from distributed import run_ranks
from networks import randomize
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import timm_stochdepth as ts

NUM_STEPS = 6


MODES = [('sample', True), ('sample, skip_dropped', True), ('block', True), ('block', False)]


def create(method, same_seed, rate=0.5):
    """A small ResNet, with the same weights on all ranks."""
    torch.manual_seed(0)
    model = randomize(timm.models.ResNet(timm.models.resnet.Bottleneck, (2, 2, 1, 1), num_classes=10))
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


def local_gradients(model, x, target):
    """Gradients of a copy that knows nothing of other ranks' gradients, with the draws that model will take."""
    local = copy.deepcopy(model)
    state = torch.get_rng_state()
    torch.nn.functional.cross_entropy(local(x), target).backward()
    torch.set_rng_state(state)
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
        if step % 2:  # accumulate two gradients, as timm's --grad-accum-steps does
            with ddp.no_sync():
                first = local_gradients(model, x, target)
                torch.nn.functional.cross_entropy(ddp(x), target).backward()
            x, target = batch(method)
        else:
            first = [0.0] * len(list(model.parameters()))
        second = local_gradients(model, x, target)
        expected = gathered_mean([a + b for a, b in zip(first, second)])
        torch.nn.functional.cross_entropy(ddp(x), target).backward()
        errors += [(p.grad - e).abs().max().item() for p, e in zip(model.parameters(), expected)]
        optimizer.step()
    return {
        'kept': [kept[i] for i in range(len(kept))],
        'parameters': [p.detach() for p in model.parameters()],
        'error': max(errors),
    }


@pytest.mark.parametrize('method, same_seed', MODES)
def test_ddp_without_find_unused_parameters(method, same_seed):
    first, second = run_ranks(train_ddp, method, same_seed)
    assert all(torch.equal(p, q) for p, q in zip(first['parameters'], second['parameters']))
    assert first['error'] < 1e-6 and second['error'] < 1e-6
    if method == 'block':
        assert (first['kept'] == second['kept']) == same_seed
        assert len({tuple(names) for names in first['kept']}) > 1


def kept_of_seeds(rank, seeds):
    patterns = []
    for seed in seeds:
        model = create('block', True)
        seed_as_timm(seed, rank)
        if patterns:
            # a second run in one process: the group is asked for its seed anew
            ts.shared_draws._seed_of_run = None
        kept = record_kept(model)
        for _ in range(NUM_STEPS):
            model(torch.randn(2, 3, 32, 32))
        patterns.append(list(kept))
    return patterns


def test_the_seed_of_rank_0_decides():
    first, second = run_ranks(kept_of_seeds, (1, 2, 1))
    assert first == second
    assert first[0] == first[2] and first[0] != first[1]


def frequencies(rank, num_draws):
    seed_as_timm(3, rank)
    draws = [ts.shared_draws.SharedDraws(i) for i in range(3)]
    return torch.tensor([[d.draw_keep_block(0.3) for d in draws] for _ in range(num_draws)], dtype=torch.float64)


def test_shared_draws_have_the_right_frequency_and_are_independent():
    num_draws = 3000
    first, second = run_ranks(frequencies, num_draws)
    assert torch.equal(first, second)
    assert ((first.mean(0) - 0.7).abs() <= 5 * (0.21 / num_draws) ** 0.5).all()
    lagged = torch.cat([first[1:], first[:-1]], dim=1)
    correlation = torch.corrcoef(lagged.T) - torch.eye(6)
    assert correlation.abs().max() <= 5 / (num_draws - 1) ** 0.5


def checkpointed_gradients(rank, method, same_seed):
    model = create(method, same_seed)
    seed_as_timm(5, rank)
    x = torch.randn(4, 3, 32, 32)
    blocks = torch.nn.Sequential(*itertools.chain(*[getattr(model, f'layer{i}') for i in range(1, 5)]))
    features = model.maxpool(model.act1(model.bn1(model.conv1(x)))).detach()
    gradients = []
    for use_reentrant in (None, True, False):
        copied = copy.deepcopy(blocks)
        torch.manual_seed(7 + rank)
        losses = []
        for _ in range(3):  # several forward passes before their backward pass
            x_in = features.clone().requires_grad_()
            if use_reentrant is None:
                y = copied(x_in)
            else:
                y = checkpoint_sequential(copied, 3, x_in, use_reentrant=use_reentrant)
            losses.append(y.square().sum())
        random.Random(rank).shuffle(losses)
        for loss in losses:
            loss.backward()
        gradients.append([p.grad for p in copied.parameters()])
    plain, *others = gradients
    return max((g - p).abs().max().item() for other in others for g, p in zip(other, plain)), max(
        p.abs().max().item() for p in plain
    )


@pytest.mark.parametrize('method, same_seed', MODES)
def test_recomputation_takes_the_decision_of_the_first_pass(method, same_seed):
    for difference, largest in run_ranks(checkpointed_gradients, method, same_seed):
        assert difference <= 1e-4 * largest


def recompute_without_generator(rank):
    model = create('block', True)
    blocks = torch.nn.Sequential(*model.layer1)
    x = torch.randn(2, 64, 8, 8, requires_grad=True)
    y = checkpoint(blocks, x, use_reentrant=False, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match='preserve_rng_state=True'):
        y.sum().backward()


def test_a_recomputation_that_cannot_repeat_is_refused():
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
    errors = []
    for _ in range(4):
        model.zero_grad()
        x, target = batch(method)
        expected = gathered_mean(local_gradients(reference, x, target))
        for (_, ours), (_, theirs) in zip(model.named_modules(), reference.named_modules()):
            if isinstance(theirs, ts.StochasticBlock):  # the reference went through no forward pass of its own
                theirs.drop_path.shared_draws.num_draws = ours.drop_path.shared_draws.num_draws + 1
        torch.nn.functional.cross_entropy(model(x), target).backward()
        for p, e in zip(model.parameters(), expected):
            errors.append((p.grad.full_tensor() - e).abs().max().item() / max(e.abs().max().item(), 1e-3))
    return max(errors)


@pytest.mark.parametrize('method, same_seed', MODES)
def test_fsdp2(method, same_seed):
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
def test_sync_batch_norm_with_different_draws_is_refused_and_does_not_hang(method, message):
    run_ranks(sync_batch_norm, method, message)
