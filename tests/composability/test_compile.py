"""torch.compile: one graph in sample mode; in block mode a graph for each block shape, and a branch really skipped."""

import copy
import logging

import pytest
import timm
import torch
import torch._inductor.config
from draws_of import note_draws
from networks import images, randomize
from torch._dynamo.testing import CompileCounterWithBackend
from torch.profiler import ProfilerActivity, profile

import timm_stochdepth as ts

pytestmark = pytest.mark.usefixtures('fresh_compiler')


def small_network(method, drop_rate=0.5, **kwargs):
    model = randomize(
        timm.models.ResNet(timm.models.resnet.Bottleneck, (2, 1, 1, 1), num_classes=10, channels=(8, 8, 16, 16))
    )
    ts.apply_stochastic_depth(model, method, 'ResNetBottleneck', drop_rate, 'uniform', **kwargs)
    return model


def train_losses(model, run, num_steps, progress=False):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.manual_seed(1)
    losses = []
    for step in range(num_steps):
        if progress:
            ts.set_training_progress(model, step / num_steps)
        x, target = images(4, 32).double(), torch.randint(10, (4,))
        loss = torch.nn.functional.cross_entropy(run(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    'method, backend, scale_by_keep',
    [
        ('sample', 'aot_eager', True),
        ('block', 'aot_eager', True),
        pytest.param('block', 'inductor', False, marks=pytest.mark.long),
        pytest.param('sample', 'inductor', False, marks=pytest.mark.families),
    ],
)
def test_compiled_losses_equal_eager_losses(method, backend, scale_by_keep):
    # in double precision, since training magnifies the rounding of single precision
    model = small_network(method, scale_by_keep=scale_by_keep).double()
    eager = copy.deepcopy(model)
    # inductor's own random numbers are others than eager's: with the same, the decisions are the same
    with torch._inductor.config.patch(fallback_random=True):
        compiled = torch.compile(model, backend=backend, fullgraph=method == 'sample')
        losses = train_losses(model, compiled, 6)
    assert losses == pytest.approx(train_losses(eager, eager, 6), rel=1e-6)
    for (name, p), q in zip(model.state_dict().items(), eager.state_dict().values()):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6, msg=name)


def test_between_blocks_that_skip_samples_the_rest_is_compiled():
    model = small_network('sample', skip_dropped=True).double()
    eager = copy.deepcopy(model)
    counter = CompileCounterWithBackend('aot_eager')
    losses = train_losses(model, torch.compile(model, backend=counter), 8)
    assert losses == pytest.approx(train_losses(eager, eager, 8), rel=1e-6)
    # the stem and the head; the numbers of kept samples compile nothing
    assert counter.frame_count == 2


@pytest.mark.long
@pytest.mark.parametrize('scale_by_keep', [False, True])
def test_sample_mode_is_one_graph_through_a_whole_warmup(scale_by_keep):
    model = small_network('sample', drop_warmup=1.0, scale_by_keep=scale_by_keep)
    ts.start_warmup(model)
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(6):
        ts.set_training_progress(model, step / 6)
        model.train()
        compiled(images(4, 32)).sum().backward()
        model.eval()
        with torch.no_grad():
            x = images(4, 32)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 2  # one for training, one for inference


@pytest.mark.long
@pytest.mark.parametrize('scale_by_keep', [False, True])
@pytest.mark.parametrize('first_rate', [0.5, 0.0])
def test_many_rates_compile_no_more_graphs_than_two(first_rate, scale_by_keep):
    def count_graphs(rates):
        torch._dynamo.reset()
        model = small_network('sample', first_rate, scale_by_keep=scale_by_keep)
        counter = CompileCounterWithBackend('aot_eager')
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for rate in (first_rate, *rates):
            ts.set_drop_rate(model, rate)
            compiled(images(4, 32)).sum().backward()
        return counter.frame_count

    rates = [0.0, *(rate / 11 for rate in range(12))]  # more than torch compiles one function for
    assert count_graphs(rates) == count_graphs(rates[4:5]) <= 2


