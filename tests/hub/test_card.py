"""What a card says belongs to the weights beside it, and nothing of anybody's disk is in it."""

import argparse
import json

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from networks import LAYERS, randomize

import timm_stochdepth as ts
from timm_stochdepth.cli.main import main
from timm_stochdepth.hub.arguments import read_label_names
from timm_stochdepth.hub.card import create_card
from timm_stochdepth.hub.folder import create_config, write_folder
from timm_stochdepth.hub.load import load_model
from timm_stochdepth.hub.record import TrainingRecord


@pytest.fixture(scope='module')
def model():
    return randomize(timm.create_model('resnet50_sd_block', num_classes=3, **LAYERS))


def save_run(model, folder, summary=None, metric=97.5, epoch=1, **args):
    defaults = dict(
        model='resnet50_sd_block', drop_path=None, model_kwargs=LAYERS, eval_metric='top1', val_split='validation',
        model_ema=False, model_ema_force_cpu=False,
    )  # fmt: skip
    contents = dict(epoch=epoch, args=argparse.Namespace(**{**defaults, **args}), state_dict=model.state_dict())
    contents.update(state_dict_ema=model.state_dict(), **({} if metric is None else dict(metric=metric)))
    torch.save(contents, folder / 'last.pth.tar')
    if summary is not None:
        (folder / 'summary.csv').write_text(summary)
    return folder / 'last.pth.tar'


HEADER = 'epoch,train_loss,eval_loss,eval_top1,lr\n'
SUMMARIES = {
    'no summary': (None, {'top1': 97.5}),
    'the row of the epoch': (HEADER + '0,3,2,50,0.1\n1,2,1.5,97.5,0.1\n', {'loss': 1.5, 'top1': 97.5}),
    'no row of the epoch': (HEADER + '0,3,2,50,0.1\n', {'top1': 97.5}),
    'twice, the later counts': (HEADER + '1,3,2,50,0.1\n1,2,1.5,97.5,0.1\n', {'loss': 1.5, 'top1': 97.5}),
    'twice, with the header': (HEADER + f'1,3,2,50,0.1\n{HEADER}1,2,1.5,97.5,0.1\n', {'loss': 1.5, 'top1': 97.5}),
    'twice, with another header': (
        HEADER + '1,3,2,50,0.1\nepoch,eval_top1,eval_top5\n1,97.5,99.5\n',
        {'top1': 97.5, 'top5': 99.5},
    ),
    'another value': (HEADER + '1,2,1.5,97.4,0.1\n', {}),
    'the earlier one agrees': (HEADER + '1,2,1.5,97.5,0.1\n1,2,1.5,97.4,0.1\n', {}),
    'no value': (HEADER + '1,2,1.5,,0.1\n', {}),
    'not finite': (HEADER + '1,2,nan,97.5,0.1\n', {'top1': 97.5}),
    'no validation': ('epoch,train_loss,train_top1\n1,2,97.5\n', {}),
    'empty': ('', {'top1': 97.5}),
}


@pytest.mark.parametrize('summary', SUMMARIES)
def test_results_are_those_of_the_epoch_or_none(model, summary, tmp_path):
    text, expected = SUMMARIES[summary]
    assert load_model(save_run(model, tmp_path, text))[1].results == expected


@pytest.mark.parametrize(
    'kwargs, raw, ema',
    [
        (dict(), True, False),
        (dict(model_ema=True), False, True),  # train.py scores the EMA weights
        (dict(model_ema=True, model_ema_force_cpu=True), True, False),  # and cannot where they are on the CPU
        (dict(metric=None), False, False),
        (dict(metric=float('nan')), False, False),
        (dict(val_split=''), False, False),
    ],
)
def test_results_are_those_of_the_weights_that_were_scored(model, kwargs, raw, ema, tmp_path):
    path = save_run(model, tmp_path, **kwargs)
    assert bool(load_model(path)[1].results) == raw
    assert bool(load_model(path, use_ema=True)[1].results) == ema


PLACES = {
    r'C:\Users\somebody\Pictures\pets': 'pets',
    r'C:\Users\somebody\pets\\': 'pets',
    'D:/scans/somebody/pets/': 'pets',
    'D:pets': 'pets',
    r'\\server\somebody\pets': 'pets',
    '//server/somebody/pets': 'pets',
    '/home/somebody/pets/': 'pets',
    '~somebody/pets': 'pets',
    'hfds/home/somebody/pets': 'pets',
    '../somebody/pets/.': None,
    '.': None,
    '..': None,
    '/': None,
    'C:\\': None,
    'https://somebody:password@host/pets-{000..010}.tar?token=somebody': 'pets-{000..010}.tar',
    'https://somebody:password@host': None,
    's3://somebody/': None,
    "pipe:curl -s https://host/pets.tar -H 'Authorization: Bearer hf_somebody'": 'pets.tar',
    'pipe:cat /home/somebody/pets.tar | tee somebody': None,
    '/home/somebody/`pets`\n# of ours': 'pets # of ours',
    'pets': 'pets',
}


def published(model, record):
    """The text of what is pushed."""
    config = create_config(model, record)
    return create_card(model, 'user/net', record) + json.dumps(config)


