"""The Hub server of the tests against the Hub's real client, each client call in a process of its own."""

import hashlib
import json
import random

import huggingface_hub
import pytest
from hub import run_client

REPO_ID = 'tester/net'
WEIGHTS = random.Random(0).randbytes(3_000_001)
FILES = {
    'README.md': b'---\nlicense: apache-2.0\ntags:\n- timm\n---\n# net\n',
    'config.json': b'{"architecture": "net"}\n',
    'nested/note.txt': b'\xc3\xa9\n',
    'model.safetensors': WEIGHTS,
}

UPLOAD = """
    import sys
    from huggingface_hub import HfApi
    api = HfApi()
    url = api.create_repo(sys.argv[1], exist_ok=True, private='private' in sys.argv)
    assert api.create_repo(sys.argv[1], exist_ok=True) == url and url.repo_id == sys.argv[1]
    print(api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2], create_pr='pr' in sys.argv).pr_revision)
"""
DOWNLOAD = """
    import hashlib, sys
    from huggingface_hub import hf_hub_download
    path = hf_hub_download(sys.argv[1], sys.argv[2], revision=sys.argv[3] if sys.argv[3:] else None)
    print(hashlib.sha256(open(path, 'rb').read()).hexdigest())
"""
DELETE = """
    import sys
    from huggingface_hub import HfApi
    HfApi().delete_file('config.json', sys.argv[1])
"""


@pytest.fixture
def folder(tmp_path):
    for path, content in FILES.items():
        (tmp_path / 'folder' / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'folder' / path).write_bytes(content)
    return tmp_path / 'folder'


@pytest.fixture
def client(hub_server, tmp_path):
    """Client code with an empty cache; its output, or with error=True the last line of its traceback."""

    def run(code, *args, error=False, token='', endpoint=None):
        env = hub_server.env(tmp_path / f'cache_{len(list(tmp_path.iterdir()))}', token=token)
        env |= {} if endpoint is None else {'HF_ENDPOINT': endpoint}
        result = run_client(code, env, *args)
        assert (result.returncode != 0) == error, result.stderr
        return result.stderr if error else result.stdout.strip()

    return run


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def is_broken_connection(error):
    """Whether that is what httpx says of one, or requests, which the client below 1.0 uses."""
    return 'ReadError' in error or 'Connection aborted' in error


def without_attributes(files):
    return {path: content for path, content in files.items() if path != '.gitattributes'}


def test_upload_and_download(hub_server, client, folder, olah_server):
    assert client(UPLOAD, REPO_ID, folder) == 'None'
    assert without_attributes(hub_server.files(REPO_ID)) == FILES
    paths = [path for method, path in hub_server.requests if method == 'PUT']
    assert paths == [f'/lfs-store/{REPO_ID}/{sha256(WEIGHTS)}']  # only the weights go through LFS
    assert (hub_server.repository(REPO_ID) / '.git').is_dir()
    snapshot = """
        import json, pathlib, sys
        from huggingface_hub import HfApi, get_token, hf_hub_download, snapshot_download
        folder, api = pathlib.Path(snapshot_download(sys.argv[1])), HfApi()
        info = api.model_info(sys.argv[1], files_metadata=True)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())
        assert folder.name == info.sha == api.list_repo_commits(sys.argv[1])[0].commit_id
        assert names == sorted(sibling.rfilename for sibling in info.siblings)
        assert names == sorted(api.list_repo_files(sys.argv[1]))
        assert info.card_data.license == 'apache-2.0' and info.tags == ['timm'] and not info.private
        file, = api.get_paths_info(sys.argv[1], ['model.safetensors'], expand=True)
        sibling, = (sibling for sibling in info.siblings if sibling.rfilename == 'model.safetensors')
        assert file.lfs == sibling.lfs and file.size == sibling.size and file.last_commit.oid == info.sha
        assert api.whoami()['name'] == 'tester' and api.whoami()['auth']['accessToken']['role'] == 'write'
        print(json.dumps({name: (folder / name).read_bytes().hex() for name in names}))
    """
    files = {path: bytes.fromhex(content) for path, content in json.loads(client(snapshot, REPO_ID)).items()}
    assert without_attributes(files) == FILES

    requests = len(hub_server.requests)
    endpoint = olah_server(hub_server.root)
    for path in ('model.safetensors', 'nested/note.txt'):
        assert client(DOWNLOAD, REPO_ID, path, endpoint=endpoint) == sha256(FILES[path])
    assert len(hub_server.requests) == requests


def test_pull_request_and_parent_commit(hub_server, client, folder):
    commit = hub_server.add_repository(REPO_ID, {'config.json': b'{}'})
    assert client(UPLOAD, REPO_ID, folder, 'pr') == 'refs/pr/1'
    assert without_attributes(hub_server.files(REPO_ID)) == {'config.json': b'{}'}
    assert without_attributes(hub_server.files(REPO_ID, 'refs/pr/1')) == FILES
    assert client(DOWNLOAD, REPO_ID, 'config.json', 'refs/pr/1') == sha256(FILES['config.json'])
    code = """
        import sys
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
        api = HfApi()
        change = dict(repo_id=sys.argv[1], commit_message='change', parent_commit=sys.argv[2])
        api.create_branch(sys.argv[1], branch='v1')
        api.create_tag(sys.argv[1], tag='first')
        operations = [CommitOperationAdd('a.txt', b'a'), CommitOperationDelete('config.json')]
        api.create_commit(operations=operations, **change)
        try:
            api.create_commit(operations=[CommitOperationAdd('a.txt', b'b')], **change)
            raise AssertionError('the parent has changed')
        except HfHubHTTPError as error:
            assert error.response.status_code == 412
        for revision, path, expected in (('v2', 'a.txt', RevisionNotFoundError), ('v1', 'a.txt', EntryNotFoundError)):
            try:
                api.hf_hub_download(sys.argv[1], path, revision=revision)
            except expected:
                continue
            raise AssertionError(revision)
        refs = api.list_repo_refs(sys.argv[1], include_pull_requests=True)
        names = [ref.ref for group in (refs.branches, refs.tags, refs.pull_requests) for ref in group]
        assert names == ['refs/heads/main', 'refs/heads/v1', 'refs/tags/first', 'refs/pr/1'], names
    """
    client(code, REPO_ID, commit)
    assert without_attributes(hub_server.files(REPO_ID)) == {'a.txt': b'a'}
    assert hub_server.files(REPO_ID, 'v1') == hub_server.files(REPO_ID, commit)


