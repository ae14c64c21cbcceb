"""On a GPU: the draws of timm, what wraps a network there, and ranks that share one."""

import copy

import pytest
import timm
import torch
import torch._inductor.config
from networks import images, randomize, stack
from torch.nn.parallel import DistributedDataParallel

import timm_stochdepth as ts

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'),
    pytest.mark.usefixtures('fresh_compiler'),
]

NETWORKS = {
    'vit_tiny_patch16_224': dict(img_size=32, depth=4, embed_dim=96, num_heads=3),
    'test_convnext': {},
    'resnet26t': {},
}
WITHOUT_BATCH_NORM = ['vit_tiny_patch16_224', 'test_convnext']


def twins(name, skip_dropped, device='cuda'):
    """timm's network of drop_path_rate 0.5, and ours on the GPU with its weights, in double precision."""
    plain = timm.create_model(name, num_classes=5, drop_path_rate=0.5, **NETWORKS[name]).double()
    for p in plain.parameters():
        if p.ndim <= 1:  # LayerScale and last norms that start as zero would hide the branches
            torch.nn.init.uniform_(p, 0.1, 0.5)
    model = copy.deepcopy(plain)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, scale_by_keep=True, skip_dropped=skip_dropped)
    return plain.to(device).train(), model.cuda().train()


def gradients(model, x, run=None, seed=1):
    model.zero_grad()
    torch.manual_seed(seed)
    y = (model if run is None else run)(x)
    y.float().square().mean().backward()
    return [y.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())]


def assert_same(tensors, expected, tolerance=1e-9):
    largest = max(t.abs().max() for t in expected[1:])
    for tensor, reference, scale in zip(tensors, expected, [expected[0].abs().max()] + [largest] * len(expected)):
        assert (tensor.cpu() - reference.cpu()).abs().max() <= tolerance * scale.cpu()


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', NETWORKS)
def test_masking_is_timms_drop_path_on_the_gpu(name, memory_format):
    plain, model = (m.to(memory_format=memory_format) for m in twins(name, skip_dropped=False))
    x = images(6, 32).double().cuda().to(memory_format=memory_format)
    for seed in range(3):
        assert_same(gradients(model, x, seed=seed), gradients(plain, x, seed=seed))


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('name', WITHOUT_BATCH_NORM)
def test_skipping_takes_the_draws_of_timms_drop_path_on_the_cpu(name, compiled):
    plain, model = twins(name, skip_dropped=True, device='cpu')
    x = images(6, 32).double()
    run = torch.compile(model, fullgraph=True) if compiled else model
    # in the order of the forward pass the draws are those of eager mode; rates are in single precision in a graph
    with torch._inductor.config.patch(reorder_for_peak_memory=False, reorder_for_locality=False):
        for seed in range(4):
            expected = gradients(plain, x, seed=seed)
            assert_same(gradients(model, x.cuda(), run, seed), expected, tolerance=1e-6)


@pytest.mark.parametrize('mode', ['default', 'reduce-overhead'])
def test_a_fixed_number_of_samples_on_the_gpu_is_drawn_anew_in_each_step(mode):
    _, model = twins('vit_tiny_patch16_224', True)
    settings = ts.Settings('sample', 0.5, 'uniform', scale_by_keep=True, skip_dropped=True, draw='fixed')
    ts.apply_stochastic_depth(model, settings=settings, target_layer_name='DropPath')
    run = torch.compile(model, mode=mode, fullgraph=True)
    x = images(6, 32).double().cuda()
    outputs = []
    for seed in range(6):
        y, *grads = gradients(model, x, run, seed)
        assert y.isfinite().all() and all(g.isfinite().all() for g in grads)
        outputs.append(y.cpu().clone())
    assert len({tuple(y.flatten().tolist()) for y in outputs}) == 6


