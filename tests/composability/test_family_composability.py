"""What networks other than ResNets are put through, beyond a plain training loop."""

import copy
import io
import pickle

import pytest
import timm
import torch
import torchvision
from family_networks import FAMILIES, create_family, family_images
from forks import run_python
from networks import assert_same_output, of_seed
from torch import fx, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.parallel import DistributedDataParallel

import timm_stochdepth as ts
from timm_stochdepth.inspection import drop_paths
from timm_stochdepth.layers.block_class import cuts_of

NAMES = ['convnext.ConvNeXtBlock', 'swin_transformer.SwinTransformerBlock', 'vision_transformer.Block']
CLASSES = [
    pytest.param(NAMES[0], marks=pytest.mark.long),
    pytest.param(NAMES[1], marks=pytest.mark.families),
    NAMES[2],
]
COMPILED = [pytest.param(name, marks=pytest.mark.families) for name in NAMES[:2]] + [NAMES[2]]
METHODS = [('sample', {}), ('sample', dict(skip_dropped=True)), ('block', {})]


@pytest.mark.parametrize('method, settings', METHODS)
@pytest.mark.parametrize('family', CLASSES)
def test_copies_and_files(family, method, settings):
    model, x = create_family(family, method, **settings), family_images(family)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    y = of_seed(lambda: model(x))
    assert not torch.equal(y, of_seed(lambda: model(x), 4))
    for other in copies:
        assert torch.equal(of_seed(lambda other=other: other(x)), y)
        assert ts.drop_rates(other) == ts.drop_rates(model)


def test_a_file_is_read_in_a_fresh_process(tmp_path):
    model, x = create_family(NAMES[2], skip_dropped=True), family_images(NAMES[2])
    y = of_seed(lambda: model(x))
    torch.save((model, x, y), tmp_path / 'model.pt')
    code = (
        'import sys, torch\nmodel, x, y = torch.load(sys.argv[1], weights_only=False)\ntorch.manual_seed(3)\n'
        'assert torch.equal(model(x), y)'
    )
    result = run_python('-c', code, tmp_path / 'model.pt')
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('family', CLASSES)
def test_torchscript_masks(family, training):
    model, x = create_family(family).train(training), family_images(family)
    scripted = torch.jit.script(model).train(training)
    with torch.jit.optimized_execution(False):  # which draws in another order, for timm's own DropPath too
        for seed in range(3):
            assert_same_output(of_seed(lambda: scripted(x), seed), of_seed(lambda: model(x), seed))


def test_torchscript_of_blocks_without_a_drop_path():
    model = torchvision.models.resnet18(num_classes=5)
    ts.apply_stochastic_depth(model, 'sample', 'ResNetBasicBlock', 0.5)
    scripted = torch.jit.script(model)
    x = torch.randn(4, 3, 32, 32)
    for training in (True, False):
        assert_same_output(
            of_seed(lambda training=training: scripted.train(training)(x)),
            of_seed(lambda training=training: model.train(training)(x)),
        )


class OneBlock(nn.Module):
    """A network that FX can trace, whatever the rest of the family's is like."""

    def __init__(self, family, method='sample', **settings):
        super().__init__()
        model = create_family(family, method, **settings)
        self.blocks = nn.Sequential(next(m for m in model.modules() if isinstance(m, ts.StochasticBlock)))
        self.shape = dict(zip(NAMES, [(24, 8, 8), (14, 14, 24), (5, 48)]))[family]

    def forward(self, x):
        return self.blocks(x)


@pytest.mark.parametrize('method, settings', METHODS)
@pytest.mark.parametrize('family', CLASSES)
@pytest.mark.filterwarnings('ignore:A graph that is traced in training')
def test_a_traced_graph_draws_as_the_network(family, method, settings):
    network = OneBlock(family, method, **settings)
    traced = fx.symbolic_trace(network)
    x = torch.randn(4, *network.shape)
    for seed in range(3):
        assert_same_output(of_seed(lambda: traced(x), seed), of_seed(lambda: network(x), seed))


@pytest.mark.parametrize('family', CLASSES)
@pytest.mark.filterwarnings('error', 'ignore:The network has been trained')  # its weights are random
def test_a_graph_that_was_traced_for_inference_may_train(family):
    """Its drop paths are leaves: they scale at inference, and mask in training, with the draws of the network."""
    network = OneBlock(family).eval()
    traced = fx.symbolic_trace(network)
    x = torch.randn(4, *network.shape)
    for training in (False, True):
        traced.train(training)
        network.train(training)
        for seed in range(3):
            assert_same_output(of_seed(lambda: traced(x), seed), of_seed(lambda: network(x), seed))


@pytest.mark.parametrize('method, settings', METHODS)
@pytest.mark.parametrize('family', COMPILED)
def test_compiled_equals_eager(family, method, settings):
    torch._dynamo.reset()
    model, x = create_family(family, method, **settings).double(), family_images(family).double()
    eager = copy.deepcopy(model)
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(model, backend=counter, fullgraph=method == 'sample')
    counts = []
    for seed in range(16):  # by then each branch has been kept once, and each way through a block been taken
        y = of_seed(lambda: compiled(x), seed)
        torch.testing.assert_close(y, of_seed(lambda: eager(x), seed))
        y.sum().backward()
        counts.append(counter.frame_count)
    if method == 'sample':
        assert counts[-1] == 1
    assert counts[-1] == counts[-6]
    torch._dynamo.reset()


