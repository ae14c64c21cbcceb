"""Samples that are skipped in compiled graphs, on ranks that draw each for itself."""

import pytest
import timm
import torch
from torch.nn.parallel import DistributedDataParallel

import timm_stochdepth as ts


def create():
    torch.manual_seed(0)
    model = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=2, embed_dim=96, num_heads=3, num_classes=5)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.7, 'uniform', scale_by_keep=True, skip_dropped=True)
    return model.double()


def train_ddp(rank, wrap):
    model = create()
    if wrap == 'compiled inside':
        network = DistributedDataParallel(torch.compile(model, backend='aot_eager'))
    else:  # in buckets, between which the compiler splits the graph
        network = torch.compile(DistributedDataParallel(model, bucket_cap_mb=1), backend='aot_eager')
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    timm.utils.random_seed(42, rank)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 32, 32, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.long
@pytest.mark.parametrize('wrap', ['compiled inside', 'compiled outside'])
def test_ranks_that_draw_differently_stay_alike_under_ddp(wrap, run_ranks):
    first, second = run_ranks(train_ddp, wrap)
    start = [p.detach() for p in create().parameters()]
    assert all(torch.equal(p, q) for p, q in zip(first, second))
    assert not any(torch.equal(p, q) for p, q in zip(first, start))
