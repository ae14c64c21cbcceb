import os
import stat

import pytest
import torch
from folders import KINDS, SAFETENSORS, snapshot
from safetensors.torch import save, save_file

from timm_stochdepth.output.files import check_output_file, write_beside, write_file


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / 'new' / 'file.txt'
    for text in ('one', 'two'):
        with write_beside(path) as beside:
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
@pytest.mark.parametrize('there', ['folder', 'empty folder', 'file'])
def test_no_folder_is_replaced_and_none_replaces_a_file(tmp_path, make, there):
    if (make, there) == ('file', 'file'):
        return
    path = tmp_path / 'there'
    path.write_text('notes') if there == 'file' else path.mkdir()
    if there == 'folder':
        (path / 'notes.txt').write_text('notes')
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match='is there already'), write_beside(path) as beside:
        beside.mkdir() if make == 'folder' else beside.write_text('new')
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_what_was_there_outlives_an_error(tmp_path, error):
    path = tmp_path / 'file.txt'
    path.write_text('before')
    with pytest.raises(error), write_beside(path) as beside:
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
    """A source, links to it, and what a user may have beside it."""
    (tmp_path / 'source.safetensors').write_bytes(SAFETENSORS)
    (tmp_path / 'link.safetensors').symlink_to('source.safetensors')
    os.link(tmp_path / 'source.safetensors', tmp_path / 'hard.safetensors')
    (tmp_path / 'dangling.safetensors').symlink_to('nothing')
    (tmp_path / 'notes.safetensors').write_text('my notes')
    (tmp_path / 'empty.safetensors').touch()
    (tmp_path / 'other.safetensors').write_bytes(save({'other': torch.zeros(1)}))
    (tmp_path / 'folder.safetensors').mkdir()
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'model.safetensors').write_bytes(SAFETENSORS)
    os.mkfifo(tmp_path / 'pipe.safetensors')
    (tmp_path / 'closed').mkdir(mode=0o500)
    return tmp_path


@pytest.mark.parametrize('force', [False, True])
@pytest.mark.parametrize(
    'target, message',
    [
        ('', 'must be a path'),
        ('new/', 'must be a file'),
        ('run', 'must be a file'),
        ('folder.safetensors', 'must be a file'),
        ('source.safetensors', 'must not be what is read'),
        ('./source.safetensors', 'must not be what is read'),
        ('run/../source.safetensors', 'must not be what is read'),
        ('link.safetensors', 'must not be what is read'),
        ('hard.safetensors', 'must not be what is read'),
        ('run/model.safetensors', 'must not be what is read'),
        ('dangling.safetensors', 'something else'),
        ('notes.safetensors', 'something else'),
        ('empty.safetensors', 'something else'),
        ('pipe.safetensors', 'something else'),
        ('new.txt', r'must end in \.safetensors'),
        ('.safetensors', r'must end in \.safetensors'),
        ('new.pth', r'must end in \.safetensors'),
        ('source.safetensors/new.safetensors', 'must lie in a folder'),
        ('dangling.safetensors/new.safetensors', 'must lie in a folder'),
        ('n' * 300 + '.safetensors', 'too long'),
        ('null\0.safetensors', 'null'),
    ],
)
def test_a_file_that_must_not_be_written(place, monkeypatch, target, message, force):
    monkeypatch.chdir(place)
    before = snapshot(place)
    write = write_file(target, ['.safetensors'], ['source.safetensors', 'run'], force, '--out')
    with pytest.raises((ValueError, OSError), match=message) as error, write as beside:
        beside.write_bytes(SAFETENSORS)
    assert str(error.value).startswith('--out must') and repr(target) in str(error.value)
    assert snapshot(place) == before


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='nothing is closed to root')
def test_a_folder_that_is_closed_is_seen_before_the_work(place):
    with pytest.raises(PermissionError, match='can be written to'):
        check_output_file(place / 'closed' / 'new.safetensors', ['.safetensors'])


def test_force_replaces_a_file_of_the_same_kind(place):
    target = place / 'other.safetensors'
    before = target.read_bytes()
    with pytest.raises(FileExistsError, match='--force replaces'), write_file(target, ['.safetensors']) as beside:
        beside.write_bytes(SAFETENSORS + b'x')
    assert target.read_bytes() == before
    with write_file(target, ['.safetensors']) as beside:
        beside.write_bytes(before)  # what is there already: nothing is lost
    assert target.read_bytes() == before
    with write_file(target, ['.safetensors'], [place / 'source.safetensors'], force=True) as beside:
        beside.write_bytes(SAFETENSORS)
    assert target.read_bytes() == SAFETENSORS


def test_a_link_is_replaced_and_not_written_through(place):
    (place / 'to_other.safetensors').symlink_to('other.safetensors')
    other = (place / 'other.safetensors').read_bytes()
    with write_file(place / 'to_other.safetensors', ['.safetensors'], force=True) as beside:
        beside.write_bytes(SAFETENSORS)
    assert (place / 'other.safetensors').read_bytes() == other
    assert not (place / 'to_other.safetensors').is_symlink()


def test_what_appears_while_the_work_runs_is_left(tmp_path):
    target = tmp_path / 'new.safetensors'
    with pytest.raises(FileExistsError), write_file(target, ['.safetensors']) as beside:
        beside.write_bytes(SAFETENSORS)
        target.write_text('my notes')
    assert target.read_text() == 'my notes'


TORCH = {'a.pth', 'a.pth.tar', 'a.pt', 'a.bin'}  # one format under several names
SUFFIXES = ['.safetensors', '.pth', '.pth.tar', '.pt', '.bin', '.png', '.pdf', '.svg', '.json']


@pytest.mark.parametrize('name', KINDS)
def test_a_kind_is_seen_in_the_content(tmp_path, name):
    path = tmp_path / name
    for other, write in KINDS.items():
        write(path)
        if other == name or {other, name} <= TORCH:
            check_output_file(path, SUFFIXES)
        else:
            with pytest.raises(FileExistsError, match='something else'):
                check_output_file(path, SUFFIXES)
