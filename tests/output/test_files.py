import os
import stat

import pytest
import torch
from folders import SAFETENSORS, snapshot
from safetensors.torch import save_file

from timm_stochdepth.output.files import check_folder, check_new, check_output_file, write_beside, write_into


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / 'new' / 'file.txt'
    for text in ('one', 'two'):
        with write_beside(path, force=True) as beside:
            beside.write_text(text)
            assert not path.exists() or path.read_text() == 'one'
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_new_folder_is_there_when_it_is_whole(tmp_path):
    path = tmp_path / 'folder'
    with write_beside(path) as beside:
        beside.mkdir()
        (beside / 'one').touch()
        assert not path.exists()
    assert [p.name for p in path.iterdir()] == ['one']
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('make', ['file', 'folder'])
@pytest.mark.parametrize('there', ['folder', 'empty folder', 'file', 'link to nothing'])
@pytest.mark.parametrize('force', [False, True])
def test_nothing_is_replaced_but_a_file_by_force(tmp_path, make, there, force):
    path = tmp_path / 'there'
    if 'folder' in there:
        path.mkdir()
    elif there == 'file':
        path.write_text('notes')
    else:
        path.symlink_to('nothing')
    if there == 'folder':
        (path / 'notes.txt').write_text('notes')
    before = snapshot(tmp_path)
    replaced = make == 'file' and force and 'folder' not in there
    try:
        with write_beside(path, force) as beside:
            beside.mkdir() if make == 'folder' else beside.write_text('new')
        assert replaced
    except OSError as e:
        assert str(path) in str(e) and not replaced
    assert snapshot(tmp_path) == ({'there': b'new'} if replaced else before)


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_what_was_there_outlives_an_error(tmp_path, error):
    path = tmp_path / 'file.txt'
    path.write_text('before')
    for target in (path, tmp_path / 'new' / 'folder' / 'file.txt'):
        with pytest.raises(error), write_beside(target, force=True) as beside:
            beside.write_text('half')
            raise error
    assert path.read_text() == 'before'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('umask', [0o022, 0o077, 0o002])
def test_the_mode_is_that_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with write_beside(tmp_path / 'one.safetensors') as beside:
            save_file({'weight': torch.ones(2)}, beside)  # makes files of mode 0600
        with write_beside(tmp_path / 'folder') as beside:
            beside.mkdir()
            save_file({'weight': torch.ones(2)}, beside / 'two.safetensors')
    finally:
        os.umask(before)
    for path in (tmp_path / 'one.safetensors', tmp_path / 'folder' / 'two.safetensors'):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.fixture
def place(tmp_path):
    """A file that is read, links to it, and what a user may have beside it."""
    (tmp_path / 'input.safetensors').write_bytes(SAFETENSORS)
    (tmp_path / 'link.safetensors').symlink_to('input.safetensors')
    os.link(tmp_path / 'input.safetensors', tmp_path / 'hard.safetensors')
    (tmp_path / 'dangling.safetensors').symlink_to('nothing')
    (tmp_path / 'notes.safetensors').write_text('my notes')
    (tmp_path / 'folder.safetensors').mkdir()
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'model.safetensors').write_bytes(SAFETENSORS)
    os.mkfifo(tmp_path / 'pipe.safetensors')
    (tmp_path / 'closed').mkdir(mode=0o500)
    return tmp_path


@pytest.mark.parametrize(
    'target, message',
    [
        ('', 'must be a path'),
        ('new/', 'must be a file'),
        ('run', 'must be a file'),
        ('folder.safetensors', 'must be a file'),
        ('input.safetensors', 'must not be what is read'),
        ('./input.safetensors', 'must not be what is read'),
        ('run/../input.safetensors', 'must not be what is read'),
        ('link.safetensors', 'must not be what is read'),
        ('hard.safetensors', 'must not be what is read'),
        ('run/model.safetensors', 'must not be what is read'),
        ('pipe.safetensors', 'is there already'),
        ('new.txt', r'must end in \.safetensors'),
        ('.safetensors', r'must end in \.safetensors'),
        ('new.pth', r'must end in \.safetensors'),
        ('input.safetensors/new.safetensors', 'must lie in a folder'),
        ('dangling.safetensors/new.safetensors', 'must lie in a folder'),
        ('n' * 300 + '.safetensors', 'too long'),
        ('null\0.safetensors', 'null'),
        ('s3://bucket/x.safetensors', 'on this machine'),
    ],
)
def test_a_file_that_must_not_be_written_whatever_is_forced(place, monkeypatch, target, message):
    monkeypatch.chdir(place)
    before = snapshot(place)
    with pytest.raises((ValueError, OSError), match=message) as error:
        path = check_output_file(target, ['.safetensors'], '--out')
        check_new(path, '--out', True, [place / 'input.safetensors', place / 'run'])
    assert str(error.value).startswith('--out must') and repr(target.removeprefix('./')) in str(error.value)
    assert snapshot(place) == before


