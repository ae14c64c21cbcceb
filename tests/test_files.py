import pytest

from timm_stochdepth.files import write_beside


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / 'new' / 'file.txt'
    for text in ('one', 'two'):
        with write_beside(path) as beside:
            beside.write_text(text)
            assert not path.exists() or path.read_text() == 'one'
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / 'folder'
    for name in ('one', 'two'):
        with write_beside(path) as beside:
            beside.mkdir()
            (beside / name).touch()
        assert [p.name for p in path.iterdir()] == [name]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_what_was_there_outlives_an_error(tmp_path, error):
    path = tmp_path / 'file.txt'
    path.write_text('before')
    with pytest.raises(error), write_beside(path) as beside:
        beside.write_text('half')
        raise error
    assert path.read_text() == 'before'
    assert list(tmp_path.iterdir()) == [path]