@pytest.mark.long
@pytest.mark.parametrize('first_rate', [0.8, 0.0])
@pytest.mark.filterwarnings('ignore:drop_rate is 0')
def test_a_compiled_network_follows_the_rate(first_rate):
    block = torch.nn.Sequential(timm.models.resnet.Bottleneck(16, 4))
    ts.apply_stochastic_depth(randomize(block), 'sample', 'ResNetBottleneck', first_rate, 'uniform')
    compiled = torch.compile(block, backend='inductor', fullgraph=True)
    for step, rate in enumerate((first_rate, 0.2, 0.0, 0.5, 1.0)):
        if step:
            ts.set_drop_rate(block, rate)
        x = torch.rand(4000, 16, 2, 2)
        with torch.no_grad():
            frequency = (compiled(x) == x).flatten(1).all(1).double().mean().item()
            assert abs(frequency - rate) <= 5 * (rate * (1 - rate) / 4000) ** 0.5
            compiled.eval()
            torch.testing.assert_close(compiled(x), block(x), rtol=1e-4, atol=1e-4)
            compiled.train()


@pytest.mark.long
def test_compiled_warmup_draws_at_the_rate_in_force():
    block = torch.nn.Sequential(timm.models.resnet.Bottleneck(16, 4))
    ts.apply_stochastic_depth(randomize(block), 'sample', 'ResNetBottleneck', 0.8, 'uniform', drop_warmup=1.0)
    compiled = torch.compile(block, backend='inductor', fullgraph=True)
    for progress in (0.0, 0.25, 0.5, 1.0):
        ts.set_training_progress(block, progress)
        x = torch.rand(4000, 16, 2, 2)
        with torch.no_grad():
            frequency = (compiled(x) == x).flatten(1).all(1).double().mean().item()
        rate = 0.8 * progress
        assert abs(frequency - rate) <= 5 * (rate * (1 - rate) / 4000) ** 0.5


def count_convolutions(run, x):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run(x)
    return sum(e.count for e in profiler.key_averages() if e.key == 'aten::convolution')


def test_a_compiled_branch_is_really_skipped():
    model = small_network('block')
    compiled = torch.compile(model, backend='aot_eager')  # whose convolutions the profiler sees
    plain_count = count_convolutions(lambda x: ts.fold_stochastic_depth(model).train()(x), images(4, 32))
    kept = note_draws(model)
    for _ in range(6):  # compile first, which runs convolutions of its own
        compiled(images(4, 32))
    counts = set()
    for _ in range(10):
        kept.clear()
        tracked = [m.num_batches_tracked.item() for m in model.modules() if hasattr(m, 'num_batches_tracked')]
        counts.add(count_convolutions(compiled, images(4, 32)))
        num_dropped = kept.count(False)
        assert len(kept) == 5
        after = [m.num_batches_tracked.item() for m in model.modules() if hasattr(m, 'num_batches_tracked')]
        # three norms of a dropped branch do not see the batch
        assert sum(a - t for a, t in zip(after, tracked)) == len(after) - 3 * num_dropped
    assert min(counts) < max(counts) <= plain_count
    assert all((plain_count - c) % 3 == 0 for c in counts)


@pytest.mark.long
def test_resnet50_compiles_a_graph_for_each_block_shape_and_then_no_more():
    model = timm.create_model('resnet50_sd_block', base_width=8, drop_path_rate=0.5)
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(model, backend=counter)
    patterns = []
    frames = []
    for _ in range(40):
        norms = [block.bn3.num_batches_tracked.item() for s in range(1, 5) for block in getattr(model, f'layer{s}')]
        compiled(images(2, 32)).sum().backward()
        after = [block.bn3.num_batches_tracked.item() for s in range(1, 5) for block in getattr(model, f'layer{s}')]
        patterns.append(tuple(a - n for a, n in zip(after, norms)))
        frames.append(counter.frame_count)
    assert len(set(patterns)) > 30  # of more than there may be graphs
    # a first and a further block in each of four stages, the stem and the head
    assert frames[-1] <= 8 + 2
    seen_all_shapes = next(i for i, f in enumerate(frames) if f == frames[-1])
    assert seen_all_shapes < 10