@pytest.mark.parametrize('target', ['notes.safetensors', 'dangling.safetensors'])
def test_what_is_there_is_replaced_by_force_alone(place, target):
    with pytest.raises(FileExistsError, match='--out must be new'):
        check_new(place / target, '--out')
    check_new(place / target, '--out', force=True)


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='nothing is closed to root')
def test_a_folder_that_is_closed_is_seen_before_the_work(place):
    with pytest.raises(PermissionError, match='can be written to'):
        check_output_file(place / 'closed' / 'new.safetensors', ['.safetensors'], '--out')


def test_a_link_is_replaced_and_not_written_through(place):
    with write_beside(place / 'link.safetensors', force=True) as beside:
        beside.write_text('new')
    assert (place / 'input.safetensors').read_bytes() == SAFETENSORS
    assert not (place / 'link.safetensors').is_symlink()


def test_what_appears_while_the_work_runs_is_left(tmp_path):
    target = tmp_path / 'new.safetensors'
    with pytest.raises(FileExistsError), write_beside(target) as beside:
        beside.write_bytes(SAFETENSORS)
        target.write_text('my notes')
    assert target.read_text() == 'my notes'
    with pytest.raises(FileExistsError), write_into(tmp_path / 'out') as beside:
        (beside / 'a.txt').touch()
        (tmp_path / 'out' / 'notes.txt').write_text('my notes')
    assert snapshot(tmp_path / 'out') == {'notes.txt': b'my notes'}


def test_a_folder_is_new_or_empty_or_has_the_commands_own_files(tmp_path):
    (tmp_path / 'link').symlink_to('nothing')
    (tmp_path / 'file').touch()
    for name in ('link', 'file'):
        with pytest.raises(NotADirectoryError, match='which is not a folder'):
            check_folder(tmp_path / name, '--out', force=True)
    folder = check_folder(tmp_path / 'out', '--out')
    assert not folder.exists()
    folder.mkdir()
    for name in ('.timm-stochdepth.json', '.timm-stochdepth-abc', 'net-seed1-0'):  # what runs have left
        (folder / name).mkdir()
    check_folder(folder, '--out', own=['*-seed*'])
    (folder / 'notes.txt').touch()
    with pytest.raises(FileExistsError, match='--out must be a new or empty folder.*notes.txt: --force'):
        check_folder(folder, '--out', own=['*-seed*'])
    check_folder(folder, '--out', force=True)


@pytest.mark.parametrize('error', [None, KeyboardInterrupt, OSError])
@pytest.mark.parametrize('there', [None, 'empty', 'files'])
def test_files_are_moved_into_a_folder_when_all_are_whole(tmp_path, there, error):
    folder = tmp_path / 'new' / 'out'
    if there:
        folder.mkdir(parents=True)
    if there == 'files':
        (folder / 'notes.txt').write_text('my notes')
        (folder / 'a.txt').write_text('before')
    before = snapshot(tmp_path)
    try:
        with write_into(folder, force=there == 'files') as beside:
            (beside / 'a.txt').write_text('a')
            (beside / 'nested').mkdir()
            (beside / 'nested' / 'b.txt').write_text('b')
            assert snapshot(folder).get('a.txt') == (b'before' if there == 'files' else None)
            if error:
                raise error
    except (KeyboardInterrupt, OSError):
        assert snapshot(tmp_path) == before
        return
    notes = {'notes.txt': b'my notes'} if there == 'files' else {}
    assert snapshot(folder) == {'a.txt': b'a', 'nested': False, 'nested/b.txt': b'b', **notes}
