import contextlib
import json
import os

import pytest
from folders import snapshot

from timm_stochdepth.output import folder as output_folder
from timm_stochdepth.output.folder import MARK, OutputFolder, write_new_folder


def write_run(path, text='one'):
    """What a command does: a folder and a file."""
    folder = OutputFolder(path, 'demo')
    folder.check('net', 'picture.png')
    folder.claim()
    with folder.write('net') as beside:
        beside.mkdir()
        (beside / f'{text}.txt').write_text(text)
    with folder.write('picture.png') as beside:
        beside.write_text(text)
    return folder


@pytest.mark.parametrize('there', [None, 'empty'])
def test_a_new_or_empty_folder_is_written_to_again_and_again(tmp_path, there):
    path = tmp_path / 'parent' / 'out'
    if there:
        path.mkdir(parents=True)
    for text in ('one', 'two'):
        folder = write_run(path, text)
        assert {p.name for p in path.iterdir()} == {'net', 'picture.png', MARK}
        assert [p.name for p in (path / 'net').iterdir()] == [f'{text}.txt']
        assert (path / 'picture.png').read_text() == text
        assert folder.holds('net') and folder.holds('picture.png')
    assert set(json.loads((path / MARK).read_text())['files']) == {'net/two.txt', 'picture.png'}


def test_nothing_is_made_before_the_claim(tmp_path):
    OutputFolder(tmp_path / 'out', 'demo').check('net')
    assert list(tmp_path.iterdir()) == []


def refuse(path, message, command='demo'):
    before = snapshot(path.parent)
    with pytest.raises((OSError, ValueError), match=message) as error:
        folder = OutputFolder(path, command)
        folder.check('net', 'picture.png')
    assert str(error.value).startswith('--out must') and '\n' not in str(error.value)
    assert snapshot(path.parent) == before


def test_a_folder_of_others_is_refused(tmp_path):
    path = tmp_path / 'out'
    path.mkdir()
    (path / 'notes.txt').write_text('my notes')
    refuse(path, 'new or empty folder.*notes.txt')
    (path / MARK).write_text('no JSON')
    refuse(path, 'new or empty folder')
    (path / MARK).write_text('[]')
    refuse(path, 'new or empty folder')
    refuse(path / 'notes.txt', 'must be a folder')
    refuse(path / 'notes.txt' / 'out', 'must lie in a folder')
    (tmp_path / 'dangling').symlink_to('nothing')
    refuse(tmp_path / 'dangling', 'must be a folder')
    write_run(tmp_path / 'run')
    refuse(tmp_path / 'run', 'timm-stochdepth bench', command='bench')


@pytest.mark.parametrize(
    'change',
    [
        lambda path: (path / 'net' / 'one.txt').write_text('changed'),
        lambda path: (path / 'net' / 'notes.txt').write_text('my notes'),
        lambda path: (path / 'picture.png').write_text('my picture'),
        lambda path: (path / 'net' / 'link').symlink_to('one.txt'),
        lambda path: (path / MARK).write_text(json.dumps(dict(command='demo', files={}))),
    ],
)
def test_what_is_not_listed_or_has_changed_is_left(tmp_path, change):
    folder = write_run(tmp_path / 'out')
    change(tmp_path / 'out')
    refuse(tmp_path / 'out', 'is left as it is')
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError):  # not for a folder that was checked before either
        for name in ('net', 'picture.png'):
            with folder.write(name) as beside:
                beside.write_text('new')
            before = snapshot(tmp_path)
    assert snapshot(tmp_path) == before


def test_what_appears_while_the_work_runs_is_left(tmp_path):
    folder = OutputFolder(tmp_path, 'demo')
    with pytest.raises(FileExistsError, match='is left as it is'), folder.write('picture.png') as beside:
        beside.write_text('new')
        (tmp_path / 'picture.png').write_text('mine')
    assert (tmp_path / 'picture.png').read_text() == 'mine'


def test_others_files_beside_ours_are_no_obstacle(tmp_path):
    write_run(tmp_path)
    (tmp_path / 'notes.txt').write_text('my notes')
    write_run(tmp_path, 'two')
    assert (tmp_path / 'notes.txt').read_text() == 'my notes'


