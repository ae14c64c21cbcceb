"""Files that are whole or not there at all."""
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Generator

__all__ = ['write_beside']


@contextmanager
def write_beside(path: Path) -> Generator[Path, None, None]:
    """A path beside `path` to write a file or a folder to, moved into place when the block ends without an error.

    Whatever goes wrong meanwhile, what was at `path` before is still there, and nothing half-written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    try:
        yield workspace / path.name
        if path.is_dir():  # os.replace takes no folder's place
            os.replace(path, workspace / 'replaced')
        os.replace(workspace / path.name, path)
    finally:
        try:
            shutil.rmtree(workspace, ignore_errors=True)
        except KeyboardInterrupt:  # in the middle of cleaning up: once more, and then stop
            shutil.rmtree(workspace, ignore_errors=True)
            raise
