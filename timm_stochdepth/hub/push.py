"""Push a network to the Hub, in one commit."""
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, List, Optional, Union

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from timm.utils import unwrap_model
from torch import nn

from ..folding.computed_tensors import copy_plain, is_reparametrized
from ..folding.fold import fold_stochastic_depth
from ..inspection import drop_paths
from ..output.folder import check_folder, write_new_folder
from ..settings import check_flag
from ..version import __version__
from .folder import write_files
from .labels import check_label_names
from .license import check_license
from .named_models import is_stochastic
from .record import TrainingRecord
from .repo_id import check_repo_id
from .signed_card import is_edited

__all__ = ['format_sizes', 'push_to_hub']

CARD = 'README.md'


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
        license: Optional[str] = None,
        record: Optional[TrainingRecord] = None,
        dry_run: bool = False,
        out: Optional[Union[str, Path]] = None,
) -> 'tuple[str, Dict[str, int]]':
    """Push weights, config and card in one commit: all of them, or none.

    The login is huggingface-hub's own (`hf auth login`, or HF_TOKEN). A card that somebody has edited on the Hub stays
    as it is, with a warning.

    Args:
        model: Any image classifier of timm's registry. One of this package's names keeps its stochastic depth, others
            are folded. What torch.compile or DistributedDataParallel made of it is taken as well; what pruning and
            parametrizations compute is pushed as the weights that it is.
        repo_id: user/name of the repository; it is made if there is none.
        plain: Fold networks of this package's names, too, to timm's own architecture: who has timm alone gets the same
            logits.
        private: Make a new repository private.
        revision: Branch to push to, `main` if None.
        create_pr: Open a pull request instead of a commit to the branch.
        commit_message: Title of the commit.
        label_names: Names of the classes, in the order of the logits.
        license: Licence of the weights, by the Hub's identifier, as `'apache-2.0'`. Without one the card has that of
            the weights that training started from, where record knows them, or none.
        record: What is known of the training, for the card.
        dry_run: Send nothing, and print the files with their sizes and, without `out`, the card.
        out: Folder to keep the files in, too, to be read before they are public: a new or empty one.

    Returns:
        Address of the commit or pull request, empty after a dry run, and the size of each file in bytes.

    Raises:
        TypeError: model is no network, label_names no list of names, or another argument not of its kind.
        ValueError: model is none that timm builds, or not to be folded, repo_id not the Hub's, label_names not as many
            as the classes, weights not finite, or something of the network was assumed that nothing says.
        FileExistsError: out holds something else.
        huggingface_hub.errors.HfHubHTTPError: The Hub refuses or fails; nothing has been committed.

    Example:
        >>> import timm
        >>> model = timm.create_model('resnet50_sd_block', num_classes=10, drop_path_rate=0.3)
        >>> address, sizes = push_to_hub(model, 'user/my_model', dry_run=True)  # doctest: +ELLIPSIS
        README.md ...
        >>> 'model.safetensors' in sizes
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f'model must be a network (nn.Module), but got {model!r:.200}.')
    check_repo_id(repo_id)
    for name, flag in dict(plain=plain, private=private, create_pr=create_pr, dry_run=dry_run).items():
        check_flag(name, flag)
    for name, text in dict(revision=revision, commit_message=commit_message).items():
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise (ValueError if isinstance(text, str) else TypeError)(f'{name} must be a text, but got {text!r}.')
    if record is not None and not isinstance(record, TrainingRecord):
        raise TypeError(f'record must be a TrainingRecord, but got {record!r:.200}.')
    if out is not None:
        check_folder(out, 'out')
    unwrapped = unwrap_model(model)
    network: Any = _network_to_push(unwrapped, plain)
    record = replace(record or TrainingRecord())
    if record.assumed and not dry_run:
        raise ValueError(f'Nothing is published on an assumption: {record.assumed}')
    if label_names is not None:
        record.label_names = label_names
    if record.label_names is not None:
        check_label_names(record.label_names, network.num_classes)
    is_folded_here = any(drop_paths(unwrapped)) and not any(drop_paths(network))
    if is_folded_here and not plain and not network.folded_settings.scale_by_keep:
        warnings.warn(
            f'It is pushed folded, as timm\'s {network.pretrained_cfg["architecture"]} with the drop rates in its'
            ' weights: its name is none of `timm-stochdepth list`.', stacklevel=2)
    if record.card and plain and is_stochastic(unwrapped):
        warnings.warn('The card beside the weights is of the network as it was: a new one is written.', stacklevel=2)
        record.card = None
    if license is not None:
        check_license('license', license)
        if record.card and license != record.license:
            raise ValueError(
                f'license must be what the card beside the weights says, {record.license}, but got {license!r}: change'
                ' it there.')
        record.license = license
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_files(network, folder, repo_id, record)
        if out is not None:
            with write_new_folder(out, name='out') as beside:
                shutil.copytree(folder, beside, dirs_exist_ok=True)
        paths = sorted(folder.iterdir())
        sizes = {p.name: p.stat().st_size for p in paths}
        if dry_run:
            print(format_sizes(sizes))
            if out is None:
                print(f'\n{(folder / CARD).read_text(encoding="utf-8")}')
            return '', sizes
        api = HfApi(library_name='timm-stochdepth', library_version=__version__)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        kept = _edited_card(api, repo_id, revision)
        if kept is not None and kept != (folder / CARD).read_text(encoding='utf-8'):
            warnings.warn(
                f'{CARD} of {repo_id} was not written by a push, or edited since: it stays as it is, and may say'
                ' something else than these weights are. Delete it there to have a new one.', stacklevel=2)
            paths.remove(folder / CARD)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=p.name, path_or_fileobj=p) for p in paths],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
        return commit.pr_url or commit.commit_url, sizes


def _network_to_push(model: nn.Module, plain: bool) -> nn.Module:
    if not getattr(model, 'pretrained_cfg', None):
        raise ValueError(f'model must be a network of timm, with a pretrained_cfg, but is a {type(model).__name__}.')
    if not hasattr(model, 'num_classes'):
        raise ValueError(f'model must be an image classifier, but is a {type(model).__name__}, which gives features.')
    if not any(drop_paths(model)) or (is_stochastic(model) and not plain):
        return copy_plain(model) if is_reparametrized(model) else model
    return fold_stochastic_depth(model)


def format_sizes(sizes: Dict[str, int]) -> str:
    """A line for each file."""
    return '\n'.join(f'{name:<20}{size:>13,} bytes' for name, size in sizes.items())


def _edited_card(api: HfApi, repo_id: str, revision: Optional[str]) -> Optional[str]:
    """The card that is in a repository, if it is somebody's own."""
    with TemporaryDirectory() as name:
        try:
            path = api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=name)
        except LocalEntryNotFoundError:  # the Hub is out of reach
            raise
        except EntryNotFoundError:
            return None
        text = Path(path).read_text(encoding='utf-8', errors='replace')
    return text if is_edited(text) else None
