"""A folder that is pulled to holds the repository, and what was somebody's own stays."""

import pytest
from hub import run_client

WEIGHTS = b'w' * 1_000_000

# each call of pull, and what came of it; change runs between the calls
PULLS = """
    import sys
    from pathlib import Path
    from timm_stochdepth.hub.errors import explain
    from timm_stochdepth.hub.pull import pull
    folder = Path(sys.argv[1])
    def attempt(repo_id, **kwargs):
        try:
            print(*pull(repo_id, folder, **kwargs))
        except Exception as e:
            print('refused:', explain(e, repo_id))
"""


@pytest.fixture
def pulls(hub_server, tmp_path):
    hub_server.add_repository(
        'user/one', {'config.json': b'{"one": 1}', 'model.safetensors': WEIGHTS, 'nested/a [1].txt': b'a'}
    )
    hub_server.add_repository('user/two', {'config.json': b'{"two": 2}', 'README.md': b'two'})

    def run(code):
        result = run_client(f'{PULLS}{code}', hub_server.env(tmp_path / 'cache'), tmp_path / 'pulled')
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines(), tmp_path / 'pulled'

    return run


def test_a_folder_that_holds_something_is_pulled_to_by_force_alone(pulls, hub_server):
    lines, folder = pulls("""
    folder.mkdir()
    (folder / 'config.json').write_text('{"mine": 3}')
    (folder / 'notes.txt').write_text('my notes')
    attempt('user/one')
    """)
    assert lines[0].startswith('refused: folder must be a new or empty folder') and not hub_server.requests
    assert {p.name: p.read_text() for p in folder.iterdir()} == {'config.json': '{"mine": 3}', 'notes.txt': 'my notes'}
    lines, folder = pulls("    attempt('user/one', force=True)\n    attempt('user/two')")
    assert not lines[0].startswith('refused') and lines[1].startswith('refused')
    names = {str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()}
    assert names - {'.gitattributes'} == {'config.json', 'model.safetensors', 'nested/a [1].txt', 'notes.txt'}
    assert (folder / 'config.json').read_bytes() == b'{"one": 1}' and (folder / 'notes.txt').read_text() == 'my notes'


def test_a_broken_pull_leaves_nothing_but_what_it_goes_on_with(pulls, hub_server):
    hub_server.cut(path='model.safetensors', after=500_000)
    lines, folder = pulls("    attempt('user/one')")
    assert lines[0].startswith('refused')
    assert all(p.name.startswith('.timm-stochdepth') for p in folder.iterdir())
    hub_server.clear_faults()
    lines, folder = pulls("    attempt('user/two')")  # another one, too
    assert not lines[0].startswith('refused')
    assert {p.name for p in folder.iterdir()} - {'.gitattributes'} == {
        'README.md',
        'config.json',
    }
