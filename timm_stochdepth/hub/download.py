"""Networks of the Hub, in its client's cache."""
from pathlib import Path
from typing import Sequence

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from ..checkpoints.offline import is_out_of_reach

__all__ = ['download_network']


def download_network(place: str, with_weights: bool = True) -> Path:
    """Folder with the config.json of a repository, its card if there is one, and its weights.

    Args:
        place: user/name of the repository, or user/name@revision.
        with_weights: False for the config.json alone.
    """
    repo_id, _, revision = place.partition('@')
    folder = Path(hf_hub_download(repo_id, 'config.json', revision=revision or None)).parent
    if with_weights:
        _download_first(repo_id, folder, ['README.md'])
        _download_first(repo_id, folder, ['model.safetensors', 'pytorch_model.bin'])
    return folder


def _download_first(repo_id: str, folder: Path, names: Sequence[str]) -> None:
    for name in names:
        try:
            hf_hub_download(repo_id, name, revision=folder.name)  # of the same commit, which the folder is named by
            return
        except EntryNotFoundError as e:
            if is_out_of_reach(e) and name == names[-1] and name != 'README.md':
                raise
