"""Stochastic depth on networks that are sharded over two gloo ranks, before it is applied and after."""

import gc
import warnings
from functools import partial

import pytest
import timm
import torch
from networks import stack
from timm.models.convnext import ConvNeXtBlock
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

import timm_stochdepth as ts
from timm_stochdepth.hub.folder import write_folder
from timm_stochdepth.layers.install import remove_stochastic_depth

# gloo has no reduce_scatter before, which plain networks lack there as well
pytestmark = pytest.mark.skipif(
    torch.__version__ < '2.8', reason='FSDP2 does not train on the CPU up to torch 2.7, plain networks neither'
)

MODES = {
    'same': dict(stochastic_method='block'),
    'different': dict(stochastic_method='block', use_same_gpu_seed=False),
    'skipped': dict(stochastic_method='sample', skip_dropped=True),
}
NUM_STEPS = 3


def create(family='timm_basic'):
    torch.manual_seed(0)
    if family == 'convnext':  # with a parameter of its own, which FSDP sets anew in each pass
        return nn.Sequential(*[ConvNeXtBlock(16, ls_init_value=0.5) for _ in range(4)]), 'convnext.ConvNeXtBlock'
    return stack(family, 4)


def apply(model, target_layer_name, mode, rate=0.5):
    ts.apply_stochastic_depth(
        model, target_layer_name=target_layer_name, drop_rate=rate, drop_distribution='uniform', **MODES[mode]
    )


def shard(model, whole=True, blocks=True):
    mesh = init_device_mesh('cpu', (2,))
    for block in list(model.children()) if blocks else ():
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh) if whole else model


def replicated(model, target_layer_name, mode):
    apply(model, target_layer_name, mode)
    return DistributedDataParallel(model)


def sharded(model, target_layer_name, mode):
    apply(model, target_layer_name, mode)
    return shard(model)


def applied_after(model, target_layer_name, mode, **kwargs):
    model = shard(model, **kwargs)
    apply(model, target_layer_name, mode)
    return model


def applied_again(model, target_layer_name, mode):
    apply(model, target_layer_name, mode, rate=0.1)
    model = shard(model)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', 'The network has been trained')  # its weights are random
        apply(model, target_layer_name, mode)
    return model


def by_fsdp1(model, target_layer_name, mode, use_orig_params):
    apply(model, target_layer_name, mode)
    policy = ModuleWrapPolicy({type(model[0])})
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=use_orig_params, device_id=torch.device('cpu')
    )


