"""On a GPU nothing is summed atomically, forward or backward: a sum of rows gathers, and single rows are copied."""

import copy
from functools import partial

import pytest
import timm
import torch
from networks import images, randomize
from operations import Operations
from torch._dynamo.backends.common import aot_autograd

import timm_stochdepth as ts
from timm_stochdepth.draws.bernoulli import Draws
from timm_stochdepth.inspection import drop_paths
from timm_stochdepth.layers.drawn_ahead import select_ahead
from timm_stochdepth.residual.skip_in_graph import (
    add_branch_in_graph,
    draw_in_graph,
    select_input_in_graph,
    split_input_in_graph,
)

SUMMED = {'index_add', 'index_add_', 'index_put', 'index_put_', '_index_put_impl_', 'scatter_add', 'scatter_add_'}
NETWORKS = {'resnet18': {}, 'test_vit': dict(img_size=32), 'gcvit_xxtiny': dict(img_size=32)}


@pytest.mark.parametrize('name', NETWORKS)
def test_in_eager_mode(name):
    model = timm.create_model(name, num_classes=3, **NETWORKS[name])
    plain = copy.deepcopy(model).train()
    settings = ts.Settings('sample', 0.5, 'uniform', skip_dropped=True)
    ts.apply_stochastic_depth(randomize(model).train(), settings=settings, target_layer_name='DropPath')
    for _, drop_path in drop_paths(model):
        drop_path.select = partial(select_ahead, drop_path)
    x = images(6, 32)
    with Operations() as of_plain:
        plain(x).sum().backward()
    for seed in range(2):  # a pass is known when the next one begins
        torch.manual_seed(seed)
        model(x).sum().backward()
    with Operations() as operations:
        model(x).sum().backward()
    assert not (set(operations.names) - set(of_plain.names)) & SUMMED
    assert 'index_select' in operations.names


def test_in_a_graph():
    targets = set()

    def note(graph, inputs):
        targets.update(getattr(node.target, '__name__', '').split('.')[0] for node in graph.graph.nodes)
        return graph.forward

    @torch.compile(backend=aot_autograd(fw_compiler=note, bw_compiler=note), fullgraph=True)
    def block(x, other, keep_prob):
        selection = draw_in_graph(Draws(), keep_prob, 0, 2.0, False, x)
        shortcut, x_K = split_input_in_graph(x, selection)
        return add_branch_in_graph(shortcut, x_K.sin() * select_input_in_graph(other, selection), selection)

    x, other = (torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    block(x, other, torch.tensor([0.5], dtype=torch.float64)).sum().backward()
    assert 'cos' in targets and 'index_select' in targets and not targets & SUMMED