def blocks_of_nine_shapes():
    """One more than torch's limit."""
    blocks = torch.nn.Sequential(*[timm.models.resnet.BasicBlock(4, planes) for planes in [4] * 9])
    for width, block in enumerate(blocks, 4):
        block.conv1, block.bn1 = torch.nn.Conv2d(4, width, 3, padding=1), torch.nn.BatchNorm2d(width)
        block.conv2 = torch.nn.Conv2d(width, 4, 3, padding=1)
    return blocks


def train_on_sizes(blocks, dynamic, rates):
    """What the compiler says of its limit in batches of other sizes and images, and the number of its graphs."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger('torch._dynamo.convert_frame')
    logger.addHandler(handler)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('eager')
    compiled = torch.compile(blocks, backend=counter, dynamic=dynamic)
    try:
        for shape, rate in zip([(8, 4, 6, 6), (8, 4, 6, 6), (5, 4, 6, 6), (8, 4, 9, 9)], rates):
            if rate:
                ts.set_drop_rate(blocks, rate)
            compiled(torch.randn(shape)).sum().backward()
    finally:
        logger.removeHandler(handler)
    return [m for m in messages if 'recompile_limit' in m], counter.frame_count


@pytest.mark.long
@pytest.mark.parametrize(
    'dynamic, scale_by_keep, rates',
    [(None, False, [0] * 4), (False, False, [0] * 4), (None, True, [0.01, 0.02, 0.03, 0.04])],
)
def test_block_shapes_do_not_use_up_the_compilations_of_other_sizes(dynamic, scale_by_keep, rates):
    blocks = blocks_of_nine_shapes()
    _, num_graphs = train_on_sizes(blocks, dynamic, [0] * 4)
    ts.apply_stochastic_depth(blocks, 'block', 'ResNetBasicBlock', 1e-6, 'uniform', scale_by_keep=scale_by_keep)
    messages, num_block_graphs = train_on_sizes(blocks, dynamic, rates)
    assert messages == []
    # a block's own graphs are as many as the plain network's; a scale has one more for rates that move
    assert num_block_graphs <= len(blocks) * (num_graphs + scale_by_keep)


def test_block_shapes_that_skip_eagerly_do_not_reach_the_limit():
    blocks = blocks_of_nine_shapes()
    ts.apply_stochastic_depth(blocks, 'sample', 'ResNetBasicBlock', 0.5, 'uniform', skip_dropped=True)
    messages, _ = train_on_sizes(blocks, None, [0] * 4)
    assert messages == []


def test_sample_mode_is_one_graph_beside_block_mode():
    for method in ('block', 'sample'):
        model = small_network(method)
        torch.compile(model, backend='eager', fullgraph=method == 'sample')(images(4, 32))


@pytest.mark.parametrize(
    'settings',
    [
        dict(stochastic_method='sample'),
        dict(stochastic_method='sample', skip_dropped=True),
        dict(stochastic_method='block'),
    ],
)
def test_the_compiler_is_not_called_any_more_once_the_graphs_are_made(settings):
    """As in plain timm, where `fail_on_recompile` guards long runs (pytorch/pytorch#148896)."""
    model = timm.create_model(
        'vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=3
    )
    ts.apply_stochastic_depth(
        model, target_layer_name='DropPath', drop_rate=0.3, **{'stochastic_method': 'sample', **settings}
    )
    compiled = torch.compile(model, backend='eager')
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    for _ in range(40):
        compiled(x).sum().backward()
    frames = torch._dynamo.utils.counters['frames']['total']
    with torch.compiler.set_stance('fail_on_recompile'):
        for _ in range(200):
            compiled(x).sum().backward()
    assert torch._dynamo.utils.counters['frames']['total'] == frames
