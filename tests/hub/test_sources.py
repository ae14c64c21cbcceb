"""Checkpoints, folders and cards, without a server."""

import argparse
import copy
import json
import resource
import shutil
import warnings

import pytest
import timm
import torch
from forks import run_python
from huggingface_hub import ModelCard
from networks import LAYERS, assert_same_output, images, small_resnet
from safetensors.torch import load_file, save_file
from timm.models import clean_state_dict

import timm_stochdepth as ts
from timm_stochdepth.cli.main import main
from timm_stochdepth.hub.card import code_blocks
from timm_stochdepth.hub.folder import save_weights, write_folder
from timm_stochdepth.hub.load import load_model
from timm_stochdepth.hub.pull import check_inside
from timm_stochdepth.hub.record import TrainingRecord


def run_args(**kwargs):
    defaults = dict(
        model='resnet50_sd_block', num_classes=10, drop_path=0.3, model_kwargs=LAYERS, pretrained=False, epochs=2,
        data_dir='/home/somebody/secret/digits', img_size=32, eval_metric='top1', lr=0.1,
    )  # fmt: skip
    return argparse.Namespace(**{**defaults, **kwargs})


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    """A checkpoint as timm's train.py writes it: path, model, EMA model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('checkpoint')
    model, ema = (small_resnet(num_classes=10, drop_path_rate=0.3) for _ in range(2))
    path = folder / 'model_best.pth.tar'
    contents = dict(
        epoch=1, arch='resnet50_sd_block', state_dict=model.state_dict(), args=run_args(), metric=97.5, version=2,
        state_dict_ema=ema.state_dict(),
    )  # fmt: skip
    torch.save(contents, path)
    return path, model, ema


@pytest.fixture(scope='session')
def folder(checkpoint, tmp_path_factory):
    """What would be pushed of that checkpoint."""
    path = tmp_path_factory.mktemp('folder')
    write_folder(*load_model(checkpoint[0])[:1], path, 'user/digits', load_model(checkpoint[0])[1])
    return path


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / 'copy')


def test_a_checkpoint_is_rebuilt_with_its_settings(checkpoint):
    path, model, ema = checkpoint
    x = images(2, 32)
    loaded, record = load_model(path)
    assert torch.equal(loaded.eval()(x), model(x))
    assert ts.drop_rates(loaded) == ts.drop_rates(model)
    assert record.results == {'top1': 97.5} and record.epoch == 1
    assert torch.equal(load_model(path, use_ema=True)[0].eval()(x), ema(x))


def test_results_come_from_the_summary(checkpoint, tmp_path):
    shutil.copy(checkpoint[0], tmp_path)
    (tmp_path / 'summary.csv').write_text('epoch,train_loss,eval_loss,eval_top1,lr\n0,3,2,50,0.1\n1,2,1.5,97.5,0.1\n')
    assert load_model(tmp_path / 'model_best.pth.tar')[1].results == {'loss': 1.5, 'top1': 97.5}


def test_a_folder_loads_bit_equal_and_says_nothing(checkpoint, folder):
    x = images(2, 32)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert torch.equal(loaded(x), checkpoint[1](x))
    config = json.loads((folder / 'config.json').read_text())
    assert config['model_args'].items() >= ts.stochastic_depth_args(checkpoint[1]).items()
    assert config['pretrained_cfg']['input_size'] == [3, 32, 32]


@pytest.mark.parametrize('written_as', ['train checkpoint', 'safetensors'])
@pytest.mark.parametrize('stochastic', [True, False])
def test_files_that_name_their_architecture_need_no_assumption(checkpoint, tmp_path, written_as, stochastic):
    model = checkpoint[1] if stochastic else ts.fold_stochastic_depth(checkpoint[1])
    if written_as == 'safetensors':
        path = tmp_path / 'model.safetensors'
        save_weights(model, path)
    else:
        path = tmp_path / 'model.pth.tar'
        torch.save(dict(arch=model.pretrained_cfg['architecture'], state_dict=model.state_dict()), path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loaded = timm.create_model(
            'resnet50_sd_block',
            pretrained=True,
            pretrained_cfg_overlay=dict(file=str(path), num_classes=10),
            num_classes=10,
            drop_path_rate=0.3,
            **LAYERS,
        )
    x = images(2, 32)
    assert_same_output(loaded.eval()(x), checkpoint[1](x))


def test_checkpoints_without_a_word_of_their_origin_are_told(checkpoint, tmp_path):
    torch.save(clean_state_dict(checkpoint[1].state_dict()), tmp_path / 'model.pth')
    with pytest.warns(UserWarning, match='The weights do not say what drop rates they are for'):
        timm.create_model('resnet50_sd_block', num_classes=10, checkpoint_path=str(tmp_path / 'model.pth'), **LAYERS)
    plain = timm.create_model('resnet50', num_classes=10, **LAYERS)
    with pytest.warns(UserWarning, match='The weights are of a plain network. They are loaded as they are'):
        copy.deepcopy(checkpoint[1]).load_state_dict(plain.state_dict())


def test_the_card_is_what_the_hub_reads(folder):
    card = ModelCard.load(folder / 'README.md')
    assert card.data.library_name == 'timm' and card.data.pipeline_tag == 'image-classification'
    assert card.data.license is None and card.data.base_model is None
    assert 'stochastic-depth' in card.data.tags
    (result,) = card.data.eval_results
    assert result.metric_value == 97.5 and result.dataset_name == 'digits'
    assert '/home/somebody' not in card.content and '| drop_path | 0.3 |' in card.content
    assert '![drop rate of each block](drop_rates.png)' in card.content
    assert (folder / 'drop_rates.png').read_bytes().startswith(b'\x89PNG')
    assert len(code_blocks(card.content)) == 3


def test_licence_and_origin_are_those_of_the_base_weights(checkpoint, tmp_path):
    args = vars(run_args(model='resnet50_sd_block.fb_swsl_ig1b_ft_in1k', pretrained=True))
    write_folder(checkpoint[1], tmp_path, 'user/digits', TrainingRecord(args=args))
    card = ModelCard.load(tmp_path / 'README.md')
    assert card.data.license == 'cc-by-nc-4.0'
    assert card.data.base_model == 'timm/resnet50.fb_swsl_ig1b_ft_in1k'
    assert json.loads((tmp_path / 'config.json').read_text())['pretrained_cfg']['license'] == 'cc-by-nc-4.0'


def test_verify_says_yes_and_the_cards_programs_run(folder, capsys):
    assert main(['verify', str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [['ok', 'weights:'], ['ok', 'config:'], ['ok', 'card:']]
    assert '3 programs run' in lines[2]


def alter(folder, change):
    weights = load_file(folder / 'model.safetensors')
    change(weights)
    save_file(weights, folder / 'model.safetensors')


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda w: w['layer1.0.conv1.weight'].fill_(float('nan')), 'layer1.0.conv1.weight holds values that are not'),
        (lambda w: w.pop('fc.bias'), 'does not fit the model'),
        (lambda w: w.update({'fc.bias': torch.zeros(11)}), 'size mismatch for fc.bias'),
        (lambda w: w.update({'fc.bias': torch.zeros(10, dtype=torch.int64)}), 'fc.bias must be torch.float32'),
    ],
)
def test_verify_says_no_to_wrong_tensors(folder, tmp_path, change, message, capsys):
    path = copy_of(folder, tmp_path)
    alter(path, change)
    assert main(['verify', str(path)]) == 1
    assert 'FAILED  weights: ' in (out := capsys.readouterr().out) and message in out


def test_verify_runs_no_foreign_program(folder, tmp_path, capsys):
    path = copy_of(folder, tmp_path)
    card = (path / 'README.md').read_text()
    (path / 'README.md').write_text(card.replace('loss.backward()', f'open({str(tmp_path / "run")!r}, "w")'))
    assert main(['verify', str(path)]) == 1
    assert 'they are not run' in capsys.readouterr().out
    assert not (tmp_path / 'run').exists()


def edit_config(folder, **changes):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    'damage, message',
    [
        (
            lambda p: edit_config(p, architecture='resnet51'),
            "architecture must be a name that timm knows, but got 'resn",
        ),
        (lambda p: edit_config(p, model_args={'drop_paths': 0.1}), 'model_args must be arguments of resnet50_sd_block'),
        (lambda p: edit_config(p, model_args={'drop_path_rate': 7}), 'drop_path_rate must be in [0, 1], but got 7'),
        (lambda p: (p / 'config.json').write_text('{'), 'is not JSON'),
        (lambda p: (p / 'config.json').unlink(), 'must hold a file config.json'),
        (lambda p: (p / 'model.safetensors').write_bytes(b'x' * 99), 'truncated or altered'),
        (
            lambda p: (p / 'model.safetensors').write_bytes((p / 'model.safetensors').read_bytes()[:-5000]),
            'truncated or altered',
        ),
        (lambda p: edit_config(p, model_args={'num_classes': 11}), 'does not fit the model'),
        (lambda p: edit_config(p, model_args=[1]), 'must be a dictionary, but is [1]'),
        (lambda p: edit_config(p, pretrained_cfg=[1]), 'must be a dictionary, but is [1]'),
        (lambda p: edit_config(p, pretrained_cfg={'colour': 1}), 'must have keys of url, file'),
        (lambda p: edit_config(p, num_classes='10'), 'must be a whole number, 0 or more, but is '),
        (lambda p: edit_config(p, num_classes=None), 'must be a whole number, 0 or more, but is None'),
        (lambda p: edit_config(p, architecture=7), 'must name an architecture'),
        (lambda p: edit_config(p, label_names=['a', 'b']), 'must be 10 names, as num_classes says'),
        (
            lambda p: (p / 'config.json').write_text('{"architecture": "resnet50_sd_block"}'),
            'must hold a pretrained_cfg',
        ),
        (lambda p: (p / 'config.json').write_text('[]'), 'must name an architecture'),
        (lambda p: (p / 'model.safetensors').unlink(), 'must hold weights, as model.safetensors'),
        (lambda p: [(p / 'model.safetensors').unlink(), (p / 'model.safetensors').mkdir()], 'must hold weights, as'),
        (lambda p: alter(p, lambda w: w['fc.bias'].fill_(float('nan'))), 'fc.bias holds values that are not finite'),
    ],
)
def test_a_broken_folder_is_one_sentence(folder, tmp_path, damage, message, capsys):
    path = copy_of(folder, tmp_path)
    damage(path)
    assert main(['push', str(path), 'user/digits', '--dry-run']) == 1
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1


class Evil:
    def __reduce__(self):
        return print, ('run',)


@pytest.mark.parametrize(
    'contents, message',
    [
        (dict(state_dict={}, args=Evil()), 'could run any code'),
        (dict(weights={}), "as one of state_dict, model, state_dict_ema, model_ema, but 'weights' is a dict"),
        (dict(state_dict={}), 'must hold weights, but its state_dict is empty'),
        (dict(state_dict=[torch.zeros(1)]), "must hold a state_dict, but its 'state_dict' is a list"),
        ([1, 2], 'must hold a checkpoint or a state_dict, but holds a list'),
        (dict(state_dict={'fc.bias': torch.zeros(10)}), 'does not say which network it is for, and its tensors are'),
        (dict(state_dict={'fc.bias': torch.zeros(10)}, arch='resnet50_sd_block'), 'does not fit the model'),
        (dict(state_dict={'fc.bias': torch.zeros(10)}, arch='resnet51'), "'resnet51', a name that timm does not know"),
    ],
)
def test_a_broken_checkpoint_is_one_sentence(tmp_path, contents, message, capsys):
    torch.save(contents, tmp_path / 'x.pth.tar')
    assert main(['push', str(tmp_path / 'x.pth.tar'), 'user/digits', '--dry-run']) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count('\n') == 1 and 'run' not in captured.out


def test_a_truncated_checkpoint_is_one_sentence(checkpoint, tmp_path, capsys):
    (tmp_path / 'x.pth.tar').write_bytes(checkpoint[0].read_bytes()[:100_000])
    assert main(['push', str(tmp_path / 'x.pth.tar'), 'user/digits', '--dry-run']) == 1
    assert 'is truncated or no checkpoint' in capsys.readouterr().err


def test_dry_run_shows_every_file(checkpoint, capsys):
    assert main(['push', str(checkpoint[0]), 'user/digits', '--dry-run']) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[:4]] == [
        'README.md', 'config.json', 'drop_rates.png', 'model.safetensors',
    ]  # fmt: skip
    assert 'Nothing was sent to user/digits.' in out


@pytest.mark.parametrize('repo_id', ['../x', 'a/b/c', 'user/..', 'user/-x', 'user/x.git', 'us er/x'])
def test_a_wrong_repo_id_is_refused(checkpoint, repo_id, capsys):
    assert main(['push', str(checkpoint[0]), repo_id, '--dry-run']) == 2
    assert 'repo_id must be' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['../x', 'a/../../x', '/etc/x'])
def test_a_file_name_that_leads_outside_is_refused(name, tmp_path):
    check_inside(tmp_path, 'a/b/../c')
    with pytest.raises(ValueError, match='must stay inside of its folder'):
        check_inside(tmp_path, name)


def test_labels_have_to_be_as_many_as_the_classes(checkpoint):
    with pytest.raises(ValueError, match='label_names must be 10 names, but got 2'):
        ts.push_to_hub(checkpoint[1], 'user/digits', label_names=['a', 'b'], dry_run=True)


def test_fold_and_unfold(checkpoint, tmp_path, capsys):
    plain, back = tmp_path / 'plain.safetensors', tmp_path / 'back.safetensors'
    assert main(['fold', str(checkpoint[0]), str(plain)]) == 0
    assert float(capsys.readouterr().out.split()[-1]) < 1e-4
    reference = timm.create_model('resnet50', num_classes=10, **LAYERS)
    reference.load_state_dict(load_file(plain), strict=True)
    x = images(2, 32)
    with torch.no_grad():
        assert_same_output(reference.eval()(x), load_model(checkpoint[0])[0].eval()(x))

    unfold = [
        '--unfold',
        'resnet50_sd_block',
        '--drop-path',
        '0.3',
        '--model-kwargs',
        'layers=[1,2,1,1]',
        'base_width=8',
    ]
    assert main(['fold', str(plain), str(back), *unfold]) == 0
    assert float(capsys.readouterr().out.split()[-1]) < 1e-4
    original = torch.load(checkpoint[0], weights_only=False)['state_dict']
    for key, value in load_file(back).items():
        torch.testing.assert_close(value, original[key])
    assert main(['fold', str(plain), str(back), '--unfold', 'resnet50', '--force']) == 1
    assert '--unfold must be one of' in capsys.readouterr().err


def test_a_full_disk_leaves_what_was_there(checkpoint, tmp_path):
    target = tmp_path / 'plain.safetensors'
    save_file({'before': torch.ones(1)}, target)
    before = target.read_bytes()
    limit = resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)
    result = run_python('-m', 'timm_stochdepth', 'fold', checkpoint[0], target, '--force', limit=limit)
    assert result.returncode == 1, result.stderr
    assert result.stderr.count('\n') == 1 and 'Traceback' not in result.stderr
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def test_fold_writes_the_same_weights_again_and_replaces_others_by_force_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = dict(num_classes=4, layers=[1, 1, 1, 1], base_width=8)
    for name in ('first', 'second'):
        torch.save(timm.create_model('resnet50_sd_block', **small).state_dict(), f'{name}.pth')
    args = ['--model', 'resnet50_sd_block', '--model-kwargs', 'layers=[1, 1, 1, 1]', 'base_width=8']
    for _ in range(2):
        assert main(['fold', 'first.pth', 'folded.safetensors', *args]) == 0
    before = (tmp_path / 'folded.safetensors').read_bytes()
    assert main(['fold', 'second.pth', 'folded.safetensors', *args]) != 0
    assert 'which is there already: --force replaces it' in capsys.readouterr().err
    assert (tmp_path / 'folded.safetensors').read_bytes() == before
    assert main(['fold', 'second.pth', 'folded.safetensors', '--force', *args]) == 0
    assert (tmp_path / 'folded.safetensors').read_bytes() != before
