"""One rank of DeepSpeed's engine, stage 3, on CPUs: prints the losses of a ViT whose blocks have stochastic depth."""

import json
import logging
import os
import sys

import timm
import torch

from timm_stochdepth import apply_stochastic_depth


def main(settings):
    import deepspeed

    torch.set_num_threads(1)
    sys.modules['deepspeed.comm.torch'].build_shm_op = lambda: None  # it would be compiled for minutes
    deepspeed.logger.setLevel(logging.ERROR)
    deepspeed.init_distributed('gloo', verbose=False)
    rank = int(os.environ['RANK'])
    torch.manual_seed(0)
    model = timm.create_model(
        'vit_tiny_patch16_224',
        num_classes=3,
        drop_path_rate=0.6,
        img_size=32,
        patch_size=8,
        embed_dim=16,
        depth=4,
        num_heads=2,
    )
    if settings:
        apply_stochastic_depth(model, target_layer_name='DropPath', drop_rate=None, scale_by_keep=True, **settings)
    config = dict(
        train_micro_batch_size_per_gpu=2,
        zero_allow_untested_optimizer=True,
        zero_optimization=dict(stage=3, stage3_param_persistence_threshold=0, overlap_comm=False),
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), config=config)
    torch.manual_seed(100 + rank)
    generator, losses = torch.Generator().manual_seed(rank), []
    for _ in range(8):
        loss = engine(torch.randn(2, 3, 32, 32, generator=generator)).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(round(loss.item(), 5))
    print('losses', rank, losses, flush=True)


if __name__ == '__main__':
    main(json.loads(sys.argv[1]))
