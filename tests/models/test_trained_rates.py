"""Weights keep their function, whatever rates they were trained for and wherever they come from."""

import argparse
import json
import warnings
from itertools import product

import huggingface_hub
import pytest
import timm
import torch
from networks import LAYERS, assert_same_output, images, randomize
from safetensors.torch import save_file
from timm.models import clean_state_dict

import timm_stochdepth as ts
from timm_stochdepth.checkpoints.drop_options import LauncherError
from timm_stochdepth.hub.folder import save_weights, write_folder
from timm_stochdepth.hub.load import load_model
from timm_stochdepth.integrations.timm_scripts.launcher import helped
from timm_stochdepth.integrations.timm_scripts.script_run import ScriptRun

TRAINED = {
    'plain': {},
    'another rate': dict(drop_path_rate=0.6),
    'another distribution': dict(drop_path_rate=0.3, drop_distribution='uniform'),
    'another convention': dict(drop_path_rate=0.3, scale_by_keep=True),
}
TARGETS = {
    'default': {},
    'uniform': dict(drop_path_rate=0.4, drop_distribution='uniform'),
    'scale_by_keep': dict(drop_path_rate=0.5, scale_by_keep=True),
    'warm-up': dict(drop_path_rate=0.5, drop_warmup=0.5),
    'zero': dict(drop_path_rate=0.0),
}


