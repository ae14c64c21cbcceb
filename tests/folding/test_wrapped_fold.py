"""Networks inside of something else, folded with it: each is timm's own from then on, by class and by name."""

import pytest
import timm
import torch
import torch.distributed as dist
from huggingface_hub import PyTorchModelHubMixin
from networks import Holder, assert_same_output, images, randomize
from timm.utils import ModelEmaV3
from torch import nn

import timm_stochdepth as ts

SIZES = dict(num_classes=4, layers=[1, 1, 1, 1], base_width=8)


def create(name='resnet50_sd_block', **kwargs):
    return randomize(timm.create_model(name, **{**SIZES, 'drop_path_rate': 0.5, **kwargs})).eval()


class Distiller(nn.Module):
    def __init__(self):
        super().__init__()
        self.students = nn.ModuleList([Holder(create()), create('resnet50_sd_sample', drop_path_rate=0.2)])
        self.teacher = create('resnet50', drop_path_rate=0.3)
        self.vit = timm.create_model('test_vit', num_classes=4, drop_path_rate=0.4).eval()
        ts.apply_stochastic_depth(self.vit, 'sample', 'DropPath', None)


def networks_in(model):
    return [m for m in model.modules() if isinstance(m, timm.models.ResNet)]


@torch.no_grad()
def assert_saved_as_plain(folded, original, folder):
    """What timm saves of a network is loaded as timm's own, and computes what the original did."""
    timm.models.save_for_hf(folded, str(folder), safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert not ts.drop_rates(loaded) and folded.default_cfg['architecture'] == 'resnet50'
    x = images(2, 32)
    assert_same_output(loaded(x), original.eval()(x))


WRAPPERS = {
    'module': Holder,
    'deep': lambda model: nn.ModuleDict(dict(a=nn.Sequential(Holder(model)))),
    'compile': torch.compile,
    'DataParallel': nn.DataParallel,
    'AveragedModel': torch.optim.swa_utils.AveragedModel,
    'EMA': ModelEmaV3,
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_an_inner_network_is_saved_as_timms_own(wrapper, tmp_path):
    model = create(drop_distribution='uniform', fold_pretrained=False)
    wrapped = WRAPPERS[wrapper](model)
    args, cfg = dict(model._model_args), dict(model.pretrained_cfg)
    [folded] = networks_in(ts.fold_stochastic_depth(wrapped))
    assert_saved_as_plain(folded, model, tmp_path)
    assert folded._model_args == SIZES
    assert (model._model_args, model.pretrained_cfg) == (args, cfg)  # the original stays what it was
    ts.push_to_hub(folded, 'user/net', plain=True, dry_run=True, out=tmp_path / 'pushed')
    with torch.no_grad():
        x = images(2, 32)
        assert_same_output(timm.create_model(f'local-dir:{tmp_path / "pushed"}', pretrained=True).eval()(x), model(x))


def test_each_of_several_networks_knows_its_own_rates(tmp_path):
    distiller = Distiller()
    originals = networks_in(distiller)
    folded = ts.fold_stochastic_depth(distiller)
    for number, (network, original) in enumerate(zip(networks_in(folded), originals)):
        assert_saved_as_plain(network, original, tmp_path / str(number))
        if ts.drop_rates(original):
            assert network.folded_drop_rates == ts.drop_rates(original)
    assert folded.folded_drop_rates == ts.drop_rates(distiller)
    assert folded.vit.folded_drop_rates == ts.drop_rates(distiller.vit)
    assert folded.vit._model_args == dict(num_classes=4)
    # what had no stochastic depth of this package stays as it is
    assert not hasattr(folded.teacher, 'folded_drop_rates')
    assert folded.teacher._model_args == distiller.teacher._model_args
    assert folded.teacher.layer4[0].drop_path.drop_prob == distiller.teacher.layer4[0].drop_path.drop_prob > 0


def test_networks_that_give_features():
    model = randomize(timm.create_model('resnet50_sd_block', features_only=True, layers=[1, 1, 1, 1], base_width=8))
    folded = ts.fold_stochastic_depth(nn.Sequential(model.eval()))[0]
    assert folded.pretrained_cfg['architecture'] == 'resnet50'
    x = images(2, 32)
    with torch.no_grad():
        for y, y_reference in zip(folded(x), model(x)):
            assert_same_output(y, y_reference)


def test_settings_of_ones_own_name_plain_networks():
    model = Holder(create())
    model.name = 'resnet50_sd_block'
    model.hparams = dict(net=dict(name='resnet101_sd_block', scale_by_keep=True, width=2), drop_path_rate=0.5, lr=0.1)
    model.hparams['own'] = model.hparams
    model.recipe = dict(backbone='resnet50_sd_block.a1_in1k', drop_path_rate=0.5, drop_warmup=0.1, lr=0.1)
    model.text = 'resnet50_sd_block at a rate of 0.5'
    folded = ts.fold_stochastic_depth(model)
    assert folded.name == 'resnet50' and folded.text == model.text
    assert folded.recipe == dict(backbone='resnet50.a1_in1k', drop_path_rate=0.0, lr=0.1)
    assert folded.hparams['net'] == dict(name='resnet101', width=2) and folded.hparams['own'] is folded.hparams
    assert folded.hparams['drop_path_rate'] == 0.5  # of something that is not named beside it
    assert model.hparams['net']['name'] == 'resnet101_sd_block' and model.recipe['drop_warmup'] == 0.1


class Shared(nn.Module, PyTorchModelHubMixin):
    def __init__(self, name='resnet50_sd_block', **kwargs):
        super().__init__()
        self.net = timm.create_model(name, **SIZES, **kwargs)

    def forward(self, x):
        return self.net(x)


@torch.no_grad()
def test_the_hubs_mixin_builds_a_plain_network(tmp_path):
    model = randomize(Shared(name='resnet50_sd_block', drop_path_rate=0.5, drop_distribution='uniform')).eval()
    ts.fold_stochastic_depth(model).save_pretrained(tmp_path)
    loaded = Shared.from_pretrained(tmp_path).eval()
    assert not ts.drop_rates(loaded)
    x = images(2, 32)
    assert_same_output(loaded(x), model(x))


def transformers_wrapper(kind, **model_args):
    import transformers

    config = transformers.TimmWrapperConfig(
        architecture='resnet50_sd_block',
        model_args=dict(drop_path_rate=0.5, layers=[1, 1, 1, 1], base_width=8, **model_args),
        num_labels=4,
    )
    return randomize(getattr(transformers, kind)(config)).eval()


@torch.no_grad()
@pytest.mark.parametrize('model_args', [{}, dict(scale_by_keep=True, skip_dropped=False)])
@pytest.mark.parametrize('kind', ['TimmWrapperForImageClassification', 'TimmWrapperModel'])
def test_what_transformers_saves_of_a_folded_wrapper_is_plain(kind, model_args, tmp_path):
    model = transformers_wrapper(kind, **model_args)
    folded = ts.fold_stochastic_depth(model).eval()
    folded.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert not ts.drop_rates(loaded)
    assert folded.config.architecture == loaded.config.architecture == 'resnet50'
    assert loaded.config.model_args == dict(layers=[1, 1, 1, 1], base_width=8)
    assert model.config.architecture == 'resnet50_sd_block' and model.config.model_args['drop_path_rate'] == 0.5
    x = images(2, 32)
    for network in (folded, loaded):
        assert_same_output(network(x)[0], model(x)[0])


@torch.no_grad()
def test_configurations_of_transformers_within_others():
    import transformers

    outer = Holder(transformers_wrapper('TimmWrapperForImageClassification'))
    outer.config = transformers.PretrainedConfig()
    outer.config.vision_config = outer.net.config
    outer.config.backbone_config = transformers.TimmBackboneConfig(backbone='resnet50_sd_block')
    folded = ts.fold_stochastic_depth(outer)
    assert folded.config.vision_config is folded.net.config and folded.net.config.architecture == 'resnet50'
    assert folded.config.backbone_config.backbone == 'resnet50'


def fold_ddp(rank):
    torch.manual_seed(0)
    model = create()
    ddp = nn.parallel.DistributedDataParallel(model)
    ddp.train()(images(2, 32)).sum().backward()
    if rank == 0:
        ts.fold_stochastic_depth(ddp)  # one rank may do it alone
    folded = ts.fold_stochastic_depth(ddp).eval()
    x = images(2, 32)
    with torch.no_grad():
        assert_same_output(folded.module(x), model.eval()(x))
    assert folded.module.pretrained_cfg['architecture'] == 'resnet50'
    folded.train()(x + rank).sum().backward()  # it is a network of DDP, too, whose gradients are averaged
    return [p.grad for p in folded.module.parameters()]


def test_ddp_is_folded(run_ranks):
    grads = run_ranks(fold_ddp)
    assert all(torch.equal(a, b) and a.abs().sum() > 0 for a, b in zip(*grads))


def test_ddp_of_one_rank_is_folded():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        fold_ddp(0)
    finally:
        dist.destroy_process_group()