@pytest.mark.parametrize('argument', ['data_dir', 'data', 'dataset'])
@pytest.mark.parametrize('place', PLACES)
def test_the_data_has_a_name_and_no_place(model, place, argument):
    args = {
        'model': 'resnet50_sd_block', argument: place, 'lr': 0.1, 'aa': place,
        'model_kwargs': {'a': f'{place}/x', 'b': {'c': [f'{place}/x']}, 'drop_warmup': 0.1},
        'initial_checkpoint': f'{place}/x.pth',
    }  # fmt: skip
    text = published(model, TrainingRecord(args=args, results={'top1': 90.0}))
    assert 'somebody' not in text and '\\' not in text.replace('\\url', '')
    assert "'drop_warmup': 0.1}" in text and '| lr | 0.1 |' in text
    lines = [line for line in text.splitlines() if line.startswith('Data:')]
    assert lines == ([] if PLACES[place] is None else [f'Data: `{PLACES[place]}`.'])


@pytest.mark.parametrize('dataset', ['hfds/user/pets', 'torch/cifar10', 'tfds/mnist', 'pets'])
def test_a_public_dataset_keeps_its_name(model, dataset):
    args = dict(model='resnet50_sd_block', dataset=dataset, data_dir='/home/somebody/cache')
    card = ModelCard(create_card(model, 'user/net', TrainingRecord(args=args, results={'top1': 90.0})))
    assert f'Data: `{dataset}`.' in card.content and card.data.eval_results[0].dataset_name == dataset


LABELS = {
    'plain': b'ant\nbee\ncat dog\n',
    'no final newline': b'ant\nbee\ncat dog',
    'byte order mark': b'\xef\xbb\xbfant\nbee\ncat dog\n',
    'CRLF': b'ant\r\nbee\r\ncat dog\r\n',
    'CR': b'ant\rbee\rcat dog',
    'all of them': b'\xef\xbb\xbfant\r\nbee \r\ncat dog\r\n\r\n\n',
}


@pytest.mark.parametrize('labels', LABELS)
def test_names_are_read_as_an_editor_shows_them(labels, tmp_path):
    (tmp_path / 'labels.txt').write_bytes(LABELS[labels])
    assert read_label_names(tmp_path / 'labels.txt') == ['ant', 'bee', 'cat dog']


@pytest.mark.parametrize(
    'content, message',
    [
        (b'ant\nbee\n', '--labels must be 3 names, but got 2'),
        (b'ant\nbee\ncat\ndog\neel\n', '--labels must be 3 names, but got 5'),
        (b'', '--labels must be 3 names, but got 0'),
        (b'\n\n', '--labels must be 3 names, but got 0'),
        (b'ant\n\ncat\n', 'number 2 is empty'),
        (b'\nbee\ncat\n', 'number 1 is empty'),
        ('ant\nbee\nBär\n'.encode('latin-1'), 'must be text in UTF-8'),
        ('ant\nbee\ncat\n'.encode('utf-16'), 'must be text in UTF-8'),
    ],
)
def test_names_that_are_not_one_a_class_are_refused(model, content, message, tmp_path, capsys):
    (tmp_path / 'labels.txt').write_bytes(content)
    path = save_run(model, tmp_path)
    status = main(['push', str(path), 'user/net', '--dry-run', '--labels', str(tmp_path / 'labels.txt')])
    assert status == (1 if 'UTF-8' in message else 2)
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1


def test_names_go_to_the_config(model, tmp_path):
    (tmp_path / 'labels.txt').write_bytes(LABELS['all of them'])
    path = save_run(model, tmp_path)
    args = ['--dry-run', '--labels', str(tmp_path / 'labels.txt'), '--out', str(tmp_path / 'net')]
    assert main(['push', str(path), 'user/net', *args]) == 0
    assert json.loads((tmp_path / 'net' / 'config.json').read_text())['label_names'] == ['ant', 'bee', 'cat dog']


@pytest.mark.parametrize(
    'label_names, error', [('abc', TypeError), ([1, 2, 3], TypeError), (['a', 'b'], ValueError), ([], ValueError)]
)
def test_wrong_names_in_python(model, label_names, error):
    with pytest.raises(error, match='label_names must be'):
        ts.push_to_hub(model, 'user/net', label_names=label_names, dry_run=True)


def test_the_card_shows_the_rates_that_the_weights_are_for(tmp_path):
    model = timm.create_model('resnet50_sd_block', num_classes=3, drop_path_rate=0.3, drop_warmup=0.5, **LAYERS)
    ts.set_training_progress(model, 0.1)
    write_folder(model, tmp_path / 'net', 'user/net')
    assert 'rate 0.3 with linear' in (tmp_path / 'net' / 'README.md').read_text()


def test_without_matplotlib_a_table_takes_the_place_of_the_picture(model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib', None)
    write_folder(model, tmp_path / 'net', 'user/net')
    assert sorted(p.name for p in (tmp_path / 'net').iterdir()) == ['README.md', 'config.json', 'model.safetensors']
    card = (tmp_path / 'net' / 'README.md').read_text()
    assert 'drop_rates.png' not in card and '| layer4.0 | 0.2 |' in card