class Source:
    """A network that was trained, in all the forms that weights come in."""

    def __init__(self, method, trained, tmp_path):
        torch.manual_seed(0)
        self.is_plain = trained == 'plain'
        self.name = f'resnet50_sd_{method}'
        self.trained_name = 'resnet50' if self.is_plain else self.name
        self.trained = TRAINED[trained]
        self.model = randomize(timm.create_model(self.trained_name, **LAYERS, **self.trained)).eval()
        self.path = tmp_path

    def write_repository(self, repo_id):
        """As the Hub's client caches a repository."""
        revision = '0' * 40
        repository = self.path / 'cache' / f'models--{repo_id.replace("/", "--")}'
        (repository / 'refs').mkdir(parents=True)
        (repository / 'refs' / 'main').write_text(revision)
        self.write_folder(repository / 'snapshots' / revision)

    def write_folder(self, folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if self.is_plain:
            timm.models.save_for_hf(self.model, str(folder), safe_serialization=True)
        else:
            write_folder(self.model, folder, 'user/net')

    def write_checkpoint(self):
        kwargs = {k: v for k, v in self.trained.items() if k != 'drop_path_rate'}
        args = argparse.Namespace(
            model=self.trained_name, drop_path=self.trained.get('drop_path_rate'), model_kwargs={**LAYERS, **kwargs}
        )
        path = self.path / 'last.pth.tar'
        # without the metadata that torch.save would keep: the arguments of the run have to do
        torch.save(dict(arch=args.model, args=args, state_dict=clean_state_dict(self.model.state_dict())), path)
        return path

    def create(self, **kwargs):
        return timm.create_model(self.name, **{**LAYERS, **kwargs})


def from_tag(source, target):
    source.write_repository('timm/resnet50.a1_in1k')
    return timm.create_model(
        f'{source.name}.a1_in1k', pretrained=True, cache_dir=source.path / 'cache', **LAYERS, **target
    )


def from_hub(source, target):
    source.write_repository('user/net')
    kwargs = dict(pretrained=True, cache_dir=source.path / 'cache', **target)
    if source.is_plain:
        return source.create(pretrained_cfg_overlay=dict(hf_hub_id='user/net'), **kwargs)
    return timm.create_model('hf-hub:user/net', **kwargs)


def from_folder(source, target):
    source.write_folder(source.path / 'net')
    if source.is_plain:
        overlay = dict(file=str(source.path / 'net' / 'model.safetensors'))
        return source.create(pretrained=True, pretrained_cfg_overlay=overlay, fold_pretrained=True, **target)
    return timm.create_model(f'local-dir:{source.path / "net"}', pretrained=True, **target)


def from_checkpoint(source, target):
    return load_model(source.write_checkpoint())[0]


def from_given_state_dict(source, target):
    overlay = dict(state_dict=source.model.state_dict())
    return source.create(pretrained=True, pretrained_cfg_overlay=overlay, **target)


def from_given_cfg(source, target):
    cfg = dict(source.model.pretrained_cfg, architecture=source.name, hf_hub_id=None, url=None)
    cfg['state_dict'] = source.model.state_dict()
    return source.create(pretrained=True, pretrained_cfg=cfg, **target)


def from_checkpoint_as_file(source, target):
    return source.create(pretrained=True, pretrained_cfg_overlay=dict(file=str(source.write_checkpoint())), **target)


def from_safetensors(source, target):
    path = source.path / 'model.safetensors'
    save_weights(source.model, path)
    return source.create(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **target)


def from_state_dict(source, target):
    path = source.path / 'model.pth'
    torch.save(source.model.state_dict(), path)
    return source.create(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **target)


def from_initial_checkpoint(source, target):
    with helped(ScriptRun()):  # as under the launcher
        return source.create(checkpoint_path=str(source.write_checkpoint()), **target)


def from_initial_state_dict(source, target):
    path = source.path / 'model.pth'
    torch.save(source.model.state_dict(), path)
    with helped(ScriptRun()):
        return source.create(checkpoint_path=str(path), **target)


SOURCES = {
    'hub': from_hub,
    'folder': from_folder,
    'given state_dict': from_given_state_dict,
    'given pretrained_cfg': from_given_cfg,
    'checkpoint as file': from_checkpoint_as_file,
    'safetensors': from_safetensors,
    'state_dict': from_state_dict,
    'initial checkpoint': from_initial_checkpoint,
    'initial state_dict': from_initial_state_dict,
}


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


OTHER_TARGETS = [target for target in TARGETS if target != 'default']
MATRIX = [
    *product(SOURCES, ('sample', 'block'), TRAINED, ['default']),
    *product(['tag'], ('sample', 'block'), ['plain'], ['default']),
    *product(['checkpoint'], ('sample', 'block'), [t for t in TRAINED if t != 'plain'], ['default']),
    *product(['folder', 'checkpoint as file', 'state_dict'], ['sample'], ['another rate'], OTHER_TARGETS),
]


@pytest.mark.parametrize('source, method, trained, target', MATRIX)
def test_the_function_stays_and_nothing_is_assumed(source, method, trained, target, tmp_path, offline):
    written = Source(method, trained, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', 'drop_rate is 0')
        model = {**SOURCES, 'tag': from_tag, 'checkpoint': from_checkpoint}[source](written, TARGETS[target])
        assert max(ts.drop_rates(model).values()) == TARGETS[target].get('drop_path_rate', max_rate(source, written))
    x = images(2)
    with torch.no_grad():
        y = written.model(x)
        assert_same_output(model.eval()(x), y)
        if target == 'warm-up':
            ts.start_warmup(model)
            assert max(ts.drop_rates(model).values()) == 0.0
            assert_same_output(model(x), y)


def max_rate(source, written):
    """The rate of a network that is asked for without one: that of its config, or the default of its name."""
    if source in ('hub', 'folder', 'checkpoint') and not written.is_plain:
        return written.trained['drop_path_rate']
    return {'sample': 0.1, 'block': 0.2}[written.name.split('_')[-1]]


def bare(source):
    path = source.path / 'bare.safetensors'
    save_file(source.model.state_dict(), path)
    return path


def load_pretrained_path(source, path, **kwargs):
    return source.create(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **kwargs)


def load_initial_checkpoint(source, path, **kwargs):
    with helped(ScriptRun()):
        return source.create(checkpoint_path=str(path), **kwargs)


def load_checkpoint_of_validation(source, path, **kwargs):
    with helped(ScriptRun()):
        model = source.create(**kwargs)
        timm.models.load_checkpoint(model, str(path), False)
    return model


DOORS = [load_pretrained_path, load_initial_checkpoint, load_checkpoint_of_validation]


@pytest.mark.parametrize('load', DOORS)
@pytest.mark.parametrize('trained', ['plain', 'another rate'])
def test_weights_that_say_nothing_are_taken_for_plain_ones_with_a_word(trained, load, tmp_path):
    source = Source('block', trained, tmp_path)
    path = bare(source)
    with pytest.warns(UserWarning, match='fold_pretrained=False loads them as they are') as record:
        model = load(source, path).eval()
    assert '--model-kwargs' in str(record[0].message)
    x = images(2)
    with torch.no_grad():
        if source.is_plain:
            assert_same_output(model(x), source.model(x))
        with warnings.catch_warnings():  # it says so, and is heeded
            warnings.simplefilter('error')
            model = load(source, path, fold_pretrained=source.is_plain, **source.trained).eval()
        assert_same_output(model(x), source.model(x))


@pytest.mark.parametrize('load', DOORS)
def test_what_is_said_of_this_load_counts_more_than_what_the_file_says(load, tmp_path):
    source = Source('block', 'another rate', tmp_path)
    path = source.write_checkpoint()
    for fold_pretrained, factor in ((False, 1), (True, 1 / (1 - 0.2))):  # at the default rate, with no warning
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            model = load(source, path, fold_pretrained=fold_pretrained)
        key = 'layer4.0.bn3.weight'
        torch.testing.assert_close(model.state_dict()[key], factor * source.model.state_dict()[key])


def test_a_run_that_is_resumed_keeps_its_weights_at_each_door(tmp_path):
    source = Source('block', 'another rate', tmp_path)
    path = tmp_path / 'model.pth'
    torch.save(source.model.state_dict(), path)
    run = ScriptRun()
    run.args = argparse.Namespace(model=source.name, resume=str(path))
    with helped(run):  # as an older train.py of timm's loads the EMA weights
        model = source.create(**source.trained, drop_warmup=0.5)
        ts.start_warmup(model)
        timm.models.load_checkpoint(model, str(path))
    assert all(torch.equal(v, source.model.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('trained', TRAINED)
@pytest.mark.parametrize('load', DOORS)
def test_a_plain_network_takes_no_weights_that_say_other_scales(load, trained, tmp_path):
    source = Source('block', trained, tmp_path)
    path = source.write_checkpoint()
    source.name = 'resnet50'
    with helped(ScriptRun()):
        if trained not in ('plain', 'another convention'):
            with pytest.raises(LauncherError, match=r'of resnet50_sd_block, .* timm-stochdepth fold .*last.pth.tar'):
                load(source, path)
            return
        model = load(source, path).eval()
    x = images(2)
    with torch.no_grad():
        assert_same_output(model(x), source.model(x))


@pytest.mark.parametrize('arch', ['resnet', 'hf-hub:user/net', 'local-dir:runs/net', 'resnet50_sd_block', '', None])
def test_a_name_that_says_no_rate_is_told(arch, tmp_path, offline):
    source = Source('block', 'another rate', tmp_path)
    path = tmp_path / 'model.pth'
    torch.save(dict(arch=arch, state_dict=clean_state_dict(source.model.state_dict())), path)
    with pytest.warns(UserWarning, match='The weights do not say'):
        source.create(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))


def test_a_config_that_says_no_rate_is_told(tmp_path):
    source = Source('block', 'another rate', tmp_path)
    timm.models.save_for_hf(source.model, str(tmp_path / 'net'), safe_serialization=True)
    config = json.loads((tmp_path / 'net' / 'config.json').read_text())
    del config['model_args']['drop_path_rate']  # as timm without this package leaves it out
    (tmp_path / 'net' / 'config.json').write_text(json.dumps(config))
    with pytest.warns(UserWarning, match='do not say the drop_path_rate'):
        timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True)
    with pytest.warns(UserWarning, match='does not say the drop_path_rate'):
        load_model(tmp_path / 'net')


@pytest.mark.parametrize('trained', ['plain', 'another rate'])
def test_load_state_dict_loads_as_it_is_and_tells(trained, tmp_path):
    source = Source('block', trained, tmp_path)
    model = source.create()
    with pytest.warns(UserWarning, match='loaded as they are'):
        model.load_state_dict(source.model.state_dict())
    assert all(torch.equal(v, source.model.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_run_that_goes_on_amid_its_warmup_is_told_nothing(tmp_path):
    settings = dict(drop_path_rate=0.5, drop_warmup=0.5, **LAYERS)
    first = timm.create_model('resnet50_sd_block', **settings)
    ts.start_warmup(first)
    ts.set_training_progress(first, 0.2)
    torch.save(first.state_dict(), tmp_path / 'last.pth')
    second = timm.create_model('resnet50_sd_block', **settings)
    ts.start_warmup(second)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        second.load_state_dict(torch.load(tmp_path / 'last.pth', weights_only=True))


@pytest.mark.parametrize('form', ['checkpoint', 'folder', 'safetensors', 'pth'])
def test_a_network_amid_its_warmup_is_saved_for_its_full_rate(form, tmp_path):
    settings = dict(drop_path_rate=0.5, drop_warmup=0.5, **LAYERS)
    model = randomize(timm.create_model('resnet50_sd_sample', **settings)).eval()
    ts.set_training_progress(model, 0.2)
    overlay = {}
    if form == 'checkpoint':  # its metadata holds the scales of the very moment
        torch.save(dict(arch='resnet', state_dict=model.state_dict()), tmp_path / 'last.pth.tar')
        overlay = dict(file=str(tmp_path / 'last.pth.tar'))
    elif form == 'folder':
        write_folder(model, tmp_path / 'net', 'user/net')
    else:
        path = tmp_path / f'model.{form}'
        save_weights(model, path)
        overlay = dict(file=str(path))
    if overlay:
        loaded = timm.create_model('resnet50_sd_sample', pretrained=True, pretrained_cfg_overlay=overlay, **settings)
    else:
        loaded = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True)
    assert max(ts.drop_rates(loaded).values()) == 0.5
    x = images(2)
    with torch.no_grad():
        assert_same_output(loaded.eval()(x), model(x))
