"""Networks as their users wrap them: what a factor goes into is found, or the user is told why not."""

import copy
from functools import partial

import peft
import pytest
import timm
import torch
from networks import assert_same_output, images, randomize
from timm.models.resnet import BasicBlock
from timm.models.vision_transformer import Block
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn.utils import parametrizations, parametrize, prune

import timm_stochdepth as ts
from timm_stochdepth.folding.rescale import fold_weights
from timm_stochdepth.hub.load import load_model

VIT = dict(img_size=32, num_classes=4, depth=3, embed_dim=48, num_heads=3)


def create_plain(name):
    torch.manual_seed(0)
    kwargs = {'vit_tiny_patch16_224': VIT, 'resnet18': dict(num_classes=4), 'convnext_atto': dict(num_classes=4)}[name]
    model = timm.create_model(name, **kwargs)
    for p in model.parameters():
        if p.ndim <= 1:
            nn.init.uniform_(p, 0.3, 0.7)
    return randomize(model)


def create(name, rate=0.4, **settings):
    model = create_plain(name)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', rate, 'uniform', drop_warmup=0.5, **settings)
    return model.eval()


@torch.no_grad()
def assert_folds(model, name=None):
    """The folded network computes the same, and its weights are those of timm's plain one."""
    x = images(2, 32)
    y = model.eval()(x)
    folded = ts.fold_stochastic_depth(model).eval()
    assert_same_output(folded(x), y)
    assert_same_output(model(x), y)
    if name is not None:
        plain = create_plain(name).eval()
        plain.load_state_dict(folded.state_dict(), strict=True)
        assert_same_output(plain(x), y)


@torch.no_grad()
def assert_warms_up(model):
    x = images(2, 32)
    y = model.eval()(x)
    ts.start_warmup(model)
    assert set(ts.drop_rates(model).values()) == {0.0}
    assert_same_output(model.eval()(x), y)
    ts.set_training_progress(model, 1.0)
    assert (model(x) - y).abs().max() > 1e-3 * y.abs().max()  # the weights were scaled, for a rate of 0


def prune_ends(model):
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.Linear, nn.Conv2d)):
            prune.random_unstructured(module, 'weight', 0.2)
    return model


@pytest.mark.parametrize('name', ['resnet18', 'vit_tiny_patch16_224', 'convnext_atto'])
def test_pruned(name):
    model = prune_ends(create(name))
    model.train()(images(2, 32)).sum().backward()  # the pruned tensors have a history, and cannot be copied as they are
    assert_folds(model, name)
    assert_warms_up(model)
    assert any(key.endswith('weight_orig') for key in model.state_dict())


def test_a_pruned_tensor_of_the_block_itself():
    model = create('convnext_atto')
    block = model.stages[1].blocks[0]
    prune.random_unstructured(block, 'gamma', 0.2)
    made = type(block)
    for _ in range(2):  # pruning sets the tensor anew in each forward pass
        model.train()(images(2, 32)).sum().backward()
    assert type(block) is made
    assert_folds(model, 'convnext_atto')
    assert_warms_up(model)


