"""What a block has looked at once is looked at again when its modules, their classes or hooks have changed."""

import copy

import calls
import pytest
import timm
import torch
from networks import randomize
from timm.layers import SplitBatchNorm2d
from torch import nn

import timm_stochdepth as ts


def trained(name, method, rate=0.5, **settings):
    """A network that has run in training."""
    torch.manual_seed(0)
    model = randomize(timm.create_model(name, num_classes=4, img_size=32) if 'vit' in name else timm.create_model(name))
    ts.apply_stochastic_depth(model, method, 'DropPath', rate, 'uniform', **settings)
    model.train()
    for _ in range(2):
        model(torch.randn(3, 3, 32, 32)).sum().backward()
    model.zero_grad()
    return model


MODES = [('sample', {}), ('sample', dict(skip_dropped=True)), ('block', {})]


class Adapted(nn.Module):
    """A layer with a parameter beside it, as adapters put it into a network that is there."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.shift = layer, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.layer(x) + self.shift


@pytest.mark.parametrize('method, settings', MODES)
def test_parameters_that_are_added_deep_inside_get_a_gradient_where_their_branch_is_dropped(method, settings):
    model = trained('test_vit', method, rate=1.0, **settings)
    for block in model.blocks:
        block.mlp.fc1 = Adapted(block.mlp.fc1)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    for block in model.blocks:
        assert block.mlp.fc1.shift.grad == 0.0


@pytest.mark.parametrize('method, settings', MODES)
def test_a_hook_that_comes_later_keeps_what_it_saw(method, settings):
    model = trained('test_resnet', method, rate=1e-12, **settings)
    seen = []
    for module in model.layer2.modules():
        module.register_forward_hook(lambda m, args, y: seen.append((y, y.clone())))
    model(torch.randn(3, 3, 32, 32))
    inplace = [m for m in model.layer2.modules() if getattr(m, 'inplace', False)]
    for activation in inplace:
        activation.inplace = False
    seen.clear()
    model(torch.randn(3, 3, 32, 32))
    assert seen and all(torch.equal(y, before) for y, before in seen)


def test_a_hook_on_a_drop_path_that_comes_later_sees_its_branch():
    model = trained('test_vit', 'sample', rate=0.5)
    seen = []
    model.blocks[0].drop_path2.register_forward_hook(lambda m, args, y: seen.append((args[0], y)))
    model(torch.randn(8, 3, 32, 32))
    ((branch, masked),) = seen
    kept_N = masked.flatten(1).any(1)
    torch.testing.assert_close(masked, branch * kept_N.view(-1, 1, 1))
    assert 0 < kept_N.sum() < 8


def test_a_norm_that_splits_the_batch_is_refused_when_it_comes():
    model = trained('test_resnet', 'sample', skip_dropped=True)
    block = model.layer2[0]
    block.bn1 = SplitBatchNorm2d(block.bn1.num_features, num_splits=2)
    with pytest.raises(ValueError, match='skip_dropped must be False with SplitBatchNorm2d'):
        model(torch.randn(4, 3, 32, 32))


@pytest.mark.parametrize('method, settings', MODES)
def test_copies_look_at_their_own_modules(method, settings):
    model = trained('test_vit', method, rate=1.0, **settings)
    copied = copy.deepcopy(model)
    x = torch.randn(2, 3, 32, 32)
    copied(x).sum().backward()
    assert all(p.grad is not None for p in copied.blocks.parameters())
    assert all(p.grad is None for p in model.blocks.parameters())


@pytest.mark.skipif(torch.__version__ < '2.12', reason='autograd functions of older versions make calls of their own')
@pytest.mark.parametrize('mode, limit', [('sample', 1.3), ('block', 1.4), ('skip', 1.7)])
def test_a_block_makes_few_python_calls_beside_those_of_timms(mode, limit):
    plain = calls.calls_a_block(timm.create_model('test_vit', drop_path_rate=calls.RATE))
    model = timm.create_model('test_vit')
    ts.apply_stochastic_depth(
        model, target_layer_name='DropPath', drop_rate=calls.RATE, scale_by_keep=True, **calls.MODES[mode]
    )
    assert calls.calls_a_block(model) <= limit * plain


@pytest.mark.parametrize('method, settings', MODES)
def test_a_copy_of_a_compiled_block_has_weights_of_its_own(method, settings):
    model = trained('test_vit', method, **settings).eval()
    for block in model.blocks:
        block.compile(backend='eager')
    x = torch.randn(2, 3, 32, 32)
    model(x)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for p in copied.parameters():
            p.mul_(1.5)
    plain = timm.create_model('test_vit', num_classes=4, img_size=32).eval()
    plain.load_state_dict(ts.fold_stochastic_depth(copied).state_dict())
    torch.testing.assert_close(copied(x), plain(x), rtol=1e-4, atol=1e-4)
    assert not torch.equal(copied(x), model(x))
