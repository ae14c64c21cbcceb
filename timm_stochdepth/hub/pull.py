"""Pull a repository into a folder, for machines without a network."""
import hashlib
import shutil
from pathlib import Path
from typing import Dict, Iterator, Optional, Tuple

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.hf_api import ModelInfo

from ..output.files import PREFIX, check_folder, move_files
from .arguments import check_repo_id

__all__ = ['check_inside', 'compare_hashes', 'pull', 'repository_info']


def repository_info(repo_id: str, revision: Optional[str] = None) -> ModelInfo:
    """Ask the Hub for the commit and the files of a repository.

    Raises:
        ValueError: A file's name leads outside of a folder that it would be downloaded to.
    """
    info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    for sibling in info.siblings or []:
        check_inside(Path('folder'), sibling.rfilename)
    return info


def compare_hashes(folder: Path, info: ModelInfo) -> Iterator[Tuple[str, str, bool]]:
    """Compare a folder's large files with the Hub's: name, SHA-256, and whether it matches."""
    for sibling in info.siblings or []:
        if sibling.lfs:
            name, sha256 = sibling.rfilename, sibling.lfs.sha256
            yield name, sha256, _sha256(folder / name) == sha256


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_inside(folder: Path, name: str) -> None:
    """Refuse the name of a file that leads outside of a folder.

    Raises:
        ValueError: It does.
    """
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f'a file name must stay inside of its folder, but got {name!r}.')


def pull(repo_id: str, folder: Path, revision: Optional[str] = None, force: bool = False) -> Dict[str, int]:
    """Download a repository; a download that was broken off goes on where it was.

    Args:
        repo_id: user/name of the repository.
        folder: Where to put its files, new or empty.
        revision: Branch, tag or commit, `main` if None.
        force: Write to a folder that holds something, in place of files of the same names.

    Returns:
        Size of each file, in bytes.

    Raises:
        ValueError: A file is not what the Hub says: nothing of the repository is put into the folder.
        OSError: The folder holds something.
        huggingface_hub.errors.HfHubHTTPError: The Hub refuses or fails.
    """
    check_repo_id(repo_id)
    check_folder(folder, 'folder', force)
    info = repository_info(repo_id, revision)
    download = folder / f'{PREFIX}-{str(info.sha)[:16]}'  # stays where it breaks off
    snapshot_download(repo_id, revision=info.sha, local_dir=download)
    for name, _, matches in compare_hashes(download, info):
        if not matches:
            (download / name).unlink()
            raise ValueError(f'{name} of {repo_id} was altered on its way: its hash is not the one on the Hub.')
    shutil.rmtree(download / '.cache')  # the client's own
    sizes = {str(p.relative_to(download)): p.stat().st_size for p in sorted(download.rglob('*')) if p.is_file()}
    move_files(download, folder)
    for left in folder.glob(f'{PREFIX}-*'):  # of other revisions, too
        shutil.rmtree(left, ignore_errors=True)
    return sizes