PARAMETRIZATIONS = {
    'weight_norm': parametrizations.weight_norm,
    'spectral_norm': parametrizations.spectral_norm,
    'old weight_norm': nn.utils.weight_norm,
    'old spectral_norm': nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('kind', PARAMETRIZATIONS)
def test_parametrized(kind):
    model = create('vit_tiny_patch16_224')
    state = copy.deepcopy(model.state_dict())
    PARAMETRIZATIONS[kind](model.blocks[1].mlp.fc2)
    assert_folds(model, 'vit_tiny_patch16_224')
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r'blocks\.1\.mlp\.fc2\.weight must be a parameter of its module'):
        ts.start_warmup(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len(before) > len(state)


def test_a_parametrized_norm_is_not_half_scaled():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model = create('resnet18')
    parametrize.register_parametrization(model.layer2[1].bn2, 'weight', Doubled())
    assert_folds(model, 'resnet18')
    with pytest.raises(ValueError, match=r'layer2\.1\.bn2\.weight must be a parameter.* by a parametrization'):
        ts.start_warmup(model)
    assert parametrize.is_parametrized(model.layer2[1].bn2)  # folding changed nothing of it


class Lora(nn.Module):
    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(0.1 * torch.randn(rank, base.in_features))
        self.b = nn.Parameter(0.1 * torch.randn(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + 0.5 * (x @ self.a.T @ self.b.T)


class LoraLinear(nn.Linear):
    """An adapter that is a linear layer itself."""

    def __init__(self, base, rank=4):
        super().__init__(base.in_features, base.out_features)
        self.load_state_dict(base.state_dict())
        self.lora_a = nn.Linear(base.in_features, rank, bias=False)
        self.lora_b = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias) + self.lora_b(self.lora_a(x))


@pytest.mark.parametrize('adapter', [Lora, LoraLinear])
def test_low_rank_adapters(adapter):
    model = create('vit_tiny_patch16_224')
    for block in model.blocks:
        block.attn.qkv, block.attn.proj, block.mlp.fc2 = map(adapter, (block.attn.qkv, block.attn.proj, block.mlp.fc2))
    assert_folds(model)
    assert_warms_up(model)


class Chained(Lora):
    """No adapter beside its layer: the sum's second operand is made of the first."""

    def __init__(self, base):
        super().__init__(base)
        self.a = nn.Parameter(torch.randn(4, base.out_features))
        self.b = nn.Parameter(torch.randn(base.out_features, 4))
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        x = self.base(x)
        return self.drop(x) + x @ self.a.T @ self.b.T


class ComputedBias(nn.Linear):
    def __init__(self, base):
        super().__init__(base.in_features, base.out_features)
        self.load_state_dict(base.state_dict())

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias.tanh())


@pytest.mark.parametrize('layer', [Chained, ComputedBias])
def test_a_layer_that_a_factor_does_not_pass_through_is_refused(layer):
    model = create('vit_tiny_patch16_224')
    model.blocks[1].attn.proj = layer(model.blocks[1].attn.proj)
    with pytest.raises(ValueError, match=r'blocks\.1\.attn must be .* to be folded, but is a Attention'):
        ts.fold_stochastic_depth(model)


def test_hooks_of_others_stay_where_a_spectral_norm_goes():
    model = create('vit_tiny_patch16_224')
    nn.utils.spectral_norm(model.blocks[1].mlp.fc2)
    seen = []
    model.blocks[1].mlp.fc2.register_load_state_dict_pre_hook(lambda module, *args: seen.append(module))
    folded = ts.fold_stochastic_depth(model)
    folded.load_state_dict(folded.state_dict())
    assert folded.blocks[1].mlp.fc2 in seen


def adapt(model, **config):
    names = ['qkv', 'proj', 'fc1', 'fc2'] if hasattr(model, 'blocks') else ['conv1', 'conv2']
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=names, init_lora_weights=False, **config))


@pytest.mark.parametrize('method, settings', [('sample', {}), ('sample', dict(skip_dropped=True)), ('block', {})])
@pytest.mark.parametrize('name', ['resnet18', 'vit_tiny_patch16_224'])
def test_peft_trains_folds_and_merges(name, method, settings):
    model = create_plain(name)
    ts.apply_stochastic_depth(model, method, 'DropPath', 0.4, 'uniform', drop_warmup=0.5, **settings)
    adapted = adapt(model)
    adapted.train()(images(2, 32)).square().sum().backward()
    trained = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    assert all('lora_' in n and grad is not None for n, grad in trained.items())
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)
    assert_folds(adapted)
    x = images(2, 32)
    y = adapted.eval()(x)
    merged = adapted.merge_and_unload()
    assert_same_output(merged.eval()(x), y)
    assert_folds(merged, name)
    assert_warms_up(merged)


def test_peft_warms_up():
    assert_warms_up(adapt(create('vit_tiny_patch16_224')))


