"""Locations of networks: a name of timm's registry, a repository of the Hub, a folder, or a file of weights."""
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import List

from ..output.files import WEIGHTS, expand_home

__all__ = ['NetworkLocation', 'find_network']

_REPOSITORY = r'[\w.-]+/[\w.-]+'


@dataclass(frozen=True)
class NetworkLocation:
    """The location of a network.

    Attributes:
        kind: `'name'`, `'hub'`, `'folder'` or `'file'`.
        name: The name, the repository with its revision as in user/name@main, or the path.
    """
    kind: str
    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> Path:
        return Path(self.name)

    @property
    def paths(self) -> List[Path]:
        """The inputs on this machine, which must not be written to."""
        return [self.path] if self.kind in ('folder', 'file') else []


def find_network(value: str) -> NetworkLocation:
    """Locate a network by its name or path, without asking timm or the Hub whether they know it.

    What is on this disk comes first. `user/name` is a repository if there is no such path.

    Raises:
        ValueError: It is none of these; the message has no subject.
    """
    scheme, _, rest = value.partition(':')
    if scheme in ('hf-hub', 'hf_hub'):
        if not re.fullmatch(rf'({_REPOSITORY}|[\w.-]+)(@\S+)?', rest):
            raise ValueError(f'must be a network, as hf-hub:user/name, but got {value!r}.')
        return NetworkLocation('hub', rest)
    name = rest if scheme == 'local-dir' else value
    path = expand_home(name)
    try:
        is_folder, exists = path.is_dir(), bool(name) and os.path.exists(path)
    except (OSError, ValueError):  # too long, a null character
        is_folder = exists = False
    if exists:
        if scheme == 'local-dir' and not is_folder:
            raise ValueError(f'must be a folder after local-dir:, but got {value!r}, which is not a folder.')
        if not os.access(path, os.R_OK | (os.X_OK if is_folder else 0)):
            raise ValueError(f'must be a network that can be read, but got {value!r}.')
        return NetworkLocation('folder' if is_folder else 'file', str(path))
    is_path = scheme == 'local-dir' or name.endswith(WEIGHTS) or name.startswith(('.', '/', '~'))
    if not is_path and re.fullmatch(_REPOSITORY, name):
        return NetworkLocation('hub', name)
    if not is_path and re.fullmatch(r'[\w.-]+', name):
        return NetworkLocation('name', name)
    reason = ', which does not exist.' if is_path or '/' in name else '.'
    raise ValueError(
        f'must be a name of timm, hf-hub:user/name, a folder or a file of weights, but got {value!r}{reason}')
