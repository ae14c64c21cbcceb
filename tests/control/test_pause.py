"""no_drop, and norms that look at the batch."""

import copy

import pytest
import timm
import torch
from networks import assert_same_output, images, randomize
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, update_bn

import timm_stochdepth as ts

METHODS = [('sample', {}), ('sample', dict(skip_dropped=True)), ('block', {}), ('block', dict(scale_by_keep=True))]


def create(method='block', rate=0.9, **settings):
    torch.manual_seed(0)
    model = randomize(timm.create_model('resnet18', num_classes=4, layers=(1, 1, 1, 1)))
    ts.apply_stochastic_depth(model, method, 'ResNetBasicBlock', rate, 'uniform', **settings)
    return model


@pytest.mark.parametrize('method, settings', METHODS)
def test_statistics_are_those_of_the_folded_network(method, settings):
    """The folded network is a plain one: its norms see every batch, and it scales as at inference."""
    model = create(method, **settings)
    folded = ts.fold_stochastic_depth(model)
    batches = [images(4) for _ in range(2)]
    averaged = AveragedModel(model)
    with ts.no_drop(averaged):
        update_bn(batches, averaged)
    update_bn(batches, folded)
    for (name, value), reference in zip(averaged.module.named_buffers(), folded.buffers()):
        torch.testing.assert_close(value, reference, msg=name)
    assert averaged.training and len({averaged(batches[0]).sum().item() for _ in range(8)}) > 1


@pytest.mark.parametrize('method, settings', METHODS)
def test_training_mode_computes_what_the_folded_network_does(method, settings):
    model = create(method, **settings)
    folded = ts.fold_stochastic_depth(model).train()
    x = images(4)
    state = torch.get_rng_state()
    with ts.no_drop(model):
        y = model(x)
        y.square().sum().backward()
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    assert_same_output(y, folded(x))
    assert all(p.grad is not None for p in model.parameters())


def test_inference_is_as_it_was():
    model = create().eval()
    x = images(2)
    y = model(x)
    with ts.no_drop(model):
        assert torch.equal(model(x), y)


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'convnext_atto', 'samvit_base_patch16'])
def test_other_families(name):
    kwargs = dict(depth=2, embed_dim=48, num_heads=3) if 'vit' in name else dict(depths=(1, 1, 1, 1))
    kwargs.update(dict(img_size=64) if 'vit' in name else {})
    kwargs.update(dict(global_attn_indexes=(1,)) if 'samvit' in name else {})
    model = timm.create_model(name, num_classes=4, **kwargs)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.9, 'uniform')
    x = images(2)
    y = model.eval()(x)
    with ts.no_drop(model.train()):
        assert_same_output(model(x), y)


def test_it_ends_where_it_began():
    model = create()
    with ts.no_drop(model):
        with ts.no_drop(model):
            pass
        with pytest.raises(KeyError), ts.no_drop(model):
            raise KeyError
        assert all(m.is_paused for m in model.modules() if hasattr(m, 'is_paused'))
    assert not any(m.is_paused for m in model.modules() if hasattr(m, 'is_paused'))


@pytest.mark.long
@pytest.mark.parametrize('method', ['sample', 'block'])
def test_compiled(method):
    torch._dynamo.reset()
    model = create(method, 0.5)
    folded = ts.fold_stochastic_depth(model).train()
    compiled = torch.compile(model, backend='aot_eager')
    x = images(4)
    compiled(x)
    with ts.no_drop(compiled):
        assert_same_output(compiled(x), folded(x))
    assert not torch.equal(compiled(x), compiled(x))
    torch._dynamo.reset()


def test_wrapped_by_ddp(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model = create()
        folded = ts.fold_stochastic_depth(model).train()
        ddp = DistributedDataParallel(model)
        x = images(4)
        with ts.no_drop(ddp):
            assert_same_output(ddp(x), folded(x))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize('model', [None, 'resnet18', [nn.Linear(2, 2)]])
def test_what_is_no_module_is_refused(model):
    with pytest.raises(TypeError, match=r'model must be a torch\.nn\.Module, but got'), ts.no_drop(model):
        pass


def test_split_norms_take_no_skipping():
    model = timm.layers.convert_splitbn_model(create('sample', 0.5, skip_dropped=True), 2)
    with pytest.raises(ValueError, match='skip_dropped must be False with SplitBatchNorm2d, but got True'):
        model(images(4))
    model.eval()(images(4))
    with ts.no_drop(model.train()):
        model(images(4))


def test_a_network_with_split_norms_is_left_as_it_is():
    model = timm.layers.convert_splitbn_model(timm.create_model('resnet18'), 2)
    classes = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match='skip_dropped must be False with SplitBatchNorm2d, but got True'):
        ts.apply_stochastic_depth(model, 'sample', 'ResNetBasicBlock', 0.5, skip_dropped=True)
    assert [type(m) for m in model.modules()] == classes


@pytest.mark.parametrize('method', ['sample', 'block'])
def test_split_norms_take_masks_and_blocks(method):
    model = timm.layers.convert_splitbn_model(create(method, 0.5), 2)
    model(images(4)).square().sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if 'layer' in n and 'aux_bn' not in n)


def test_copies_are_not_paused():
    model = create(rate=0.5)
    before = copy.deepcopy(model)
    with ts.no_drop(model):
        within = copy.deepcopy(model)
    x = images(2)
    for copied in (before, within):
        assert len({copied(x).sum().item() for _ in range(8)}) > 4
