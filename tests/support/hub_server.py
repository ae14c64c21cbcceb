"""A Hugging Face Hub on loopback, whose repositories are real git repositories.

It speaks the routes that huggingface_hub's own client uses for models, so that uploads and downloads are tested with
that client over HTTP, and it can fail on request: with a status, a cut connection, or wrong bytes.
"""

import base64
import contextlib
import fnmatch
import hashlib
import hmac
import io
import json
import os
import re
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Optional, Tuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml
from limits import HANG

LARGE_PATTERNS = ('*.bin', '*.ckpt', '*.msgpack', '*.npz', '*.onnx', '*.pt', '*.pth', '*.safetensors', '*.tar.gz')
LARGE_SIZE = 10 << 20  # the Hub keeps no file of more than 10 MiB outside LFS
GIT_ATTRIBUTES = ''.join(f'{pattern} filter=lfs diff=lfs merge=lfs -text\n' for pattern in LARGE_PATTERNS).encode()
POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n'
POINTER_PATTERN = re.compile(rb'version [^\n]+\noid sha256:([0-9a-f]{64})\nsize ([0-9]+)\n')
PIECE = 1 << 16


class HubError(Exception):
    """An answer of the Hub that is an error, with the headers by which the client tells errors apart."""

    def __init__(self, status: int, message: str, code: Optional[str] = None, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        line = ' '.join(message.encode('ascii', 'replace').decode().split())  # a header is one line
        self.headers = {'X-Error-Message': line, **{name.replace('_', '-'): text for name, text in headers.items()}}
        if code is not None:
            self.headers['X-Error-Code'] = code


@dataclass
class Fault:
    """What goes wrong for requests of one method (or any) whose path contains a text, some times or always."""

    kind: str
    path: str
    method: Optional[str]
    times: Optional[int]
    options: Dict[str, Any] = field(default_factory=dict)
    hits: int = 0

    def matches(self, method: str, path: str) -> bool:
        exhausted = self.times is not None and self.hits >= self.times
        return not exhausted and self.path in path and self.method in (None, method)


@dataclass
class Entry:
    """A file or a folder of a repository at a commit; oid and size are those of the git object."""

    type: str
    oid: str
    size: int
    path: str
    large: Optional[Tuple[str, int]] = None  # SHA-256 and size of the content that an LFS pointer stands for

    def info(self) -> Dict[str, Any]:
        if self.type == 'tree':
            return {'type': 'directory', 'oid': self.oid, 'size': 0, 'path': self.path}
        info = {'type': 'file', 'oid': self.oid, 'size': self.size, 'path': self.path}
        if self.large is not None:
            oid, size = self.large
            info |= {'size': size, 'lfs': {'oid': oid, 'size': size, 'pointerSize': self.size}}
        return info


class Repository:
    """One model repository: a git repository without a checkout, with LFS objects where git-lfs keeps them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git_dir = folder / '.git'

    def git(self, *args: str, data: Optional[bytes] = None) -> bytes:
        env = {name: text for name, text in os.environ.items() if not name.startswith('GIT_')}
        env |= {'GIT_CONFIG_NOSYSTEM': '1', 'GIT_CONFIG_GLOBAL': os.devnull, 'LC_ALL': 'C'}
        command = ['git', f'--git-dir={self.git_dir}', *args]
        return subprocess.run(command, input=data, env=env, check=True, capture_output=True).stdout

    def create(self, private: bool, gated: bool) -> None:
        self.folder.mkdir(parents=True)
        subprocess.run(['git', 'init', '--quiet', '--initial-branch=main', str(self.folder)], check=True)
        self.settings = {'private': private, 'gated': gated, 'pulls': 0}
        self.commit('refs/heads/main', None, 'initial commit', {'.gitattributes': GIT_ATTRIBUTES})

    @property
    def settings(self) -> Dict[str, Any]:
        return json.loads((self.git_dir / 'hub.json').read_text())

    @settings.setter
    def settings(self, settings: Dict[str, Any]) -> None:
        (self.git_dir / 'hub.json').write_text(json.dumps(settings))

    def object_path(self, oid: str) -> Path:
        return self.git_dir / 'lfs' / 'objects' / oid[:2] / oid[2:4] / oid

    def refs(self) -> Dict[str, str]:
        """Each ref's commit, tags peeled."""
        lines = self.git('for-each-ref', '--format=%(refname) %(objectname) %(*objectname)').decode().splitlines()
        return {fields[0]: fields[-1] for fields in map(str.split, lines)}

    def ref(self, revision: str) -> Optional[str]:
        refs = self.refs()
        return next((ref for ref in (f'refs/heads/{revision}', revision) if ref in refs), None)

    def resolve(self, revision: str) -> str:
        """The commit of a branch, a tag, a full ref or a full commit id."""
        refs = self.refs()
        for name in (f'refs/heads/{revision}', f'refs/tags/{revision}', revision):
            if name in refs:
                return refs[name]
        if re.fullmatch('[0-9a-f]{40}', revision):
            try:
                return self.git('rev-parse', '--verify', '--quiet', f'{revision}^{{commit}}').decode().strip()
            except subprocess.CalledProcessError:
                pass
        raise HubError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')

    def entries(self, commit: str) -> List[Entry]:
        entries = []
        for line in self.git('ls-tree', '-r', '-t', '-l', '-z', commit).decode().split('\0')[:-1]:
            attributes, _, path = line.partition('\t')
            _, kind, oid, size = attributes.split()
            entries.append(Entry(kind, oid, 0 if size == '-' else int(size), path))
            if 120 < entries[-1].size < 200:
                match = POINTER_PATTERN.fullmatch(self.git('cat-file', 'blob', oid))
                if match is not None:
                    entries[-1].large = (match[1].decode(), int(match[2]))
        return entries

    def content(self, entry: Entry) -> BinaryIO:
        if entry.large is None:
            return io.BytesIO(self.git('cat-file', 'blob', entry.oid))
        return self.object_path(entry.large[0]).open('rb')

    def store(self, source: BinaryIO, oid: str) -> None:
        path = self.object_path(oid)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as target:
            shutil.copyfileobj(source, target)
        os.replace(target.name, path)

    def pointer(self, content: bytes) -> bytes:
        oid = hashlib.sha256(content).hexdigest()
        self.store(io.BytesIO(content), oid)
        return POINTER.format(oid=oid, size=len(content)).encode()

    def commit(
        self, ref: str, parent: Optional[str], message: str, changes: Dict[str, Optional[bytes]], author: str = 'hub'
    ) -> str:
        """Write files, or remove those that are None, as one commit at ref; the commit's id."""

        def name(path: str) -> bytes:
            return b'"' + path.encode().replace(b'\\', b'\\\\').replace(b'"', b'\\"').replace(b'\n', b'\\n') + b'"'

        def blob(content: bytes) -> bytes:
            return b'data %d\n%b\n' % (len(content), content)

        committer = f'committer {author} <{author}@localhost> {int(time.time())} +0000'
        stream = [f'feature done\ncommit {ref}\nmark :1\n{committer}\n'.encode(), blob(message.encode())]
        stream += [] if parent is None else [f'from {parent}\n'.encode()]
        for path, content in changes.items():
            stream.append(b'D ' + name(path) + b'\n' if content is None else b'M 100644 inline ' + name(path) + b'\n')
            stream += [] if content is None else [blob(content)]
        stream.append(b'\nget-mark :1\ndone\n')
        return self.git('fast-import', '--quiet', '--done', data=b''.join(stream)).decode().strip()


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub would take this file only through LFS: by name, by size, or because it is binary."""
    named = any(fnmatch.fnmatch(path.rpartition('/')[2], pattern) for pattern in LARGE_PATTERNS)
    return size > 0 and (named or size > LARGE_SIZE or b'\0' in sample)


def card(text: str) -> Any:
    """The metadata at the head of a model card; None where there is none."""
    match = re.match(r'---[ \t]*\r?\n(.*?)^---[ \t]*$', text, re.DOTALL | re.MULTILINE)
    return None if match is None else yaml.safe_load(match[1])


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that a test has stopped drops its connections, and other errors are on the HubServer."""


class HubServer:
    """A Hub for one user, with write access to every namespace.

    Its root holds models/<namespace>/<name> as git repositories, and so is a mirrors-path of olah.
    """

    def __init__(self, root: Path, token: str = 'hf_test', user: str = 'tester') -> None:
        self.root = Path(root)
        self.token = token
        self.user = user
        self.roles = {token: 'write'}
        self.requests: List[Tuple[str, str]] = []
        self.faults: List[Fault] = []
        self.errors: List[str] = []
        self.lock = threading.RLock()
        self.secret = secrets.token_bytes(16)
        (self.root / 'models').mkdir(parents=True, exist_ok=True)
        handler = type('BoundHandler', (Handler,), {'hub': self})
        self._server = Server(('127.0.0.1', 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)

    def __enter__(self) -> 'HubServer':
        self._thread.start()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self.errors and kind is None:
            raise AssertionError('errors inside the Hub server:\n' + '\n'.join(self.errors))

    @property
    def endpoint(self) -> str:
        return f'http://127.0.0.1:{self._server.server_address[1]}'

    def env(self, cache_dir: Path, token: Optional[str] = '') -> Dict[str, str]:
        """The environment of a client process: this server, its own cache, and a token (None: no token)."""
        dropped = ('HF_', 'HUGGING', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY')
        env = {name: text for name, text in os.environ.items() if not name.upper().startswith(dropped)}
        env |= {
            'HF_ENDPOINT': self.endpoint,
            'HF_HOME': str(Path(cache_dir) / 'home'),
            'HF_HUB_CACHE': str(Path(cache_dir) / 'hub'),
            'HF_HUB_DISABLE_TELEMETRY': '1',
            'HF_HUB_DISABLE_XET': '1',
            **dict.fromkeys(('HF_HUB_DOWNLOAD_TIMEOUT', 'HF_HUB_ETAG_TIMEOUT'), str(int(HANG))),  # not 10 s
            'NO_PROXY': '127.0.0.1,localhost',
        }
        if token is not None:
            env['HF_TOKEN'] = token or self.token
        return env

    def add_token(self, token: str, role: str = 'read') -> None:
        """A second token of the user: 'read' may not write, 'write' may."""
        self.roles[token] = role

    # Repositories, as a test sees them

    def repository(self, repo_id: str) -> Path:
        return self._repository(repo_id).folder

    def add_repository(self, repo_id: str, files: Dict[str, bytes], private: bool = False, gated: bool = False) -> str:
        """Make a repository without the client; the id of its commit.

        The Hub's own .gitattributes is beside the files, and gated means that no token of this server has access.
        """
        with self.lock:
            repository = self._repository(repo_id)
            repository.create(private, gated)
            changes: Dict[str, Optional[bytes]] = {
                path: repository.pointer(content) if is_large(path, len(content), content[:512]) else content
                for path, content in files.items()
            }
            return repository.commit('refs/heads/main', repository.resolve('main'), 'Add files', changes)

    def files(self, repo_id: str, revision: str = 'main') -> Dict[str, bytes]:
        """Every file at a revision, the content of LFS files in place of their pointers."""
        repository = self._repository(repo_id)
        entries = repository.entries(repository.resolve(revision))
        return {entry.path: repository.content(entry).read() for entry in entries if entry.type == 'blob'}

    def settings(self, repo_id: str) -> Dict[str, Any]:
        return self._repository(repo_id).settings

    def _repository(self, repo_id: str) -> Repository:
        return Repository(self.root.joinpath('models', *repo_id.split('/')))

    # Faults

    def fail(
        self,
        method: Optional[str] = None,
        path: str = '',
        status: int = 500,
        times: Optional[int] = None,
        message: str = 'Failure on request',
        code: Optional[str] = None,
        headers: Optional[Dict[str, str]] = None,
    ) -> Fault:
        """Answer with a status; code is the Hub's X-Error-Code."""
        return self._add('fail', path, method, times, status=status, message=message, code=code, headers=headers or {})

    def cut(
        self, path: str = '', after: int = 0, times: Optional[int] = None, method: str = 'GET', how: str = 'close'
    ) -> Fault:
        """End a body early: a download at that offset of the file, or an upload after that many bytes.

        A download ends by closing the connection (the client tries again), by a 'reset' of it (the client raises),
        or 'short': complete for HTTP, only the file is not. An upload is always reset; with 'lost', it is carried out
        and only the answer does not arrive.
        """
        if how not in ('close', 'reset', 'short', 'lost') or (how == 'lost' and method == 'GET'):
            raise ValueError(f'how must be close, reset or short, or lost for an upload, not {how!r}')
        return self._add('cut', path, method, times, after=after, how=how)

    def corrupt(self, path: str = '', offset: int = 0, times: Optional[int] = None, method: str = 'GET') -> Fault:
        """Flip a bit of the byte at that offset of a file sent, or with PUT of a body received."""
        return self._add('corrupt', path, method, times, offset=offset)

    def accept_any_hash(self, times: Optional[int] = None) -> Fault:
        """Store an uploaded object under the hash that was announced, whatever arrived."""
        return self._add('accept', '', 'PUT', times)

    def clear_faults(self) -> None:
        self.faults.clear()

    def _add(self, kind: str, path: str, method: Optional[str], times: Optional[int], **options: Any) -> Fault:
        fault = Fault(kind, path, method, times, options)
        self.faults.append(fault)
        return fault

    def take(self, kind: str, method: str, path: str) -> Optional[Dict[str, Any]]:
        """The options of the first fault of this kind that a request meets, which then counts as met."""
        with self.lock:
            for fault in self.faults:
                if fault.kind == kind and fault.matches(method, path):
                    fault.hits += 1
                    return fault.options
        return None


Route = Tuple[str, 're.Pattern[str]', Callable[..., None]]
ROUTES: List[Route] = []
REPO = '(?P<repo_id>[^/]+/[^/]+)'
API = f'/api/models/{REPO}'
REVISION = '(?P<revision>[^/]+)'


def route(methods: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def add(function: Callable[..., None]) -> Callable[..., None]:
        ROUTES.extend((method, re.compile(pattern), function) for method in methods.split())
        return function

    return add


class Handler(BaseHTTPRequestHandler):
    """One connection of the client. A path's parts are matched before they are unquoted, as a revision may hold /."""

    hub: HubServer
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    lost = False

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr: the requests are on the server object."""

    def _dispatch(self) -> None:
        url = urlsplit(self.path)
        self.route_path = unquote(url.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.hub.requests.append((self.command, self.route_path))
        try:
            with tempfile.SpooledTemporaryFile(max_size=LARGE_SIZE) as self.body:
                if not self._receive():
                    return
                fault = self.hub.take('fail', self.command, self.route_path)
                if fault is not None:
                    raise HubError(fault['status'], fault['message'], fault['code'], **fault['headers'])
                self._check_token()
                for method, pattern, function in ROUTES:
                    match = pattern.fullmatch(url.path)
                    if match is not None and method == self.command:
                        return function(self, **{key: unquote(text or '') for key, text in match.groupdict().items()})
                raise HubError(404, "Sorry, we can't find the page you are looking for.")
        except HubError as error:
            self._send_json({'error': error.message}, error.status, error.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception:
            self.hub.errors.append(f'{self.command} {self.path}\n{traceback.format_exc()}')
            self._send_json({'error': 'Internal error of the test server'}, 500, {})

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = _dispatch

    # Bytes in and out

    def _pieces(self) -> Iterator[bytes]:
        """The request's body, whose length is stated or which comes in chunks."""
        if self.headers.get('Transfer-Encoding', '').lower() == 'chunked':
            while line := self.rfile.readline():
                size = int(line.split(b';')[0], 16)
                yield self.rfile.read(size)
                self.rfile.readline()  # the end of the chunk, or of the body after the last one, which is empty
                if size == 0:
                    return
            raise ConnectionResetError
        left = int(self.headers.get('Content-Length') or 0)
        while left:
            piece = self.rfile.read(min(left, PIECE))
            if not piece:
                raise ConnectionResetError
            left -= len(piece)
            yield piece

    def _receive(self) -> bool:
        """Read the whole body, as an answer to half a request would break the connection; False where it was cut."""
        has_body = 'Content-Length' in self.headers or 'Transfer-Encoding' in self.headers
        upload = has_body and self.command not in ('GET', 'HEAD')
        cut = self.hub.take('cut', self.command, self.route_path) if upload else None
        corrupt = self.hub.take('corrupt', self.command, self.route_path) if upload else None
        self.lost = cut is not None and cut['how'] == 'lost'
        cut = None if self.lost else cut
        digest = hashlib.sha256()
        self.size = 0
        for piece in self._pieces():
            if cut is not None and self.size + len(piece) > cut['after']:
                self._reset()
                return False
            piece = flip(piece, self.size, corrupt)
            digest.update(piece)
            self.body.write(piece)
            self.size += len(piece)
        self.digest = digest.hexdigest()
        self.body.seek(0)
        return True

    def _reset(self) -> None:
        """Drop the connection with a TCP reset rather than an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.rfile.close()
        self.connection.close()
        self.close_connection = True

    def _json(self) -> Dict[str, Any]:
        return json.loads(self.body.read() or b'{}')

    def _send_json(self, answer: Any, status: int = 200, headers: Optional[Dict[str, str]] = None) -> None:
        content = json.dumps(answer).encode()
        self._send_headers(status, {'Content-Type': 'application/json', **(headers or {})}, len(content))
        if self.command != 'HEAD':
            self.wfile.write(content)

    def _send_headers(self, status: int, headers: Dict[str, str], size: Optional[int]) -> None:
        if self.lost:
            self._reset()
            raise ConnectionResetError
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        if size is None:
            self.send_header('Connection', 'close')
            self.close_connection = True
        else:
            self.send_header('Content-Length', str(size))
        self.end_headers()

    def _send_file(self, content: BinaryIO, headers: Dict[str, str]) -> None:
        """A file or the range that was asked for, with the faults that a test has set on its bytes."""
        size = content.seek(0, io.SEEK_END)
        headers = {'Content-Type': 'application/octet-stream', 'Accept-Ranges': 'bytes', **headers}
        status, start, stop = 200, 0, size
        match = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
        if match is not None and any(match.groups()):
            first, last = match.groups()
            start = int(first) if first else max(0, size - int(last))
            stop = min(size, int(last) + 1) if first and last else size
            if start >= stop:
                raise HubError(416, 'Range not satisfiable', Content_Range=f'bytes */{size}')
            status = 206
            headers['Content-Range'] = f'bytes {start}-{stop - 1}/{size}'
        if self.command == 'HEAD':
            return self._send_headers(status, headers, stop - start)
        cut = self.hub.take('cut', 'GET', self.route_path)
        corrupt = self.hub.take('corrupt', 'GET', self.route_path)
        end = stop if cut is None else min(stop, max(start, cut['after']))
        self._send_headers(status, headers, None if cut is not None and cut['how'] == 'short' else stop - start)
        content.seek(start)
        while start < end:
            piece = content.read(min(PIECE, end - start))
            self.wfile.write(flip(piece, start, corrupt))
            start += len(piece)
        if cut is not None:
            self.close_connection = True
            if cut['how'] == 'reset':
                self._reset()

    # Who may do what

    def _check_token(self) -> None:
        kind, _, token = self.headers.get('Authorization', '').partition(' ')
        self.role = self.hub.roles.get(token) if kind == 'Bearer' else None
        if kind and self.role is None:
            raise HubError(401, 'Invalid credentials in Authorization header')

    def _need(self, role: str = 'read') -> None:
        if self.role is None:
            raise HubError(401, 'Invalid username or password.')
        if role == 'write' and self.role != 'write':
            raise HubError(403, 'Forbidden: you must use a write token to upload to a repository.')

    def _open(self, repo_id: str, write: bool = False, content: bool = False) -> Repository:
        """The repository, if the token may see it, and its content where it is gated."""
        repository = self.hub._repository(repo_id)
        exists = repository.git_dir.is_dir()
        if self.role is None and (not exists or repository.settings['private']):
            raise HubError(401, 'Invalid username or password.', 'RepoNotFound')  # the Hub does not tell which
        if not exists:
            raise HubError(404, 'Repository not found', 'RepoNotFound')
        if content and repository.settings['gated']:
            message = f'Access to model {repo_id} is restricted. '
            if self.role is None:
                raise HubError(401, message + 'You must be authenticated to access it.', 'GatedRepo')
            raise HubError(403, message + 'You are not in the authorized list.', 'GatedRepo')
        if write:
            self._need('write')
        return repository

    # The account and its repositories

    @route('GET', '/api/whoami-v2')
    def _whoami(self) -> None:
        self._need()
        token = {'displayName': 'test', 'role': self.role}
        account = {'type': 'user', 'id': '0' * 24, 'name': self.hub.user, 'fullname': self.hub.user, 'orgs': []}
        self._send_json({**account, 'isPro': False, 'auth': {'type': 'access_token', 'accessToken': token}})

    @route('POST', '/api/validate-yaml')
    def _validate_yaml(self) -> None:
        try:
            metadata = card(self._json()['content'])
        except yaml.YAMLError as error:
            return self._send_json({'errors': [{'message': str(error)}], 'warnings': []}, 400)
        warnings = [] if metadata else [{'message': 'empty or missing yaml metadata in repo card'}]
        self._send_json({'errors': [], 'warnings': warnings})

    def _named(self) -> Tuple[str, Dict[str, Any]]:
        self._need('write')
        asked = self._json()
        if asked.get('type', 'model') != 'model':
            raise HubError(400, 'This server has models only')
        return f'{asked.get("organization") or self.hub.user}/{asked["name"]}', asked

    @route('POST', '/api/repos/create')
    def _create(self) -> None:
        repo_id, asked = self._named()
        answer = {'url': f'{self.hub.endpoint}/{repo_id}', 'name': repo_id, 'id': repo_id}
        if not re.fullmatch(r'[\w.-]+/[\w.-]+', repo_id):
            raise HubError(400, f'Invalid repo name: {repo_id}')
        with self.hub.lock:
            repository = self.hub._repository(repo_id)
            if repository.git_dir.is_dir():
                return self._send_json({'error': 'You already created this model repo', **answer}, 409)
            private = asked.get('visibility') == 'private' or bool(asked.get('private'))
            repository.create(private=private, gated=False)
        self._send_json(answer)

    @route('DELETE', '/api/repos/delete')
    def _delete(self) -> None:
        repository = self._open(self._named()[0], write=True)
        shutil.rmtree(repository.folder)
        self._send_json({})

    @route('PUT', f'{API}/settings')
    def _settings(self, repo_id: str) -> None:
        repository = self._open(repo_id, write=True)
        asked = self._json()
        settings = repository.settings
        if 'visibility' in asked or 'private' in asked:
            settings['private'] = asked.get('visibility') == 'private' or bool(asked.get('private'))
        if 'gated' in asked:
            settings['gated'] = bool(asked['gated'])
        repository.settings = settings
        self._send_json(settings)

    @route('GET', f'{API}(?:/revision/{REVISION})?')
    def _info(self, repo_id: str, revision: str) -> None:
        repository = self._open(repo_id)
        commit = repository.resolve(revision or 'main')
        entries = [entry for entry in repository.entries(commit) if entry.type == 'blob']
        siblings: List[Dict[str, Any]] = [{'rfilename': entry.path} for entry in entries]
        if 'blobs' in self.query:
            for sibling, entry in zip(siblings, entries):
                sibling |= {'blobId': entry.oid, 'size': entry.info()['size']}
                if entry.large is not None:
                    oid, size = entry.large
                    sibling['lfs'] = {'sha256': oid, 'size': size, 'pointerSize': entry.size}
        metadata: Any = None
        for entry in entries:
            if entry.path == 'README.md':
                with contextlib.suppress(yaml.YAMLError):
                    metadata = card(repository.content(entry).read().decode())
        metadata = metadata if isinstance(metadata, dict) else {}
        answer = {
            '_id': '0' * 24,
            'id': repo_id,
            'modelId': repo_id,
            'author': repo_id.partition('/')[0],
            'sha': commit,
            'lastModified': self._date(repository, commit),
            'private': repository.settings['private'],
            'gated': 'auto' if repository.settings['gated'] else False,
            'disabled': False,
            'downloads': 0,
            'likes': 0,
            'tags': [str(tag) for tag in metadata.get('tags') or []],
            'cardData': metadata,
            'siblings': siblings,
            'spaces': [],
        }
        for name in ('library_name', 'pipeline_tag'):
            if name in metadata:
                answer[name] = metadata[name]
        self._send_json(answer)

    @route('GET', f'{API}/auth-check')
    def _auth_check(self, repo_id: str) -> None:
        self._open(repo_id, content=True)
        self._send_json({})

    @staticmethod
    def _date(repository: Repository, commit: str) -> str:
        seconds = int(repository.git('show', '-s', '--format=%ct', commit))
        return time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(seconds))

    # Commits

    @route('GET', f'{API}/refs')
    def _refs(self, repo_id: str) -> None:
        groups = {'refs/heads/': 'branches', 'refs/tags/': 'tags', 'refs/convert/': 'converts'}
        if 'include_prs' in self.query:
            groups['refs/pr/'] = 'pullRequests'
        answer: Dict[str, List[Dict[str, str]]] = {group: [] for group in groups.values()}
        for ref, commit in self._open(repo_id).refs().items():
            for prefix, group in groups.items():
                if ref.startswith(prefix):
                    answer[group].append({'name': ref.removeprefix(prefix), 'ref': ref, 'targetCommit': commit})
        self._send_json(answer)

    @route('POST DELETE', f'{API}/(?P<kind>branch|tag)/{REVISION}')
    def _change_ref(self, repo_id: str, kind: str, revision: str) -> None:
        repository = self._open(repo_id, write=True)
        asked = self._json()
        folder = 'refs/heads' if kind == 'branch' else 'refs/tags'
        with self.hub.lock:
            name = asked['tag'] if kind == 'tag' and self.command == 'POST' else revision
            exists = f'{folder}/{name}' in repository.refs()
            if self.command == 'DELETE':
                if not exists:
                    raise HubError(404, f'Reference does not exist: {name}', 'RevisionNotFound')
                if kind == 'branch' and name == 'main':
                    raise HubError(403, 'Cannot delete the branch main')
                repository.git('update-ref', '-d', f'{folder}/{name}')
            elif exists:
                raise HubError(409, f'Reference already exists: {name}')
            else:
                start = revision if kind == 'tag' else asked.get('startingPoint') or 'main'
                repository.git('update-ref', f'{folder}/{name}', repository.resolve(start))
        self._send_json({})

    @route('GET', f'{API}/commits/{REVISION}')
    def _commits(self, repo_id: str, revision: str) -> None:
        repository = self._open(repo_id)
        log = repository.git('log', '-z', '--format=%H%x1f%an%x1f%s%x1f%b', repository.resolve(revision)).decode()
        answer = []
        for line in filter(None, log.split('\0')):
            commit, author, title, message = line.split('\x1f')
            date = self._date(repository, commit)
            answer.append({
                'id': commit,
                'authors': [{'user': author}],
                'date': date,
                'title': title,
                'message': message.strip(),
            })
        self._send_json(answer)

    @route('POST', f'{API}/preupload/{REVISION}')
    def _preupload(self, repo_id: str, revision: str) -> None:
        repository = self._open(repo_id)
        self._need('read' if 'create_pr' in self.query else 'write')
        entries = {entry.path: entry for entry in repository.entries(repository.resolve(revision))}
        answer = []
        for asked in self._json()['files']:
            large = is_large(asked['path'], asked['size'], base64.b64decode(asked.get('sample', '')))
            mode = {'path': asked['path'], 'uploadMode': 'lfs' if large else 'regular', 'shouldIgnore': False}
            entry = entries.get(asked['path'])
            if entry is not None and entry.type == 'blob':
                mode['oid'] = entry.oid if entry.large is None else entry.large[0]
            answer.append(mode)
        self._send_json({'files': answer})

    @route('POST', f'{API}/commit/{REVISION}')
    def _commit(self, repo_id: str, revision: str) -> None:
        repository = self._open(repo_id)
        pull = 'create_pr' in self.query
        self._need('read' if pull else 'write')
        lines = [json.loads(line) for line in self.body.read().splitlines() if line.strip()]
        if not lines or lines[0]['key'] != 'header':
            raise HubError(400, 'The first line of a commit must be its header')
        header = lines[0]['value']
        with self.hub.lock:
            parent = repository.resolve(revision)
            ref = repository.ref(revision)
            if ref is None and not pull:
                raise HubError(400, f'Not a branch: {revision}')
            if header.get('parentCommit') not in (None, parent):
                raise HubError(412, 'A commit has happened since. Please refresh and try again.')
            changes = self._changes(repository, parent, lines[1:])
            answer: Dict[str, Any] = {'success': True, 'hookOutput': ''}
            if pull:
                settings = repository.settings
                settings['pulls'] += 1
                repository.settings = settings
                ref = f'refs/pr/{settings["pulls"]}'
                answer['pullRequestUrl'] = f'{self.hub.endpoint}/{repo_id}/discussions/{settings["pulls"]}'
            message = '\n\n'.join(filter(None, (header.get('summary'), header.get('description'))))
            commit = repository.commit(str(ref), parent, message, changes, self.hub.user)
        answer |= {'commitOid': commit, 'commitUrl': f'{self.hub.endpoint}/{repo_id}/commit/{commit}'}
        self._send_json(answer)

    @staticmethod
    def _changes(repository: Repository, parent: str, lines: List[Dict[str, Any]]) -> Dict[str, Optional[bytes]]:
        """What a commit's lines write and remove; an LFS file only if its object has arrived before."""
        kinds = {entry.path: entry.type for entry in repository.entries(parent)}
        changes: Dict[str, Optional[bytes]] = {}
        for line in lines:
            key, asked = line['key'], line['value']
            path = asked['path'].rstrip('/')
            if any(part in ('', '.', '..', '.git') for part in path.split('/')):
                raise HubError(400, f'Invalid path: {path}')
            if key == 'file':
                content = base64.b64decode(asked['content']) if asked.get('encoding') == 'base64' else None
                content = asked['content'].encode() if content is None else content
                if len(content) > LARGE_SIZE:
                    raise HubError(400, f'File too large for a regular upload: {path}')
                changes[path] = content
            elif key == 'lfsFile':
                stored = repository.object_path(asked['oid'])
                if not stored.is_file() or asked.get('size') not in (None, stored.stat().st_size):
                    raise HubError(400, f'LFS pointer pointed to a file that does not exist: {path}')
                changes[path] = POINTER.format(oid=asked['oid'], size=stored.stat().st_size).encode()
            elif key in ('deletedFile', 'deletedFolder'):
                if kinds.get(path) != ('blob' if key == 'deletedFile' else 'tree'):
                    raise HubError(404, "A file with this name doesn't exist", 'EntryNotFound')
                changes[path] = None
            else:
                raise HubError(400, f'Unknown operation: {key}')
        return changes

    # Large files

    def _signature(self, repo_id: str, oid: str, size: Any) -> str:
        return hmac.new(self.hub.secret, f'{repo_id} {oid} {size}'.encode(), 'sha256').hexdigest()

    @route('POST', rf'/{REPO}\.git/info/lfs/objects/batch')
    def _batch(self, repo_id: str) -> None:
        repository = self._open(repo_id)
        self._need()  # a read token too: it may open a pull request
        asked = self._json()
        if asked.get('operation') != 'upload' or 'basic' not in asked.get('transfers', ['basic']):
            raise HubError(400, 'This server has basic uploads only')
        answer = []
        for item in asked['objects']:
            oid, size = item['oid'], item['size']
            answer.append({'oid': oid, 'size': size})
            if not repository.object_path(oid).is_file():
                signature = self._signature(repo_id, oid, size)
                upload = f'{self.hub.endpoint}/lfs-store/{quote(repo_id)}/{oid}?size={size}&signature={signature}'
                verify = f'{self.hub.endpoint}/{quote(repo_id)}.git/info/lfs/verify'
                answer[-1]['actions'] = {'upload': {'href': upload}, 'verify': {'href': verify}}
        self._send_json({'transfer': 'basic', 'objects': answer})

    @route('PUT', f'/lfs-store/{REPO}/(?P<oid>[0-9a-f]{{64}})')
    def _put(self, repo_id: str, oid: str) -> None:
        """The store, which knows no tokens: the batch route's signature is the permission."""
        size = self.query.get('size')
        if not hmac.compare_digest(self.query.get('signature', ''), self._signature(repo_id, oid, size)):
            raise HubError(403, 'The request signature does not match')
        if self.hub.take('accept', 'PUT', self.route_path) is None:
            if str(self.size) != size:
                raise HubError(400, f'The object has {self.size} bytes, not {size}')
            if self.digest != oid:
                raise HubError(400, f'The object has the SHA-256 {self.digest}, not {oid}')
        self.hub._repository(repo_id).store(self.body, oid)
        self._send_headers(200, {'ETag': f'"{self.digest}"'}, 0)

    @route('POST', rf'/{REPO}\.git/info/lfs/verify')
    def _verify(self, repo_id: str) -> None:
        repository = self._open(repo_id)
        self._need()
        asked = self._json()
        stored = repository.object_path(asked['oid'])
        if not stored.is_file():
            raise HubError(404, 'The object has not been uploaded')
        if stored.stat().st_size != asked['size']:
            raise HubError(422, 'The object has another size')
        self._send_json({})

    # Reading

    def _infos(self, repository: Repository, entries: List[Entry], commit: str, expand: bool) -> List[Dict[str, Any]]:
        infos = [entry.info() for entry in entries]
        if expand:
            for info in infos:
                last = repository.git('log', '-1', '--format=%H %s', commit, '--', info['path']).decode().strip()
                oid, _, title = last.partition(' ')
                info['lastCommit'] = {'id': oid, 'title': title, 'date': self._date(repository, oid)}
        return infos

    @route('GET', f'{API}/tree/{REVISION}(?:/(?P<path>.+))?')
    def _tree(self, repo_id: str, revision: str, path: str) -> None:
        repository = self._open(repo_id)
        commit = repository.resolve(revision)
        entries = repository.entries(commit)
        folder = f'{path.strip("/")}/' if path else ''
        if folder and not any(entry.type == 'tree' and f'{entry.path}/' == folder for entry in entries):
            raise HubError(404, f'{path} does not exist on "{revision}"', 'EntryNotFound', X_Repo_Commit=commit)
        entries = [entry for entry in entries if entry.path.startswith(folder)]
        if self.query.get('recursive', '').lower() not in ('true', '1'):
            entries = [entry for entry in entries if '/' not in entry.path.removeprefix(folder)]
        expand = self.query.get('expand', '').lower() in ('true', '1')
        self._send_json(self._infos(repository, entries, commit, expand))

    @route('POST', f'{API}/paths-info/{REVISION}')
    def _paths_info(self, repo_id: str, revision: str) -> None:
        repository = self._open(repo_id)
        commit = repository.resolve(revision)
        if 'json' in self.headers.get('Content-Type', ''):
            asked = self._json()
            paths, expand = asked['paths'], bool(asked.get('expand'))
        else:
            form = parse_qs(self.body.read().decode())
            paths, expand = form.get('paths', []), form.get('expand', ['false'])[0].lower() in ('true', '1')
        paths = [path.strip('/') for path in paths]
        entries = [entry for entry in repository.entries(commit) if entry.path in paths]
        self._send_json(self._infos(repository, entries, commit, expand))

    @route('GET HEAD', f'/{REPO}/resolve/{REVISION}/(?P<path>.+)')
    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        repository = self._open(repo_id, content=True)
        commit = repository.resolve(revision)
        entries = {entry.path: entry for entry in repository.entries(commit) if entry.type == 'blob'}
        if path not in entries:
            raise HubError(404, 'Entry not found', 'EntryNotFound', X_Repo_Commit=commit)
        entry = entries[path]
        etag = f'"{entry.oid if entry.large is None else entry.large[0]}"'
        headers = {'ETag': etag, 'X-Repo-Commit': commit}
        if entry.large is not None:
            headers |= {'X-Linked-ETag': etag, 'X-Linked-Size': str(entry.large[1])}
        with repository.content(entry) as content:
            self._send_file(content, headers)


def flip(piece: bytes, start: int, corrupt: Optional[Dict[str, Any]]) -> bytes:
    """The piece that starts at that offset of its file, with the corrupt byte's lowest bit flipped if it is within."""
    position = -1 if corrupt is None else corrupt['offset'] - start
    if not 0 <= position < len(piece):
        return piece
    return piece[:position] + bytes([piece[position] ^ 1]) + piece[position + 1 :]