def test_access(hub_server, client, folder):
    client(UPLOAD, REPO_ID, folder, 'private')
    assert hub_server.settings(REPO_ID)['private']
    hub_server.add_repository('tester/gated', {'config.json': b'{}'}, gated=True)
    hub_server.add_token('hf_read')
    code = """
        import sys
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
        api = HfApi()
        calls = {
            'private': lambda token: api.hf_hub_download('tester/net', 'config.json', token=token),
            'info': lambda token: api.model_info('tester/net', token=token),
            'missing': lambda token: api.model_info('tester/none', token=token),
            'gated': lambda token: api.hf_hub_download('tester/gated', 'config.json', token=token),
            'upload': lambda token: api.upload_file(
                path_or_fileobj=b'1', path_in_repo='a.txt', repo_id='tester/net', token=token
            ),
        }
        for name, call in calls.items():
            for token in (False, 'hf_wrong', 'hf_read', 'hf_test'):
                try:
                    call(token)
                    print(name, token, 'works')
                except GatedRepoError as error:
                    print(name, token, 'gated', error.response.status_code)
                except RepositoryNotFoundError as error:
                    print(name, token, 'not_found', error.response.status_code)
                except HfHubHTTPError as error:
                    print(name, token, 'error', error.response.status_code)
                except Exception as error:
                    print(name, token, 'other', type(error).__name__, error.__cause__)
    """
    answers = {}
    for line in client(code, token=None).splitlines():
        name, _, answer = line.split(' ', 2)
        answers.setdefault(name, []).append(answer)
    reading = ['not_found 401', 'error 401', 'works', 'works']  # without a token, a wrong, a read and a write one
    assert answers == {
        'private': reading,
        'info': reading,
        'missing': ['not_found 401', 'error 401', 'not_found 404', 'not_found 404'],
        'gated': ['gated 401', 'error 401', 'gated 403', 'gated 403'],
        'upload': ['not_found 401', 'error 401', 'error 403', 'works'],
    }


@pytest.mark.skipif(huggingface_hub.__version__ < '1', reason='clients below 1.0 do not try a broken download again')
def test_faults(hub_server, client, folder):
    hub_server.add_repository(REPO_ID, FILES)
    hub_server.cut('model.safetensors', after=1000, how='short', times=1)
    assert 'Consistency check failed' in client(DOWNLOAD, REPO_ID, 'model.safetensors', error=True)
    hub_server.cut('model.safetensors', after=1000, how='reset', times=1)
    assert 'ReadError' in client(DOWNLOAD, REPO_ID, 'model.safetensors', error=True)
    cut = hub_server.cut('model.safetensors', after=2_000_000, times=1)
    assert client(DOWNLOAD, REPO_ID, 'model.safetensors') == sha256(WEIGHTS)  # the client tries again
    assert cut.hits == 1
    hub_server.corrupt('model.safetensors', offset=2_000_000, times=1)
    wrong = WEIGHTS[:2_000_000] + bytes([WEIGHTS[2_000_000] ^ 1]) + WEIGHTS[2_000_001:]
    assert client(DOWNLOAD, REPO_ID, 'model.safetensors') == sha256(wrong)  # the client does not check
    hub_server.fail('GET', '/resolve/', status=500)
    assert '500' in client(DOWNLOAD, REPO_ID, 'config.json', error=True)


def test_uploads_that_fail(hub_server, client, folder):
    corrupt = hub_server.corrupt('/lfs-store/', offset=10, times=1, method='PUT')
    error = client(UPLOAD, REPO_ID, folder, error=True)
    assert 'BadRequestError' in error and f'not {sha256(WEIGHTS)}' in error and corrupt.hits == 1
    code = """
        import sys
        from huggingface_hub import CommitOperationAdd, HfApi
        operation = CommitOperationAdd('model.safetensors', sys.argv[2] + '/model.safetensors')
        operation.upload_info.sha256 = bytes(32)
        HfApi().create_commit(sys.argv[1], [operation], commit_message='wrong')
    """
    assert f'not {"0" * 64}' in client(code, REPO_ID, folder, error=True)
    assert without_attributes(hub_server.files(REPO_ID)) == {}
    cut = hub_server.cut('/lfs-store/', after=100_000, times=1, method='PUT')
    client(UPLOAD, REPO_ID, folder)
    assert cut.hits == 1 and without_attributes(hub_server.files(REPO_ID)) == FILES
    hub_server.cut('/commit/', method='POST', how='lost', times=1)
    assert is_broken_connection(client(DELETE, REPO_ID, error=True))
    assert 'config.json' not in hub_server.files(REPO_ID)
    hub_server.corrupt('/lfs-store/', method='PUT', times=1)
    hub_server.accept_any_hash(times=1)
    hub_server.add_repository('tester/other', {})
    client(UPLOAD, 'tester/other', folder)
    assert hub_server.files('tester/other')['model.safetensors'] == bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:]
