"""Pull a repository into a folder, for machines without a network."""
import hashlib
from pathlib import Path
from typing import Dict, Optional

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import validate_repo_id

__all__ = ['check_inside', 'file_sha256', 'hub_hashes', 'pull']


def hub_hashes(repo_id: str, revision: Optional[str] = None) -> Dict[str, str]:
    """The SHA-256 that the Hub has of each large file of a repository.

    Raises:
        ValueError: A file's name leads outside of a folder that it would be downloaded to.
    """
    info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    for sibling in info.siblings or []:
        check_inside(Path('folder'), sibling.rfilename)
    return {s.rfilename: s.lfs.sha256 for s in info.siblings or [] if s.lfs}


def check_inside(folder: Path, name: str) -> None:
    """Refuse the name of a file that leads outside of a folder.

    Raises:
        ValueError: It does.
    """
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f'a file name must stay inside of its folder, but got {name!r}.')


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def pull(repo_id: str, folder: Path, revision: Optional[str] = None) -> Dict[str, int]:
    """Download a repository; a download that was broken off goes on where it was.

    Args:
        repo_id: user/name of the repository.
        folder: Where to put its files.
        revision: Branch, tag or commit, `main` if None.

    Returns:
        Size of each file, in bytes.

    Raises:
        ValueError: A file is not what the Hub says; it is removed.
        huggingface_hub.errors.HfHubHTTPError: The Hub refuses or fails.
    """
    validate_repo_id(repo_id)
    hashes = hub_hashes(repo_id, revision)
    snapshot_download(repo_id, revision=revision, local_dir=folder)
    for name, sha256 in hashes.items():
        path = folder / name
        if file_sha256(path) != sha256:
            path.unlink()
            raise ValueError(f'{name} of {repo_id} was altered on its way: its hash is not the one on the Hub.')
    return {
        str(p.relative_to(folder)): p.stat().st_size
        for p in sorted(folder.rglob('*')) if p.is_file() and '.cache' not in p.relative_to(folder).parts
    }