def test_a_folder_holds_what_was_written(tmp_path):
    folder = write_run(tmp_path)
    assert not folder.holds('other')
    (tmp_path / 'net' / 'notes.txt').touch()
    assert not folder.holds('net')
    (tmp_path / 'net' / 'notes.txt').unlink()
    assert folder.holds('net')
    (tmp_path / 'net' / 'one.txt').unlink()
    assert not folder.holds('net')


class Killed(BaseException):
    pass


@pytest.mark.parametrize('step', range(7))
def test_a_run_that_is_killed_at_any_step_can_be_repeated(tmp_path, monkeypatch, step):
    """A kill is an error at one of the moves, from which nothing cleans up."""
    write_run(tmp_path)
    real_replace, moves = os.replace, []

    def replace(source, target):
        moves.append(target)
        if len(moves) > step:
            raise Killed
        real_replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr('os.replace', replace)
        patch.setattr('shutil.rmtree', lambda *args, **kwargs: None)
        with contextlib.suppress(Killed):
            write_run(tmp_path, 'two')
    assert len(moves) > step
    write_run(tmp_path, 'three')
    assert (tmp_path / 'net' / 'three.txt').read_text() == 'three'
    assert (tmp_path / 'picture.png').read_text() == 'three'


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
@pytest.mark.parametrize('before', ['nothing', 'empty', 'marked', 'written', 'of others meanwhile'])
def test_work_that_ends_with_an_error_leaves_what_was_there(tmp_path, before, error):
    path = tmp_path / 'new' / 'out'
    if before in ('empty', 'marked'):
        path.mkdir(parents=True)
    if before == 'marked':
        OutputFolder(path, 'demo').claim()
    folder = OutputFolder(path, 'demo')
    with pytest.raises(error), folder.claimed():
        if before == 'written':
            with folder.write('run') as beside:
                beside.write_text('run')
        if before == 'of others meanwhile':
            (path / 'notes.txt').write_text('mine')
        raise error
    expected = {
        'empty': ['new', 'new/out'],
        'marked': ['new', 'new/out', f'new/out/{MARK}'],
        'written': ['new', 'new/out', f'new/out/{MARK}', 'new/out/run'],
        'of others meanwhile': ['new', 'new/out', 'new/out/notes.txt'],
    }
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*')) == expected.get(before, [])


@pytest.mark.parametrize('name', ['../x', '/x', '', 'link/x', MARK])
def test_nothing_is_written_outside(tmp_path, name):
    (tmp_path / 'elsewhere').mkdir()
    folder = OutputFolder(tmp_path / 'out', 'pull')
    folder.claim()
    (tmp_path / 'out' / 'link').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(ValueError, match='must'), folder.write(name) as beside:
        beside.write_text('x')
    assert list((tmp_path / 'elsewhere').iterdir()) == []
    assert not (tmp_path / 'x').exists()


def test_files_that_are_no_more_written_go_unless_they_have_changed(tmp_path):
    folder = OutputFolder(tmp_path / 'out', 'pull')
    for name in ('a', 'b', 'c', 'nested/d'):
        with folder.write(name) as beside:
            beside.write_text(name)
    (tmp_path / 'out' / 'b').write_text('changed')
    folder.keep(['a'])
    assert {p.name for p in (tmp_path / 'out').iterdir() if p.is_file()} == {'a', 'b', MARK}
    assert not (tmp_path / 'out' / 'nested' / 'd').exists()


def test_a_folder_without_a_mark_holds_what_was_written_and_nothing_else(tmp_path):
    def write(path, text='one'):
        with write_new_folder(path) as beside:
            (beside / 'a.txt').write_text(text)
            (beside / 'b.txt').write_text(text)

    for path in (tmp_path / 'new', tmp_path / 'empty'):
        if path.name == 'empty':
            path.mkdir()
        write(path)
        write(path)  # the same once more
        (path / 'a.txt').unlink()  # as if it had been cut off
        write(path)
        assert snapshot(path) == {'a.txt': b'one', 'b.txt': b'one'}
        for change in (lambda path: write(path, 'two'), lambda path: ((path / 'c.txt').touch(), write(path))):
            with pytest.raises(FileExistsError, match='--out must be a new or empty folder'):
                change(path)
        assert set(snapshot(path)) == {'a.txt', 'b.txt', 'c.txt'}
        assert (path / 'a.txt').read_text() == 'one'
    assert output_folder.MARK not in os.listdir(tmp_path / 'new')