def losses_of(rank, wrap, family, mode, is_checkpointed=False):
    gc.collect()  # the network before is gone, so that this one has its draws
    model = wrap(*create(family), mode)
    if is_checkpointed:
        is_block = lambda module: isinstance(module, ts.StochasticBlock)  # noqa: E731
        apply_activation_checkpointing(model, check_fn=is_block)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(5 + rank)
    losses = []
    for _ in range(NUM_STEPS):
        loss = model(torch.randn(3, 16, 4, 4)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def train_sharded(rank, family, mode):
    wraps = dict(sharded=sharded, after=applied_after, again=applied_again)
    wraps['parts after'] = partial(applied_after, whole=False)
    wraps['whole after'] = partial(applied_after, blocks=False)
    wraps['FSDP1'] = partial(by_fsdp1, use_orig_params=True)
    wraps['FSDP1, flat'] = partial(by_fsdp1, use_orig_params=False)
    if mode == 'skipped':  # its draws are those of a reference that is checkpointed, too
        wraps = dict(list(wraps.items())[:3])
    if family == 'convnext':
        del wraps['parts after'], wraps['FSDP1'], wraps['FSDP1, flat']
    reference = losses_of(rank, replicated, family, mode)
    losses = {name: losses_of(rank, wrap, family, mode) for name, wrap in wraps.items()}
    losses['checkpointed'] = losses_of(rank, sharded, family, mode, is_checkpointed=True)
    return reference, losses


@pytest.mark.parametrize(
    'family, mode',
    [
        ('timm_basic', 'skipped'),
        *(pytest.param('timm_basic', mode, marks=pytest.mark.long) for mode in ('same', 'different')),
        pytest.param('convnext', 'same', marks=pytest.mark.long),
    ],
)
def test_sharded_networks_train_as_replicated_ones(family, mode, run_ranks):
    for reference, losses in run_ranks(train_sharded, family, mode):
        assert len(set(reference)) == NUM_STEPS
        for name, values in losses.items():
            tolerance = 1e-4 if mode == 'skipped' else 1e-6
            if name == 'parts after':  # what is in no unit is not averaged: the first pass alone is the same
                reference_values, values = reference[:1], values[:1]
            else:
                reference_values = reference
            assert values == pytest.approx(reference_values, rel=tolerance), name


def surgery_after_sharding(rank):
    model, target_layer_name = create()
    apply(model, target_layer_name, 'same', rate=0.2)
    shard(model)
    ts.set_drop_rate(model, 0.4)
    assert set(ts.drop_rates(model).values()) == {0.4}
    assert all(isinstance(block, FSDPModule) for block in model)

    # as the docs say: gathered, loaded into an unsharded network, and folded
    gathered = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    for refused in (ts.fold_stochastic_depth, lambda m: write_folder(m, 'nowhere', 'user/model')):
        with pytest.raises(ValueError, match='model must not be sharded .*get_model_state_dict'):
            refused(model)
    x = torch.randn(2, 16, 4, 4)
    y = model.eval()(x)
    if rank == 0:
        unsharded, _ = create()
        apply(unsharded, target_layer_name, 'same', rate=0.4)
        unsharded.load_state_dict(gathered)
        torch.testing.assert_close(ts.fold_stochastic_depth(unsharded).eval()(x), y.detach())

    remove_stochastic_depth(model)
    assert all(isinstance(block, FSDPModule) for block in model)
    plain, _ = create()
    torch.testing.assert_close(model.train()(x), plain.train()(x))

    ts.apply_stochastic_depth(model, 'block', target_layer_name, 0.4, 'uniform', drop_warmup=0.5)
    y = model.eval()(x).detach()
    ts.start_warmup(model)
    assert set(ts.drop_rates(model).values()) == {0.0}
    torch.testing.assert_close(model(x), y)


def test_surgery_after_sharding(run_ranks):
    run_ranks(surgery_after_sharding)


def shard_parts_of_blocks(rank, mode):
    model = timm.create_model('test_vit', img_size=32)
    args = dict(MODES[mode])
    mesh = init_device_mesh('cpu', (2,))
    for block in model.blocks:
        fully_shard(block.mlp, mesh=mesh)
    fully_shard(model, mesh=mesh)
    ts.apply_stochastic_depth(model, target_layer_name='DropPath', drop_rate=0.5, drop_distribution='uniform', **args)
    torch.manual_seed(rank)
    x = torch.randn(2, 3, 32, 32)
    if mode == 'same':  # all ranks leave out the same
        for _ in range(2):
            model(x).square().mean().backward()
        return
    name = 'use_same_gpu_seed must be True' if mode == 'different' else 'skip_dropped must be False'
    with pytest.raises(ValueError, match=f'{name} where a part of a block is sharded .*fully_shard'):
        model(x)


@pytest.mark.parametrize('mode', MODES)
def test_a_unit_within_a_branch_is_shared_or_refused_and_does_not_hang(mode, run_ranks):
    run_ranks(shard_parts_of_blocks, mode)


def tell_of_trained(rank):
    """What is told of a fresh network, and of one that made a step, both sharded before."""
    told = {}
    for name in ('FSDP2', 'FSDP1', 'FSDP1, flat'):
        model = timm.create_model('test_vit', num_classes=2)
        if name == 'FSDP2':
            fully_shard(model, mesh=init_device_mesh('cpu', (2,)))
        else:
            model = FullyShardedDataParallel(model, use_orig_params=name == 'FSDP1', device_id=torch.device('cpu'))
        told[name] = []
        for rate in (0.2, 0.3):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter('always')
                ts.apply_stochastic_depth(model, 'sample', 'DropPath', rate)
            told[name].append([str(w.message)[:28] for w in caught])
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model(torch.randn(2, 3, 160, 160)).sum().backward()
            optimizer.step()
    return told


def test_a_fresh_network_that_is_sharded_is_told_nothing(run_ranks):
    for told in run_ranks(tell_of_trained):
        assert [of_fresh for of_fresh, _ in told.values()] == [[], [], []]
        assert told['FSDP2'][1] == ['The network has been trained']
