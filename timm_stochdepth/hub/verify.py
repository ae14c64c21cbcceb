"""Check that a repository is what it says: every tensor, the hash, the config and the card's code."""
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Iterator, Optional, Tuple

import timm
from huggingface_hub import snapshot_download
from torch import nn

from .card import code_blocks, create_card, repo_id_of
from .errors import explain
from .load import load_model
from .location import NetworkLocation
from .pull import compare_hashes, repository_info
from .record import TrainingRecord

__all__ = ['verify']

Check = Tuple[str, bool, str]


def verify(network: NetworkLocation, revision: Optional[str] = None, **load_args: Any) -> Iterator[Check]:
    """Check a network: a repository of the Hub, which is downloaded first, a folder, a file of weights or a name.

    Args:
        network: Where it is.
        revision: Branch, tag or commit of a repository.
        load_args: What else is said of the network, for `load_model`.

    Yields:
        What was checked, whether it holds, and what was found.

    Raises:
        OSError, huggingface_hub.errors.HfHubHTTPError: What is to be checked is not there.
    """
    if network.kind == 'hub':
        yield from _verify_repository(network.name, revision)
    else:
        yield from _verify_here(network, None, **load_args)


def _verify_repository(name: str, revision: Optional[str]) -> Iterator[Check]:
    repo_id, _, said_revision = name.partition('@')
    with TemporaryDirectory() as folder_name:  # afresh: a cache would hide what the Hub serves now
        folder = Path(folder_name)
        try:
            info = repository_info(repo_id, revision or said_revision or None)
            snapshot_download(repo_id, revision=info.sha, local_dir=folder)
        except Exception as e:
            raise OSError(explain(e, repo_id)) from e
        yield 'download', True, f'{sum(1 for _ in folder.iterdir())} files'
        for file, sha256, matches in compare_hashes(folder, info):
            yield f'hash of {file}', matches, sha256 if matches else "differs from the Hub's"
        yield from _verify_here(NetworkLocation('folder', folder_name), repo_id)


def _verify_here(network: NetworkLocation, repo_id: Optional[str], **load_args: Any) -> Iterator[Check]:
    try:
        model: Any = load_model(network, **load_args)[0]
    except ConnectionError:  # there is nothing yet to check
        raise
    except Exception as e:
        yield 'weights', False, explain(e)
        return
    architecture = model.pretrained_cfg['architecture']
    num_tensors = len(model.state_dict())
    yield 'weights', True, f'{num_tensors} tensors of {architecture}, of the right names, shapes and dtypes, all finite'
    if network.kind == 'folder':
        yield 'config', True, f'rebuilds {architecture} with {model.num_classes} classes'
        yield _check_card(network.path, repo_id, model)


def _check_card(folder: Path, repo_id: Optional[str], model: nn.Module) -> Check:
    card = folder / 'README.md'
    if not card.is_file():
        return 'card', True, 'there is none, as in a folder that was not pushed yet'
    text = card.read_text(encoding='utf-8', errors='replace')
    blocks, name = code_blocks(text), repo_id or repo_id_of(text)
    # a card is somebody's text: only the programs that this package writes are run
    if blocks != code_blocks(create_card(model, name, TrainingRecord())):
        return 'card', False, 'its programs are not those that this package writes, they are not run.'
    for block in blocks:
        program = block.replace(f"'hf-hub:{name}'", repr(f'local-dir:{folder}'))
        result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
        if result.returncode:
            return 'card', False, f'a program of the card fails: {result.stderr.strip().splitlines()[-1]}'
    return 'card', True, f'{len(blocks)} programs run with timm {timm.__version__}'
