"""Pull a repository into a folder, for machines without a network."""
import os
import shutil
from glob import escape
from pathlib import Path
from typing import Any, Dict, Optional

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import tqdm

from ..output.files import WORKSPACE_PREFIX, file_sha256
from ..output.folder import MARK, OutputFolder
from ..output.terminal import progress_bar
from .repo_id import check_repo_id

__all__ = ['TerminalBar', 'check_inside', 'file_sha256', 'hub_hashes', 'pull']


class TerminalBar(tqdm):
    """The Hub client's progress bar, where stderr is a terminal alone: the one of its downloads is shown anywhere."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{'disable': None, **kwargs})


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


def pull(repo_id: str, folder: Path, revision: Optional[str] = None) -> Dict[str, int]:
    """Download a repository; a download that was broken off goes on where it was.

    Files of the folder are replaced, or removed, only if an earlier pull wrote them and they have not changed since.

    Args:
        repo_id: user/name of the repository.
        folder: Where to put its files: new, empty, or pulled to before.
        revision: Branch, tag or commit, `main` if None.

    Returns:
        Size of each file, in bytes.

    Raises:
        ValueError: A file is not what the Hub says: nothing of the repository is put into the folder.
        OSError: The folder holds something that no pull has written.
        huggingface_hub.errors.HfHubHTTPError: The Hub refuses or fails.
    """
    check_repo_id(repo_id)
    output = OutputFolder(folder, 'pull', name='folder')
    info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    hashes = {s.rfilename: s.lfs.sha256 if s.lfs else None for s in info.siblings or [] if s.rfilename != MARK}
    output.check(*hashes)
    output.claim()
    missing = {n: sha256 for n, sha256 in hashes.items() if not (sha256 and _has_hash(folder / n, sha256))}
    download = output.path / f'{WORKSPACE_PREFIX}download'  # stays where it breaks off
    snapshot_download(
        repo_id, revision=info.sha or revision, local_dir=download, allow_patterns=[escape(n) for n in missing],
        tqdm_class=TerminalBar)
    _check_hashes(download, {n: sha256 for n, sha256 in missing.items() if sha256}, repo_id)
    for name in missing:
        with output.write(name) as beside:
            os.replace(download / name, beside)
    output.keep(hashes)
    shutil.rmtree(download, ignore_errors=True)
    return {name: (folder / name).stat().st_size for name in sorted(hashes)}


def _has_hash(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _check_hashes(folder: Path, hashes: Dict[str, str], repo_id: str) -> None:
    total = sum((folder / name).stat().st_size for name in hashes)
    with progress_bar(total, 'hashing', 'B') as progress:
        for name, sha256 in hashes.items():
            if file_sha256(folder / name, progress.update) != sha256:
                (folder / name).unlink()
                raise ValueError(f'{name} of {repo_id} was altered on its way: its hash is not the one on the Hub.')