@pytest.mark.parametrize('method, settings', METHODS)
@pytest.mark.parametrize('family', CLASSES)
def test_gradients_under_checkpointing_are_those_without(family, method, settings):
    x = family_images(family)
    grads = []
    for checkpointing in (False, True):
        model = create_family(family, method, **settings)
        model.set_grad_checkpointing(checkpointing)
        of_seed(lambda model=model: model(x).square().sum().backward())
        grads.append([p.grad for p in model.parameters()])
    for grad, grad_checkpointed in zip(*grads):
        torch.testing.assert_close(grad_checkpointed, grad)


@pytest.mark.parametrize('method, settings', METHODS)
@pytest.mark.parametrize('family', CLASSES)
def test_autocast_and_channels_last(family, method, settings):
    model, x = create_family(family, method, **settings), family_images(family)
    y = of_seed(lambda: model(x))
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert_same_output(of_seed(lambda: channels_last(x.to(memory_format=torch.channels_last))), y)
    with torch.autocast('cpu', torch.bfloat16):
        y_bf16 = model(x)
    assert y_bf16.dtype == torch.bfloat16
    y_bf16.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def train_ddp(rank, family, method, settings):
    model = DistributedDataParallel(create_family(family, method, 0.7, **settings))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    timm.utils.random_seed(42, rank)
    for _ in range(4):
        optimizer.zero_grad()
        model(family_images(family, 2)).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(
    'method, settings', [('sample', dict(skip_dropped=True)), ('block', dict(use_same_gpu_seed=False))]
)
@pytest.mark.parametrize(
    'family', [NAMES[2], pytest.param('gcvit.GlobalContextVitBlock', marks=pytest.mark.long)], ids=['vit', 'gcvit']
)
def test_ranks_stay_alike_under_ddp(family, method, settings, run_ranks):
    first, second = run_ranks(train_ddp, family, method, settings)
    assert all(torch.equal(p, q) for p, q in zip(first, second))


@pytest.mark.parametrize('method, settings', METHODS)
def test_a_block_that_changes_is_cut_anew(method, settings):
    family = 'swin_transformer.SwinTransformerBlock'
    plain = timm.create_model(FAMILIES[family][0], num_classes=5, **FAMILIES[family][1]).eval()
    model = create_family(family, method, 1e-12, **settings)
    model.load_state_dict(plain.state_dict())
    for network in (plain, model):
        network.set_input_size((112, 84), window_size=(4, 3))
    x = torch.randn(2, 3, 112, 84)
    torch.testing.assert_close(model(x), plain(x))


def test_a_reparameterized_block_is_cut_anew():
    model = timm.create_model('fastvit_t8', num_classes=5).eval()
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4)
    x = torch.randn(2, 3, 64, 64)
    y = model(x)
    deployed = timm.utils.reparameterize_model(model)
    assert sum(p.numel() for p in deployed.parameters()) < sum(p.numel() for p in model.parameters())
    assert_same_output(deployed(x), y)


def test_blocks_of_one_shape_share_one_cut():
    model = timm.create_model('vit_tiny_patch16_224', depth=12, embed_dim=48, num_heads=3)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4)
    assert len({type(block) for block in model.blocks}) == 1
    assert 'self.drop_path2.add(x, drop_path2_branch, self, x)' in cuts_of(model.blocks[0])[0].code


def test_a_lone_argument_of_the_batch_is_gathered():
    """A mask for each sample goes with its sample, one for all stays."""
    block = nn.Sequential(timm.models.vision_transformer.Block(32, 2)).double()
    ts.apply_stochastic_depth(block, 'sample', 'DropPath', 0.5, 'uniform', skip_dropped=True)
    masked = copy.deepcopy(block)
    ts.apply_stochastic_depth(masked, 'sample', 'DropPath', 0.5, 'uniform')
    x = torch.randn(6, 5, 32, dtype=torch.float64)
    for mask in (torch.rand(6, 1, 5, 5) > 0.3, torch.rand(1, 1, 5, 5) > 0.3, torch.rand(5, 5) > 0.3):
        mask = mask | torch.eye(5, dtype=torch.bool)
        for seed in range(3):
            y = of_seed(lambda mask=mask: block[0](x, attn_mask=mask), seed)
            torch.testing.assert_close(y, of_seed(lambda mask=mask: masked[0](x, attn_mask=mask), seed))


def test_printing_shows_what_drops_where():
    model = create_family(NAMES[2], skip_dropped=True)
    text = repr(model.blocks[1])
    line = "StochasticDropPath(stochastic_method='sample', drop_prob=0.500, skip_dropped=True)"
    assert f'(drop_path1): {line}' in text and f'(drop_path2): {line}' in text
    assert len(list(drop_paths(model))) == 6
    model = create_family(NAMES[2], 'block', scale_by_keep=True, drop_warmup=0.5)
    ts.set_training_progress(model, 0.1)
    line = "StochasticDropPath(stochastic_method='block', drop_prob=0.100 of 0.500, scale_by_keep=True)"
    assert line in repr(model.blocks[1])
