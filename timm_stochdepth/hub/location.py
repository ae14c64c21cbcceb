"""Where a network is: a name of timm's registry, a repository of the Hub, a folder, or a file of weights."""
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import List

from ..output.file_kinds import WEIGHTS
from ..output.files import expand_home

__all__ = ['NetworkSource', 'find_network']

_REPOSITORY = r'[\w.-]+/[\w.-]+'


@dataclass(frozen=True)
class NetworkSource:
    """Where a network is.

    Attributes:
        kind: `'name'`, `'hub'`, `'folder'` or `'file'`.
        place: The name, the repository with its revision as in user/name@main, or the path.
    """
    kind: str
    place: str

    def __str__(self) -> str:
        return self.place

    @property
    def path(self) -> Path:
        return Path(self.place)

    @property
    def paths(self) -> List[Path]:
        """What of it is on this machine where the user put it: one path, or none."""
        return [self.path] if self.kind in ('folder', 'file') else []


def find_network(value: str) -> NetworkSource:
    """What a network's name stands for; whether timm or the Hub know it is not looked up.

    What is on this disk comes first. `user/name` is a repository if there is no such path.

    Raises:
        ValueError: It is neither of these; the message has no subject.
    """
    scheme, _, rest = value.partition(':')
    if scheme in ('hf-hub', 'hf_hub'):
        if not re.fullmatch(rf'({_REPOSITORY}|[\w.-]+)(@\S+)?', rest):
            raise ValueError(f'must be a network, as hf-hub:user/name, but got {value!r}.')
        return NetworkSource('hub', rest)
    place = rest if scheme == 'local-dir' else value
    path = expand_home(place)
    try:
        is_folder, exists = path.is_dir(), bool(place) and os.path.exists(path)
    except (OSError, ValueError):  # too long, a null character
        is_folder = exists = False
    if exists:
        if scheme == 'local-dir' and not is_folder:
            raise ValueError(f'must be a folder after local-dir:, but got {value!r}, which is none.')
        if not os.access(path, os.R_OK | (os.X_OK if is_folder else 0)):
            raise ValueError(f'must be a network that can be read, but got {value!r}.')
        return NetworkSource('folder' if is_folder else 'file', str(path))
    is_path = scheme == 'local-dir' or place.endswith(WEIGHTS) or place.startswith(('.', '/', '~'))
    if not is_path and re.fullmatch(_REPOSITORY, place):
        return NetworkSource('hub', place)
    if not is_path and re.fullmatch(r'[\w.-]+', place):
        return NetworkSource('name', place)
    reason = ', which does not exist.' if is_path or '/' in place else '.'
    raise ValueError(
        f'must be a name of timm, hf-hub:user/name, a folder or a file of weights, but got {value!r}{reason}')
