"""Where the tensors of a compiled step are, forward and backward, for a network on another device than the CPU."""

import pytest
import timm
import torch
from functorch.compile import make_boxed_func
from networks import images
from torch._dynamo.backends.common import aot_autograd

import timm_stochdepth as ts


def graphs_of_a_step(settings):
    """Those of a network on the meta device, where nothing can be read; kernels for a GPU need the GPU."""
    graphs = []

    def note(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph)

    with torch.device('meta'):
        model = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=2, num_classes=4)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4, 'uniform', scale_by_keep=True, **settings)
    run = torch.compile(model.train(), backend=aot_autograd(fw_compiler=note, bw_compiler=note), fullgraph=True)
    run(images(8, 32).to('meta')).sum().backward()
    assert len(graphs) == 2
    return graphs


def values_of(graphs):
    for node in (n for graph in graphs for n in graph.graph.nodes):
        value = node.meta.get('val')
        for part in value if isinstance(value, (tuple, list)) else [value]:
            if part is not None:
                yield node, part


LONG = [{}, dict(skip_dropped=True, round_up=True)]


@pytest.mark.parametrize(
    'settings', [dict(skip_dropped=True), *(pytest.param(s, marks=pytest.mark.long) for s in LONG)]
)
def test_on_the_cpu_are_but_the_rates_that_samples_are_drawn_with(settings, fresh_compiler):
    on_cpu = [
        n for n, v in values_of(graphs_of_a_step(settings)) if isinstance(v, torch.Tensor) and v.device.type == 'cpu'
    ]
    assert len(on_cpu) == (4 if settings else 0)
    for node in on_cpu:
        assert node.op == 'placeholder'
        assert {user.target for user in node.users} == {torch.ops.timm_stochdepth.draw_selection.default}


@pytest.mark.parametrize('skip_dropped', [False, True])
def test_with_a_fixed_number_of_samples_a_cuda_graph_can_record_it(skip_dropped, fresh_compiler):
    for _, value in values_of(graphs_of_a_step(dict(skip_dropped=skip_dropped, draw='fixed'))):
        assert isinstance(value, (torch.Tensor, int))  # and no size that is only known in the step
        if isinstance(value, torch.Tensor):
            assert value.device.type == 'meta' and all(isinstance(size, int) for size in value.shape)
