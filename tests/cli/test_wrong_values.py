"""Wrong values for every argument of every command, by what kind of argument it is: found from the parsers."""

import argparse
import os
import shutil

import pytest
from argument_kinds import kind_of, setting_of
from folders import KINDS, snapshot

from timm_stochdepth.cli import arguments as kind
from timm_stochdepth.cli.main import create_parsers, main

LONG = 'n' * 300

WRONG = {
    kind.text: ['', ' '],
    kind.model_name: ['', 'a name', 'resnet50_sd_blok', 'no-such-net', 'res\nnet'],
    kind.choice: ['', 'LINEAR', 'other'],
    kind.whole_number: ['', '-1', '1.5', 'nan', 'inf', '1e3', 'one', str(2**40)],
    kind.fraction: ['', '-0.1', '1.1', 'nan', 'inf', '-inf', '0,5', 'half'],
    kind.schedule: ['', '0', '0:1,', '0:1:2', '0.2:1,0.2:0', '0:2', '0:x', '0:nan', '0;1'],
    kind.key_value: ['', 'foo', '=1', '1a=2', 'a b=1'],
    kind.device: ['', 'foo', 'gpu', 'cuda:x', 'cuda:-1', 'mps', 'meta', 'CPU', 'cuda:999'],
    kind.repo_id: ['', 'a/b/c', 'user/', '/name', 'my user/x', 'a--b', 'a..b', 'x.git', 'user/é', '.x', 'u/' + LONG],
    kind.input_path: ['', 'missing', 'folder', 'notes.txt/x', LONG],
    kind.license_name: ['', 'MIT License', 'Apache-2.0', '-'],
    kind.network: [
        *('', './missing', 'missing.pth.tar', 'a/b/c', 'user/', 'hf-hub:', 'hf-hub:a/b/c', 'local-dir:missing'),
        *('local-dir:notes.txt', 'resnet50_sd_blok', 'res\nnet', LONG),
    ],
    kind.output_file: [
        *('', '.', 'folder', 'new/', 'notes.txt/new.png', 'new.xyz', 'new', 'new.PNG', 'notes.txt', 's3://b/x.png'),
        LONG + '.png',
    ],
    kind.output_folder: ['', 'notes.txt', 'notes.txt/x', 'folder', 'dangling', 's3://bucket/x', LONG],
}
RIGHT = {
    kind.model_name: 'resnet50_sd_block',
    kind.repo_id: 'user/name',
    kind.input_path: 'script.py',
    kind.network: 'script.py',
    kind.output_folder: 'new',
}


def arguments(*kinds):
    """Each argument that takes a value, with its command; the arguments of a script that is run are the script's."""
    for name, parser in create_parsers()[1].items():
        for action in parser._actions:
            takes_value = action.nargs not in (0, argparse.REMAINDER)
            if takes_value and (kind_of(action) in kinds if kinds else action.type):
                yield name, action


def command_line(name, action, value, right=RIGHT):
    """The command with a value for one argument, and right ones for the others that it needs."""
    line = [name]
    for other in create_parsers()[1][name]._actions:
        if other.dest == action.dest:
            line += [f'{action.option_strings[-1]}={value}' if action.option_strings else value]
        elif other.required and other.nargs != argparse.REMAINDER:
            is_name = name == 'show' and right is RIGHT and kind_of(other) is kind.network  # it needs no weights
            line += ['resnet50_sd_block' if is_name else right.get(kind_of(other)) or f'new{setting_of(other)[0]}']
    return line


def title(name, action):
    return f'{name} {argument_name(action)}'


def argument_name(action):
    return '/'.join(action.option_strings) or action.metavar or action.dest


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'notes.txt').write_text('my notes')
    (tmp_path / 'script.py').touch()
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'notes.txt').write_text('my notes')
    (tmp_path / 'dangling').symlink_to('nothing')
    return tmp_path


def refused(line, place, capsys):
    """The one line in which a command is refused, having changed nothing."""
    before = snapshot(place)
    status = main(line)
    out, err = capsys.readouterr()
    (err,) = err.splitlines()
    assert out == ''  # before the work
    assert status in (1, 2), line
    assert err.startswith(f'timm-stochdepth {line[0]}: '), err
    assert 'Traceback' not in err and 'internal error' not in err
    assert snapshot(place) == before
    return err


@pytest.mark.parametrize('name, action', [pytest.param(*a, id=title(*a)) for a in arguments()])
def test_a_wrong_value_is_told_with_the_arguments_name(name, action, place, capsys):
    for value in WRONG[kind_of(action)]:
        if value and value == setting_of(action):  # a folder where one is read
            continue
        err = refused(command_line(name, action, value), place, capsys)
        assert argument_name(action) in err and repr(value) in err, err


FILES = list(arguments(kind.output_file))
FOLDERS = list(arguments(kind.output_folder))


def test_there_are_arguments_of_each_kind_to_test():
    """None is without a kind, so that no path can be without one."""
    assert {name for name, _ in FILES} >= {'show', 'fold'}
    assert {name for name, _ in FOLDERS} >= {'demo', 'pull', 'push', 'bench'}
    assert {kind_of(action) for _, action in arguments()} <= set(WRONG)


@pytest.mark.parametrize('name, action', [pytest.param(*a, id=title(*a)) for a in FILES])
def test_a_file_takes_no_place_of_somebodys(name, action, place, capsys):
    for suffix in setting_of(action):
        theirs = place / f'theirs{suffix}'
        theirs.write_text('my notes')
        err = refused(command_line(name, action, str(theirs)), place, capsys)
        assert argument_name(action) in err and str(theirs) in err and '--force' in err
        theirs.unlink()
        theirs.mkdir()
        (theirs / 'notes.txt').write_text('my notes')
        refused([*command_line(name, action, str(theirs)), '--force'], place, capsys)
        shutil.rmtree(theirs)


@pytest.mark.parametrize('name, action', [pytest.param(*a, id=title(*a)) for a in FILES])
def test_what_is_read_is_not_written_to(name, action, place, capsys):
    if not any(command == name for command, _ in arguments(kind.network)):
        return
    for suffix in setting_of(action):
        source = place / f'source{suffix}'
        KINDS[f'a{suffix}'](source)
        (place / f'link{suffix}').symlink_to(source.name)
        os.link(source, place / f'hard{suffix}')
        for target in ('source', './source', 'folder/../source', 'link', 'hard'):
            line = command_line(name, action, f'{target}{suffix}', {**RIGHT, kind.network: source.name})
            assert 'must not be what is read' in refused([*line, '--force'], place, capsys)


@pytest.mark.parametrize('name, action', [pytest.param(*a, id=title(*a)) for a in FOLDERS])
def test_a_folder_of_others_is_not_written_to(name, action, place, capsys):
    for target in ('folder', 'notes.txt', 'folder/notes.txt', 'dangling'):
        err = refused(command_line(name, action, target), place, capsys)
        assert argument_name(action) in err and repr(target) in err
