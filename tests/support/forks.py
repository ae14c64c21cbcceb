"""Python programs run in forks of a process that has imported torch, timm and torchvision: no seconds of imports each.

The processes are new ones in all else: nothing of this package is imported, standard streams are files of their own.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Mapping, Optional, Sequence

from limits import HANG

FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(['torch', 'torchvision', 'timm'])
READ_HUB_SETTINGS = {'huggingface_hub', 'timm'}  # the client, when it is imported


def run_python(
    *command: object, env: Optional[Mapping[str, str]] = None, cwd: object = None, limit: Optional[Sequence[int]] = None
) -> 'subprocess.CompletedProcess[str]':
    """What `python COMMAND` does, by `-c CODE`, `-m MODULE` or a script; not checked for success.

    Args:
        command: Arguments of Python.
        env: The environment, by default that of the tests.
        cwd: The folder that it runs in.
        limit: Arguments of resource.setrlimit.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as folder:
        streams = [f'{folder}/stdout', f'{folder}/stderr']
        args = words, dict(os.environ if env is None else env), str(cwd or os.getcwd()), streams, limit
        process = FORKS.Process(target=_run, args=args)
        process.start()
        process.join(HANG)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, HANG)
        out, err = (Path(stream).read_text() for stream in streams)
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def _run(words, env, cwd, streams, limit):
    _write_to(*streams)
    _set_environment(env)
    os.chdir(cwd)
    if limit is not None:
        import resource

        resource.setrlimit(*limit)
    kind, *rest = words
    sys.path.insert(0, '' if kind in ('-c', '-m') else str(Path(kind).parent))
    if kind == '-c':
        code, *args = rest
        sys.argv = ['-c', *args]
        sys.modules['__main__'] = types.ModuleType('__main__')
        exec(compile(code, '<string>', 'exec'), vars(sys.modules['__main__']))
    elif kind == '-m':
        sys.argv = rest
        runpy.run_module(rest[0], run_name='__main__', alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(kind, run_name='__main__')


def _write_to(out, err):
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)


def _set_environment(env):
    hub_settings = [{k: v for k, v in e.items() if k.startswith('HF_')} for e in (os.environ, env)]
    if hub_settings[0] != hub_settings[1]:
        for name in [name for name in sys.modules if name.partition('.')[0] in READ_HUB_SETTINGS]:
            del sys.modules[name]
    os.environ.clear()
    os.environ.update(env)
