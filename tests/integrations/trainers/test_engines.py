"""Engines that change what a parameter is: DeepSpeed's ZeRO-3, opacus, and activations that are DTensors."""

import json
import os
import re
import subprocess
import sys

import pytest
import timm
import torch
from pages import ROOT
from torch import nn

import timm_stochdepth as ts

SIZES = dict(num_classes=3, img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2)
OTHERS = [dict(stochastic_method='sample', skip_dropped=True), dict(stochastic_method='block')]


def losses_in_zero3(settings):
    script = ROOT / 'tests' / 'support' / 'zero3_ranks.py'
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', script]
    environ = {**os.environ, 'DS_ACCELERATOR': 'cpu', 'OMP_NUM_THREADS': '1'}
    result = subprocess.run([*command, json.dumps(settings)], env=environ, text=True, capture_output=True, timeout=120)
    return sorted(re.findall(r'losses .*', result.stdout)), result.stderr


@pytest.mark.trainers
def test_zero3_trains_as_with_timms_drop_path():
    """A rank that keeps no sample of a branch runs it nevertheless: the others wait for its part of the parameters."""
    pytest.importorskip('deepspeed')
    expected, _ = losses_in_zero3({})
    assert len(expected) == 2
    for settings in (dict(stochastic_method='sample'), OTHERS[0]):
        losses, errors = losses_in_zero3(settings)
        assert losses == expected, errors
    losses, errors = losses_in_zero3(OTHERS[1])
    assert len(losses) == 2, errors
    losses, errors = losses_in_zero3({**OTHERS[1], 'use_same_gpu_seed': False})
    assert not losses and 'use_same_gpu_seed must be True with ZeRO-3, but got False' in errors


@pytest.mark.trainers
def test_opacus_has_gradients_of_each_sample_where_branches_are_masked():
    opacus = pytest.importorskip('opacus')
    gradients = []
    for settings in (None, dict(stochastic_method='sample'), *OTHERS):
        torch.manual_seed(0)
        model = timm.create_model('vit_tiny_patch16_224', drop_path_rate=0.5, **SIZES)
        model.cls_token.requires_grad_(False)
        model.pos_embed.requires_grad_(False)
        if settings:
            ts.apply_stochastic_depth(
                model, target_layer_name='DropPath', drop_rate=None, scale_by_keep=True, **settings
            )
        model = opacus.GradSampleModule(model).train()
        torch.manual_seed(1)
        if settings in OTHERS:
            with pytest.raises(ValueError, match=r'(skip_dropped|stochastic_method) must be .* \(opacus\), but got'):
                model(torch.randn(4, 3, 32, 32))
        else:
            model(torch.randn(4, 3, 32, 32)).square().sum().backward()
            gradients.append([p.grad_sample for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients)


@pytest.fixture
def mesh():
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh('cpu', (1,))
    torch.distributed.destroy_process_group()


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), timm.layers.Mlp(8)
        self.drop_path = timm.layers.DropPath(0.5)

    def forward(self, x):
        return x + self.drop_path(self.mlp(self.norm(x)))


def test_samples_that_are_spread_over_ranks_are_not_skipped(mesh):
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    model = nn.Sequential(Mlp(), Mlp())
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, skip_dropped=True)
    distribute_module(model, mesh)
    x = distribute_tensor(torch.randn(6, 5, 8), mesh, [Shard(1)])
    with pytest.raises(ValueError, match='skip_dropped must be False with activations that are DTensors'):
        model(x)
    assert model.eval()(x).full_tensor().shape == x.shape