@pytest.mark.parametrize('skip_dropped, mode', [(False, 'default'), (False, 'reduce-overhead'), (True, 'default')])
def test_compiled_sample_mode_makes_no_graph_after_the_first_steps(skip_dropped, mode):
    _, model = twins('vit_tiny_patch16_224', skip_dropped)
    run = torch.compile(model, mode=mode, fullgraph=True)
    x = images(6, 32).double().cuda()
    gradients(model, x, run)
    ts.set_drop_rate(model, 0.3)
    gradients(model, x, run)
    with torch.compiler.set_stance('fail_on_recompile'):
        for seed in range(10):
            ts.set_drop_rate(model, 0.05 * seed)
            assert all(t.isfinite().all() for t in gradients(model, x, run, seed))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('skip_dropped', [False, True])
@pytest.mark.parametrize('name', WITHOUT_BATCH_NORM)
def test_autocast_gives_the_same_to_the_rounding_of_its_type(name, skip_dropped, dtype):
    _, model = twins(name, skip_dropped)
    model.float()
    x = images(6, 32).cuda()
    expected = gradients(model, x)

    def run(x):
        with torch.autocast('cuda', dtype):
            return model(x)

    # draws in another type are the same: a sample that is dropped in one only would be off by a tenth and more
    assert_same(gradients(model, x, run), expected, tolerance=0.05)


@pytest.mark.parametrize('method, settings', [('sample', {}), ('sample', dict(skip_dropped=True)), ('block', {})])
@pytest.mark.parametrize('use_reentrant', [False, True])
def test_a_recomputation_repeats_the_draws_of_the_gpu(method, settings, use_reentrant):
    model = timm.create_model('vit_tiny_patch16_224', num_classes=5, **NETWORKS['vit_tiny_patch16_224']).double()
    ts.apply_stochastic_depth(model, method, 'DropPath', 0.5, 'uniform', **settings)
    model.cuda().train()
    x = images(6, 32).double().cuda()
    expected = gradients(model, x)

    used = timm.layers.use_reentrant_ckpt()
    timm.layers.set_reentrant_ckpt(use_reentrant)
    try:
        model.set_grad_checkpointing()
        assert_same(gradients(model, x), expected)
    finally:
        timm.layers.set_reentrant_ckpt(used)


def dropped_samples(run, x_NCHW):
    """Which samples come out of a block as its identity shortcut alone, by the formula: relu(x + 0)."""
    with torch.no_grad():
        return (run(x_NCHW) == x_NCHW.relu()).flatten(1).all(1)


@pytest.mark.parametrize('recorded', ['compiled', 'captured'])
def test_a_cuda_graph_draws_anew_at_each_replay(recorded):
    model, layer = stack('timm_bottleneck', 1)
    ts.apply_stochastic_depth(model, 'sample', layer, 0.4, 'uniform')
    model.cuda().train()
    x = torch.randn(64, 16, 4, 4, device='cuda')
    if recorded == 'compiled':
        run = torch.compile(model, mode='reduce-overhead')
    else:
        with torch.no_grad():
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                model(x)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = model(x)

        def run(_):
            graph.replay()
            return y

    for _ in range(3):
        dropped_samples(run, x)
    dropped = torch.stack([dropped_samples(run, x) for _ in range(50)]).cpu()
    # five standard deviations of 3,200 draws
    assert abs(dropped.float().mean().item() - 0.4) < 5 * (0.4 * 0.6 / dropped.numel()) ** 0.5
    assert len({tuple(row.tolist()) for row in dropped}) == 50


