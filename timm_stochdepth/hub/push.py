"""Push a network to the Hub, in one commit."""
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, List, Optional, Union

from huggingface_hub import CommitOperationAdd, HfApi
from timm.utils import unwrap_model
from torch import nn

from ..folding import fold_stochastic_depth
from ..output_folder import write_new_folder
from ..places import drop_paths
from ..rates import check_flag
from ..reparametrized import copy_plain, is_reparametrized
from ..version import __version__
from .folder import write_files
from .labels import check_label_names
from .repo_id import check_repo_id
from .sources import TrainingRecord, is_stochastic

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
        out: Optional[Union[str, Path]] = None,
) -> 'tuple[str, Dict[str, int]]':
    """Push weights, config and card in one commit: all of them, or none.

    The login is huggingface-hub's own (`hf auth login`, or HF_TOKEN).

    Args:
        model: A network of this package's names, or with `plain` any network of timm with stochastic depth. What
            torch.compile or DistributedDataParallel made of it is taken as well; what pruning and parametrizations
            compute is pushed as the weights that it is.
        repo_id: user/name of the repository; it is made if there is none.
        plain: Push the folded network, timm's own architecture: who has timm alone gets the same logits.
        private: Make a new repository private.
        revision: Branch to push to, `main` if None.
        create_pr: Open a pull request instead of a commit to the branch.
        commit_message: Title of the commit.
        label_names: Names of the classes, in the order of the logits.
        record: What is known of the training, for the card.
        dry_run: Send nothing.
        out: Folder to keep the files in, too, to be read before they are public: a new or empty one.

    Returns:
        Address of the commit or pull request, empty after a dry run, and the size of each file in bytes.

    Raises:
        TypeError: model is no network, or label_names no list of names.
        ValueError: model is not of this package and not to be folded, repo_id not the Hub's, label_names not as many as
            the classes, weights not finite, or something of the network was assumed that nothing says.
        FileExistsError: out holds something else.
        huggingface_hub.errors.HfHubHTTPError: The Hub refuses or fails; nothing has been committed.

    Example:
        >>> import timm
        >>> model = timm.create_model('resnet50_sd_block', num_classes=10, drop_path_rate=0.3)
        >>> address, sizes = push_to_hub(model, 'user/my_model', dry_run=True)
        >>> 'model.safetensors' in sizes
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f'model must be a network (nn.Module), but got {model!r:.200}.')
    check_repo_id(repo_id)
    check_flag('plain', plain)
    network: Any = _network_to_push(unwrap_model(model), plain)
    record = record or TrainingRecord()
    if record.assumed and not dry_run:
        raise ValueError(f'Nothing is published on an assumption: {record.assumed}')
    if label_names is not None:
        record.label_names = label_names
    if record.label_names is not None:
        check_label_names(record.label_names, network.num_classes)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_files(network, folder, repo_id, record)
        if out is not None:
            with write_new_folder(out, name='out') as beside:
                shutil.copytree(folder, beside, dirs_exist_ok=True)
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


def _network_to_push(model: nn.Module, plain: bool) -> nn.Module:
    has_blocks = any(drop_paths(model))
    is_named = is_stochastic(model) and has_blocks
    if not getattr(model, 'pretrained_cfg', None):
        raise ValueError(f'model must be a network of timm, with a pretrained_cfg, but is a {type(model).__name__}.')
    if not hasattr(model, 'num_classes'):
        raise ValueError(f'model must be an image classifier, but is a {type(model).__name__}, which gives features.')
    if is_named and not plain:
        return copy_plain(model) if is_reparametrized(model) else model
    if not plain:
        raise ValueError(
            'model must be one of `timm-stochdepth list` to be pushed with its stochastic depth. Others are folded'
            ' first, by fold_stochastic_depth: push_to_hub(..., plain=True) does so, and who has timm alone can load'
            ' them.')
    if not has_blocks and not hasattr(model, 'folded_drop_rates'):
        raise ValueError(
            'model must have stochastic depth, or be what fold_stochastic_depth returned: push others with'
            ' timm.models.push_to_hf_hub.')
    return fold_stochastic_depth(model)