@pytest.mark.parametrize('name, block', [('resnet18', BasicBlock), ('vit_tiny_patch16_224', Block)])
def test_activation_checkpoint_wrappers(name, block):
    for wrapped in (block, (block, nn.Linear, nn.BatchNorm2d)):  # blocks alone, or their children, too
        model = create(name)
        apply_activation_checkpointing(
            model,
            checkpoint_wrapper_fn=partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT),
            check_fn=lambda m, wrapped=wrapped: isinstance(m, wrapped),
        )
        assert_folds(model)
        assert_warms_up(model)


@pytest.mark.parametrize(
    'wrap',
    [
        partial(torch.compile, backend='eager'),
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda m: nn.Sequential(nn.Sequential(m)),
    ],
    ids=['compile', 'DataParallel', 'AveragedModel', 'Sequential'],
)
def test_wrappers_of_the_whole(wrap):
    model = wrap(create('resnet18'))
    assert_folds(model)
    assert_warms_up(model)


def test_a_key_that_is_not_found_is_an_error():
    model = create('resnet18')
    ts.set_training_progress(model, 0.0)
    state = model.state_dict()
    ts.set_training_progress(model, 1.0)
    del state['layer2.1.bn2.bias']
    with pytest.raises(ValueError, match=r'state_dict must hold layer2\.1\.bn2\.bias'):
        fold_weights(state, model, {})


def test_the_auxiliary_norms_of_a_split_norm_are_scaled_too():
    model = timm.layers.convert_splitbn_model(create('resnet18'), 2)
    norm = model.layer2[1].bn2
    before = [n.weight.detach().clone() for n in (norm, *norm.aux_bn)]
    ts.start_warmup(model)
    for n, weight in zip((norm, *norm.aux_bn), before):
        torch.testing.assert_close(n.weight, weight * 0.6)


def create_registered():
    return randomize(timm.create_model('resnet50_sd_block', num_classes=4, drop_path_rate=0.3)).eval()


WRAPPINGS = {
    'pruned': lambda model: prune.random_unstructured(model.layer2[0].bn3, 'weight', 0.2),
    'parametrized': lambda model: parametrizations.weight_norm(model.layer2[0].conv3),
    'checkpointed': lambda model: apply_activation_checkpointing(
        model, check_fn=lambda m: isinstance(m, ts.StochasticBlock)
    ),
}


@pytest.mark.parametrize('plain', [False, True])
@pytest.mark.parametrize('wrapping', WRAPPINGS)
def test_pushing(wrapping, plain, tmp_path):
    model, x = create_registered(), images(2, 32)
    WRAPPINGS[wrapping](model)
    y = model(x)
    ts.push_to_hub(model, 'user/my_model', dry_run=True, plain=plain, out=tmp_path / 'out')
    loaded = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    assert ('_sd_' in loaded.pretrained_cfg['architecture']) != plain
    assert_same_output(loaded(x), y)
    assert_same_output(model(x), y)


def test_pushing_adapters_says_to_merge_them():
    adapted = adapt(create_registered())
    for plain in (False, True):
        with pytest.raises(ValueError, match=r'Adapters are merged first, in peft by model\.merge_and_unload\(\)'):
            ts.push_to_hub(adapted, 'user/my_model', dry_run=True, plain=plain)


def save_checkpoint(state_dict, path):
    args = dict(model='resnet50_sd_block', drop_path=0.3)
    torch.save(dict(arch='resnet50_sd_block', state_dict=state_dict, args=args), path)
    return path


def test_a_checkpoint_of_a_pruned_network(tmp_path):
    model, x = create_registered(), images(2, 32)
    WRAPPINGS['pruned'](model)
    loaded, _ = load_model(save_checkpoint(model.state_dict(), tmp_path / 'checkpoint.pth.tar'))
    assert_same_output(loaded.eval()(x), model(x))


def test_a_checkpoint_of_what_is_not_plain_says_what_to_do(tmp_path):
    parametrized, adapted = create_registered(), adapt(create_registered())
    WRAPPINGS['parametrized'](parametrized)
    for model, message in ((parametrized, 'remove_parametrizations'), (adapted, 'merge_and_unload')):
        path = save_checkpoint(model.state_dict(), tmp_path / 'checkpoint.pth.tar')
        with pytest.raises(ValueError, match=f'must hold the weights of a network as timm builds it.*{message}'):
            load_model(path)