def capture_step(**settings):
    """A training step as a CUDA graph, and what it computes at each replay."""
    _, model = twins('vit_tiny_patch16_224', False)
    settings = ts.Settings(settings.pop('stochastic_method', 'sample'), 0.5, 'uniform', **settings)
    ts.apply_stochastic_depth(model, settings=settings, target_layer_name='DropPath')
    x = images(6, 32).double().cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(x).square().mean().backward()
    torch.cuda.current_stream().wait_stream(stream)
    model.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
        y.square().mean().backward()
    return graph, [y, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize('skip_dropped', [False, True])
def test_a_training_step_of_a_fixed_number_is_captured(skip_dropped):
    graph, tensors = capture_step(skip_dropped=skip_dropped, draw='fixed')
    outputs = []
    for _ in range(6):
        graph.replay()
        assert all(t.isfinite().all() for t in tensors)
        outputs.append(tuple(tensors[0].detach().cpu().flatten().tolist()))
    assert len(set(outputs)) == 6


@pytest.mark.parametrize('settings', [dict(stochastic_method='block'), dict(skip_dropped=True)])
def test_what_is_decided_on_the_cpu_is_not_captured(settings):
    with pytest.raises(RuntimeError, match='decides on the CPU what to compute'):
        capture_step(**settings)


@pytest.mark.parametrize('mode', ['default', 'reduce-overhead'])
def test_compiled_block_mode_takes_the_decisions_of_eager_mode(mode):
    model = randomize(timm.create_model('resnet50_sd_block', num_classes=5, drop_path_rate=0.5)).cuda().double().train()
    run = torch.compile(model, mode=mode)
    x = images(4, 64).double().cuda()
    for seed in range(4):
        expected = gradients(model, x, seed=seed)
        assert_same([t.clone() for t in gradients(model, x, run, seed)], expected)


@pytest.mark.parametrize('name', ['resnet50_sd_sample', 'resnet50_sd_block'])
def test_a_scaled_half_precision_run_learns(name):
    model = timm.create_model(name, num_classes=4).cuda().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    scaler = torch.amp.GradScaler('cuda')
    x = images(16, 64).cuda().to(memory_format=torch.channels_last)
    target = torch.arange(16, device='cuda') % 4
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast('cuda', torch.float16):
            loss = torch.nn.functional.cross_entropy(model(x), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])


def test_rate_zero_is_the_plain_network_bit_for_bit():
    torch.use_deterministic_algorithms(True)
    try:
        plain = randomize(timm.create_model('resnet50', num_classes=5)).cuda().train()
        model = copy.deepcopy(plain)
        ts.apply_stochastic_depth(model, 'sample', 'ResNetBottleneck', 0.1)
        ts.set_drop_rate(model, 0.0)
        x = images(4, 64).cuda()
        assert all(torch.equal(g, p) for g, p in zip(gradients(model, x), gradients(plain, x)))
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_network_made_on_the_gpu_trains_moves_and_loads(tmp_path):
    with torch.device('cuda'):
        model = timm.create_model('resnet50_sd_block', num_classes=5, drop_path_rate=0.4)
    model.train()
    x = images(4, 64).cuda()
    model(x).sum().backward()
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    other = timm.create_model('resnet50_sd_sample', num_classes=5, drop_path_rate=0.1)
    other.load_state_dict(torch.load(tmp_path / 'weights.pth', map_location='cuda'))
    with torch.no_grad():
        on_gpu, on_cpu = model.double().eval()(x.double()), other.double().eval()(x.double().cpu())
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-5, atol=1e-5 * on_cpu.abs().max().item())
    folded = ts.fold_stochastic_depth(model).eval()
    with torch.no_grad():
        torch.testing.assert_close(folded(x.double()), on_gpu, rtol=1e-9, atol=1e-9)


def train_ddp(rank, method, same_seed, skip_dropped):
    torch.manual_seed(0)
    model = timm.create_model('vit_tiny_patch16_224', num_classes=5, **NETWORKS['vit_tiny_patch16_224'])
    ts.apply_stochastic_depth(
        model, method, 'DropPath', 0.5, 'uniform', use_same_gpu_seed=same_seed, skip_dropped=skip_dropped
    )
    model.cuda().train()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    timm.utils.random_seed(42, rank)
    for _ in range(5):
        optimizer.zero_grad()
        ddp(images(4, 32).cuda()).square().mean().backward()
        optimizer.step()
    return [p.detach().cpu() for p in model.parameters()]


@pytest.mark.parametrize(
    'method, same_seed, skip_dropped', [('block', True, False), ('block', False, False), ('sample', True, True)]
)
def test_ranks_that_share_a_gpu_stay_alike(method, same_seed, skip_dropped, run_ranks):
    first, second = run_ranks(train_ddp, method, same_seed, skip_dropped)
    assert all(torch.equal(p, q) for p, q in zip(first, second))
    assert all(p.isfinite().all() for p in first)
