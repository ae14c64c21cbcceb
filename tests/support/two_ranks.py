"""Two processes of torchrun: trainers against plain DDP, in block mode with the same and with different draws."""

from functools import partial

import loops
import torch
import torch.distributed as dist
from accelerate import Accelerator
from test_lightning import Classifier, create_trainer
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from timm_stochdepth import set_training_progress, start_warmup


def batches():
    """Of this rank."""
    num = loops.NUM_BATCHES * loops.BATCH_SIZE
    return DataLoader(Subset(loops.samples(), range(dist.get_rank(), num, 2)), batch_size=loops.BATCH_SIZE // 2)


def create_network(**kwargs):
    model = loops.network('block', **kwargs)
    return model, loops.watch(model, offset=1000 * dist.get_rank())


def in_lightning(tmp_path, **kwargs):
    model, rates = create_network(**kwargs)
    trainer = create_trainer(tmp_path, devices=2, strategy='ddp', use_distributed_sampler=False)
    trainer.fit(Classifier(model), batches())
    assert rates == loops.RATES
    return model


def in_accelerate(**kwargs):
    model, rates = create_network(**kwargs)
    start_warmup(model)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=loops.LR)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    assert isinstance(wrapped, DistributedDataParallel)
    loader = batches()
    for epoch in range(loops.NUM_EPOCHS):
        wrapped.train()
        for i, (images, targets) in enumerate(loader):
            set_training_progress(wrapped, (epoch * loops.NUM_BATCHES + i) / loops.NUM_STEPS)
            optimizer.zero_grad()
            accelerator.backward(cross_entropy(wrapped(images), targets))
            optimizer.step()
    assert rates == loops.RATES
    return model


def what_ran(run, **kwargs):
    """Shapes of the convolutions that were computed on this rank, in turn."""
    shapes = []

    def note(module, args, y):
        if isinstance(module, torch.nn.Conv2d):
            shapes.append(tuple(module.weight.shape))

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    run(**kwargs)
    hook.remove()
    return shapes


def main(tmp_path):
    dist.init_process_group('gloo')
    reference, _ = create_network(use_same_gpu_seed=False)
    start_warmup(reference)
    loops.train(reference, DistributedDataParallel(reference), batches())
    loops.assert_same_state(in_accelerate(use_same_gpu_seed=False), reference)
    loops.assert_same_state(in_lightning(tmp_path, use_same_gpu_seed=False), reference)
    for run in (in_accelerate, partial(in_lightning, tmp_path)):
        ran = [None, None]
        dist.all_gather_object(ran, what_ran(run, use_same_gpu_seed=True))
        assert ran[0] == ran[1]
        dist.all_gather_object(ran, what_ran(run, use_same_gpu_seed=False))
        assert ran[0] != ran[1]
    dist.destroy_process_group()


if __name__ == '__main__':
    main('.')
