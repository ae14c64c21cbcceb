"""What a file holds, seen from its content."""
import json
import zipfile
from pathlib import Path
from typing import Callable, Dict

__all__ = ['REPOSITORY_FILES', 'WEIGHTS', 'holds_kind']

REPOSITORY_FILES = ('README.md', 'config.json', 'drop_rates.png', 'model.safetensors')
WEIGHTS = ('.safetensors', '.pth', '.pth.tar', '.pt', '.bin')

_OLD_TORCH = bytes.fromhex('80028a0a6cfc9c46f9206aa850192e')  # the number that torch.save began with before 1.6


def holds_kind(path: Path, suffix: str) -> bool:
    """Whether there is a file that holds what a suffix says; no for a suffix that is not known here."""
    if not path.is_file():  # a link to nothing, a device
        return False
    try:
        return _HOLDS[suffix](path) if suffix in _HOLDS else False
    except (OSError, ValueError, RecursionError):
        return False


def _start(path: Path, size: int = 1024) -> bytes:
    with path.open('rb') as file:
        return file.read(size)


def _is_safetensors(path: Path) -> bool:
    header_size = int.from_bytes(_start(path, 8), 'little')
    if header_size > path.stat().st_size - 8:
        return False
    return isinstance(json.loads(_start(path, 8 + header_size)[8:]), dict)


def _is_torch(path: Path) -> bool:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith('/data.pkl') for name in archive.namelist())
    return _start(path).startswith(_OLD_TORCH)


def _is_json(path: Path) -> bool:
    json.loads(path.read_bytes())
    return True


_HOLDS: Dict[str, Callable[[Path], bool]] = {
    '.safetensors': _is_safetensors,
    '.pth': _is_torch,
    '.pt': _is_torch,
    '.pth.tar': _is_torch,
    '.bin': _is_torch,
    '.png': lambda path: _start(path).startswith(b'\x89PNG\r\n\x1a\n'),
    '.pdf': lambda path: _start(path).startswith(b'%PDF-'),
    '.svg': lambda path: b'<svg' in _start(path),
    '.json': _is_json,
}
