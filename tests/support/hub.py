"""Fixtures for what happens on a Hugging Face Hub: a Hub server, and olah as a second, independent one.

The Hub's client reads its settings from the environment when it is imported, so client code runs in a process of its
own, by run_client.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Callable, Dict, Generator, Iterator, Optional
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import pytest
from forks import run_python
from hub_server import HubServer
from limits import HANG


def run_client(code: str, env: Dict[str, str], *args: object) -> 'subprocess.CompletedProcess[str]':
    """Python code in a process with that environment, its arguments in sys.argv[1:]; not checked for success."""
    return run_python('-c', textwrap.dedent(code), *args, env=env)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        return taken.getsockname()[1]


def olah_command() -> Optional[str]:
    """olah's server, beside this Python or on the path; None if it is not installed."""
    beside = Path(sys.executable).parent / 'olah-cli'
    return str(beside) if beside.is_file() else shutil.which('olah-cli')


@contextlib.contextmanager
def run_olah(mirrors_path: Path, folder: Path) -> Generator[str, None, None]:
    """olah's endpoint while it serves the repositories below a folder that holds models/<namespace>/<name>.

    It is offline, and the Hub that it would stand before is a closed port of this machine, so that nothing but what
    is in those repositories can answer.
    """
    command = olah_command()
    if command is None:
        raise FileNotFoundError('olah-cli is not installed: pip install olah')
    folder.mkdir(parents=True, exist_ok=True)
    port, closed = free_port(), f'127.0.0.1:{free_port()}'
    config = folder / 'olah.toml'
    config.write_text(
        textwrap.dedent(f"""\
        [basic]
        host = '127.0.0.1'
        port = {port}
        repos-path = '{folder / 'cache'}'
        mirrors-path = ['{mirrors_path}']
        hf-scheme = 'http'
        hf-netloc = '{closed}'
        hf-lfs-netloc = '{closed}'
        mirror-netloc = '127.0.0.1:{port}'
        mirror-lfs-netloc = '127.0.0.1:{port}'

        [accessibility]
        offline = true
        """)
    )
    env = {name: text for name, text in os.environ.items() if not name.upper().endswith('_PROXY')}
    env |= {'HOME': str(folder), 'PYTHONUNBUFFERED': '1'}  # its database is below the home folder
    log = folder / 'olah.txt'
    with log.open('wb') as output:
        process = subprocess.Popen(
            [command, '--config', str(config), '--log-path', str(folder / 'logs')],
            cwd=folder,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    endpoint = f'http://127.0.0.1:{port}'
    try:
        wait_for(endpoint, process, log)
        yield endpoint
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(endpoint: str, process: 'subprocess.Popen[bytes]', log: Path) -> None:
    """Wait for any HTTP answer: the API of a repository that does not exist is an error, and cheap."""
    opener = build_opener(ProxyHandler({}))
    end = time.monotonic() + HANG
    while time.monotonic() < end and process.poll() is None:
        try:
            opener.open(f'{endpoint}/api/models/none/none/refs', timeout=HANG).close()
            return
        except HTTPError as error:
            return error.close()
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f'olah does not answer (exit status {process.poll()}):\n{log.read_text()}')


@pytest.fixture
def hub_server(tmp_path: Path) -> Iterator[HubServer]:
    """An empty Hub; its root is also a folder of repositories for olah."""
    with HubServer(tmp_path / 'hub_server') as server:
        yield server


@pytest.fixture
def olah_server(tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    """A function that starts olah before a folder of repositories and returns its endpoint."""
    with contextlib.ExitStack() as stack:

        def start(mirrors_path: Path) -> str:
            folder = tmp_path / f'olah_{free_port()}'
            return stack.enter_context(run_olah(Path(mirrors_path), folder))

        yield start
