"""Push a network to the Hub, in one commit."""
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, List, Optional, Union

from huggingface_hub import CommitOperationAdd, HfApi
from timm.utils import unwrap_model
from torch import nn

from ..folding.computed_tensors import copy_plain, is_reparametrized
from ..folding.fold import fold_stochastic_depth
from ..inspection import drop_paths
from ..messages import warn_user
from ..output.files import check_folder, expand_home, write_into
from ..settings import check_flag
from ..version import __version__
from .arguments import check_label_names, check_license, check_repo_id
from .folder import write_folder
from .named_models import is_stochastic
from .record import TrainingRecord
from .registered import registered_network

__all__ = ['format_sizes', 'push_to_hub']

CARD = 'README.md'


def push_to_hub(
        model: nn.Module,
        repo_id: str,
        *,
        plain: bool = False,
        keep_stochastic_depth: bool = False,
        private: bool = False,
        revision: Optional[str] = None,
        create_pr: bool = False,
        commit_message: str = 'Add model',
        label_names: Optional[List[str]] = None,
        license: Optional[str] = None,
        record: Optional[TrainingRecord] = None,
        dry_run: bool = False,
        out: Optional[Union[str, Path]] = None,
        force: bool = False,
) -> 'tuple[str, Dict[str, int]]':
    """Push weights, config and card in one commit: all of them, or none.

    The login is huggingface-hub's own (`hf auth login`, or HF_TOKEN). A card that is on the Hub stays as it is, with a
    warning, unless `force` is True.

    Args:
        model: Any image classifier of timm's registry. One of this package's names keeps its stochastic depth, others
            are folded. What torch.compile or DistributedDataParallel made of it is taken as well; what pruning and
            parametrizations compute is pushed as the weights that it is.
        repo_id: user/name of the repository; it is made if there is none.
        plain: Fold networks of this package's names, too, to timm's own architecture: who has timm alone gets the same
            logits.
        keep_stochastic_depth: Push other networks of timm under this package's name for them, by which the stochastic
            depth is rebuilt that `apply_stochastic_depth` gave them, instead of folded.
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
        force: Replace the card that is on the Hub, and files of the same names in `out`.

    Returns:
        Address of the commit or pull request, empty after a dry run, and the size of each file in bytes.

    Raises:
        TypeError: model is not a network, or another argument not of its kind.
        ValueError: model is not to be built by timm, or not to be folded, repo_id not the Hub's, label_names not as
            many as the classes, weights not finite, or something of the network was assumed that nothing says.
        FileExistsError: out holds something.
        huggingface_hub.errors.HfHubHTTPError: The Hub refuses or fails; nothing has been committed.

    Example:
        >>> import timm
        >>> model = timm.create_model('resnet50_sd_block', num_classes=10, drop_path_rate=0.3)
        >>> address, sizes = push_to_hub(model, 'user/my_model', dry_run=True)  # doctest: +ELLIPSIS
        README.md ...
        >>> 'model.safetensors' in sizes
        True
    """
    flags = dict(
        plain=plain, keep_stochastic_depth=keep_stochastic_depth, private=private, create_pr=create_pr,
        dry_run=dry_run, force=force)
    texts = dict(revision=revision, commit_message=commit_message)
    _check_arguments(model, repo_id, flags, texts, record)
    if out is not None:
        check_folder(out, 'out', force)
    unwrapped = unwrap_model(model)
    network: Any = _network_to_push(unwrapped, plain, keep_stochastic_depth)
    record = replace(record or TrainingRecord())
    if record.assumed and not dry_run:
        raise ValueError(f'Nothing is published on an assumption: {record.assumed}')
    if record.card and plain and is_stochastic(unwrapped):
        warn_user('The card beside the weights is of the network as it was: a new one is written.')
        record.card = None
    _complete(record, network, label_names, license)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(network, folder, repo_id, record)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        if out is not None:
            with write_into(expand_home(out), force, 'out') as beside:
                shutil.copytree(folder, beside, dirs_exist_ok=True)
        if not dry_run:
            return _send(folder, repo_id, private, revision, create_pr, commit_message, force), sizes
        print(format_sizes(sizes))
        if out is None:
            print(f'\n{(folder / CARD).read_text(encoding="utf-8")}')
        return '', sizes


def _check_arguments(model: Any, repo_id: Any, flags: Dict[str, Any], texts: Dict[str, Any], record: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f'model must be a network (nn.Module), but got {model!r:.200}.')
    check_repo_id(repo_id)
    for name, flag in flags.items():
        check_flag(name, flag)
    for name, text in texts.items():
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise (ValueError if isinstance(text, str) else TypeError)(f'{name} must be a text, but got {text!r}.')
    if record is not None and not isinstance(record, TrainingRecord):
        raise TypeError(f'record must be a TrainingRecord, but got {record!r:.200}.')


def _network_to_push(model: nn.Module, plain: bool, keep_stochastic_depth: bool) -> nn.Module:
    if not getattr(model, 'pretrained_cfg', None):
        raise ValueError(f'model must be a network of timm, with a pretrained_cfg, but is a {type(model).__name__}.')
    if not hasattr(model, 'num_classes'):
        raise ValueError(f'model must be an image classifier, but is a {type(model).__name__}, which gives features.')
    if keep_stochastic_depth and (plain or not any(drop_paths(model))):
        but = 'plain=True folds it' if plain else f'{type(model).__name__} has none'
        raise ValueError(f'keep_stochastic_depth must be False where nothing is kept, but got True: {but}.')
    if not any(drop_paths(model)) or (is_stochastic(model) and not plain):
        return copy_plain(model) if is_reparametrized(model) else model
    if keep_stochastic_depth:
        return registered_network(copy_plain(model) if is_reparametrized(model) else model)
    folded: Any = fold_stochastic_depth(model)
    if not plain and not folded.folded_settings.scale_by_keep:
        warn_user(
            f'It is pushed folded, as timm\'s {folded.pretrained_cfg["architecture"]} with the drop rates in its'
            ' weights: keep_stochastic_depth=True, or --keep-stochastic-depth, pushes it as it is.')
    return folded


def _complete(record: TrainingRecord, network: Any, label_names: Optional[List[str]], license: Optional[str]) -> None:
    """Add names of classes and a licence to a record."""
    record.label_names = record.label_names if label_names is None else label_names
    if record.label_names is not None:
        check_label_names(record.label_names, network.num_classes)
    if license is None:
        return
    check_license(license)
    if record.card and license != record.license:
        raise ValueError(
            f'license must be what the card beside the weights says, {record.license}, but got {license!r}: change it'
            ' there.')
    record.license = license


def _send(
        folder: Path,
        repo_id: str,
        private: bool,
        revision: Optional[str],
        create_pr: bool,
        commit_message: str,
        force: bool,
) -> str:
    """Commit the files of a folder, and return the address of the commit or pull request."""
    api = HfApi(library_name='timm-stochdepth', library_version=__version__)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    paths = sorted(folder.iterdir())
    if not force and api.file_exists(repo_id, CARD, revision=revision):
        warn_user(
            f'{CARD} of {repo_id} stays as it is, and may say something else than these weights are: --force, or'
            ' force=True, replaces it.')
        paths.remove(folder / CARD)
    commit = api.create_commit(
        repo_id,
        [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in paths],
        commit_message=commit_message,
        revision=revision,
        create_pr=create_pr,
    )
    return commit.pr_url or commit.commit_url


def format_sizes(sizes: Dict[str, int]) -> str:
    """Format sizes of files, one a line."""
    return '\n'.join(f'{name:<20}{size:>13,} bytes' for name, size in sizes.items())
