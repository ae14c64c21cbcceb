"""Run by Composer's launcher in `test_ranks.py`: trains on each rank, and writes what came out."""

import gc
import sys
from pathlib import Path

import pytest

pytest.importorskip('composer.trainer')

import torch
from composer.models import ComposerClassifier
from composer.utils import dist
from composer_runs import BATCH_SIZE, DROP_RATE, SEED, data, network, seed_all, sgd, stochastic_depth, trainer, weights
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import timm_stochdepth as ts

NUM_UPDATES = 8
SAVED_AT = 3
SETTINGS = dict(
    sample=dict(method='sample'),
    same=dict(method='block', use_same_gpu_seed=True),
    different=dict(method='block', use_same_gpu_seed=False),
)


def loader_of_rank():
    return DataLoader(data(), BATCH_SIZE // 2, sampler=dist.get_sampler(data(), shuffle=False))


def watch_blocks(model):
    """A list that grows by the names of the blocks whose branch runs while the model trains."""
    ran = []
    for name, module in model.named_modules():
        block = name.rpartition('module.')[2]
        if block.endswith('.conv3'):
            module.register_forward_hook(lambda conv, x, y, block=block: ran.append(block) if conv.training else None)
    return ran


def by_composer(name, **kwargs):
    made = trainer([stochastic_depth(**SETTINGS[name])], train_dataloader=loader_of_rank(), **kwargs)
    ran = watch_blocks(made.state.model)
    made.fit()
    made.close()
    return weights(made.state.model), ran


def by_hand(name):
    model = ComposerClassifier(network(), num_classes=10)  # shared draws know networks by the names of their blocks
    settings = dict(SETTINGS[name])
    ts.apply_stochastic_depth(model, settings.pop('method'), 'ResNetBottleneck', DROP_RATE, drop_warmup=0.5, **settings)
    ts.set_training_progress(model, 0.0)
    optimizer = sgd(model)
    ran = watch_blocks(model)
    seed_all(SEED + dist.get_global_rank())
    ddp = DistributedDataParallel(model)
    ddp.train()
    update = 0
    while update < NUM_UPDATES:
        for x, y in loader_of_rank():
            ts.set_training_progress(model, update / NUM_UPDATES)
            optimizer.zero_grad()
            cross_entropy(ddp((x, y)), y).backward()
            optimizer.step()
            update += 1
    return weights(model), ran


def main(task, folder):
    dist.initialize_dist('cpu')
    results = {}
    for name in SETTINGS:
        checkpoints = Path(folder) / name
        if task == 'train':
            results[f'by hand, {name}'] = by_hand(name)
            gc.collect()  # equal networks of one process draw apart
            saved = dict(save_folder=str(checkpoints), save_interval=f'{SAVED_AT}ba')
            results[f'by Composer, {name}'] = by_composer(name, **saved)
        else:
            path = str(checkpoints / f'ep0-ba{SAVED_AT}-rank0.pt')
            results[f'resumed, {name}'] = by_composer(name, load_path=path)
    torch.save(results, f'{folder}/{task}-{dist.get_global_rank()}.pt')


if __name__ == '__main__':
    main(*sys.argv[1:])
