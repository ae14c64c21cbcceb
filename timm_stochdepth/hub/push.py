"""Push a network to the Hub, in one commit."""
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Dict, List, Optional

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id
from torch import nn

from ..fold import fold_stochastic_depth
from ..version import __version__
from .folder import write_folder
from .record import TrainingRecord
from .sources import is_stochastic

__all__ = ['push_to_hub']


def push_to_hub(
        model: nn.Module,
        repo_id: str,
        *,
        plain: bool = False,
        private: bool = False,
        revision: Optional[str] = None,
        create_pr: bool = False,
        commit_message: str = 'Add model',
        label_names: Optional[List[str]] = None,
        record: Optional[TrainingRecord] = None,
        dry_run: bool = False,
) -> 'tuple[str, Dict[str, int]]':
    """Push weights, config and card in one commit: all of them, or none.

    The login is huggingface-hub's own (`hf auth login`, or HF_TOKEN).

    Args:
        model: A network of this package's names.
        repo_id: user/name of the repository; it is made if there is none.
        plain: Push the folded network, timm's own architecture: who has timm alone gets the same logits.
        private: Make a new repository private.
        revision: Branch to push to, `main` if None.
        create_pr: Open a pull request instead of a commit to the branch.
        commit_message: Title of the commit.
        label_names: Names of the classes, in the order of the logits.
        record: What is known of the training, for the card.
        dry_run: Send nothing.

    Returns:
        Address of the commit or pull request, empty after a dry run, and the size of each file in bytes.

    Raises:
        ValueError: model is not of this package, repo_id not the Hub's, or label_names not as many as the classes.
        huggingface_hub.errors.HfHubHTTPError: The Hub refuses or fails; nothing has been committed.
    """
    validate_repo_id(repo_id)
    if not is_stochastic(model):
        raise ValueError('model must be one of `timm-stochdepth list`: push others with timm.models.push_to_hf_hub.')
    record = record or TrainingRecord()
    if label_names is not None:
        record.label_names = label_names
    num_classes = getattr(model, 'num_classes', None)
    if record.label_names and len(record.label_names) != num_classes:
        raise ValueError(f'label_names must be {num_classes} names, but got {len(record.label_names)}.')
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(fold_stochastic_depth(model) if plain else model, folder, repo_id, record)
        paths = sorted(folder.iterdir())
        sizes = {p.name: p.stat().st_size for p in paths}
        if dry_run:
            return '', sizes
        api = HfApi(library_name='timm-stochdepth', library_version=__version__)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=p.name, path_or_fileobj=p) for p in paths],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
        return commit.pr_url or commit.commit_url, sizes
