"""Check that a repository is what it says: every tensor, the hash, the config and the card's code."""
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import timm
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import nn

from ..checkpoints.names import check_finite
from ..output.files import file_sha256
from ..output.terminal import progress_bar
from .card import code_blocks, example_code, repo_id_of
from .config import read_config
from .errors import explain
from .load import load_model
from .location import NetworkSource
from .named_models import create_model, is_stochastic
from .pull import TerminalBar, hub_hashes

__all__ = ['verify']

Check = Tuple[str, bool, str]


def verify(
        source: NetworkSource,
        revision: Optional[str] = None,
        use_ema: bool = False,
        model_name: Optional[str] = None,
        model_args: Optional[Dict[str, Any]] = None,
) -> Iterator[Check]:
    """Check a network: a repository of the Hub, which is downloaded first, a folder, a file of weights or a name.

    Args:
        source: Where it is.
        revision: Branch, tag or commit of a repository.
        use_ema: Take a checkpoint's EMA weights.
        model_name: Name of the network, for a file that does not say it.
        model_args: Arguments of the network, likewise.

    Yields:
        What was checked, whether it holds, and what was found.

    Raises:
        OSError, huggingface_hub.errors.HfHubHTTPError: What is to be checked is not there.
    """
    if source.kind == 'folder':
        yield from _verify_folder(source.path, None, {})
    elif source.kind == 'hub':
        yield from _verify_repository(source.place, revision)
    else:
        yield _attempt('weights', lambda: _check_file(source, use_ema, model_name, model_args))


def _verify_repository(place: str, revision: Optional[str]) -> Iterator[Check]:
    repo_id, _, said_revision = place.partition('@')
    revision = revision or said_revision or None
    with TemporaryDirectory() as name:  # afresh: a cache would hide what the Hub serves now
        folder = Path(name)
        try:
            hashes = hub_hashes(repo_id, revision)
            snapshot_download(repo_id, revision=revision, local_dir=folder, tqdm_class=TerminalBar)
        except Exception as e:
            raise OSError(explain(e, repo_id)) from e
        yield 'download', True, f'{sum(1 for _ in folder.iterdir())} files'
        yield from _verify_folder(folder, repo_id, hashes)


def _verify_folder(folder: Path, repo_id: Optional[str], hashes: Dict[str, str]) -> Iterator[Check]:
    total = sum((folder / name).stat().st_size for name in hashes)
    with progress_bar(total, 'hashing', 'B') as progress:
        for name, sha256 in hashes.items():
            matches = file_sha256(folder / name, progress.update) == sha256
            yield f'hash of {name}', matches, sha256 if matches else "differs from the Hub's"
    model: List[nn.Module] = []
    checks: Dict[str, Callable[[], str]] = {
        'weights': lambda: _check_weights(folder),
        'config': lambda: _check_config(folder, model),
        'card': lambda: _check_card(folder, repo_id, model[0]),
    }
    with progress_bar(len(checks), 'verifying', 'check') as progress:
        for title, check in checks.items():
            result = _attempt(title, check)
            progress.update()
            yield result
            if not result[1]:
                return


def _attempt(title: str, check: Callable[[], str]) -> Check:
    try:
        return title, True, check()
    except ConnectionError:  # there is nothing yet to check
        raise
    except Exception as e:
        return title, False, explain(e)


def _check_file(
        source: NetworkSource,
        use_ema: bool,
        model_name: Optional[str],
        model_args: Optional[Dict[str, Any]],
) -> str:
    model, _ = load_model(source, use_ema, model_name, model_args)
    check_finite(model.state_dict(), str(source))
    cfg: Any = model.pretrained_cfg
    return f'{len(model.state_dict())} tensors of {cfg["architecture"]}, of the right names and shapes, all finite'


def _check_weights(folder: Path) -> str:
    config = read_config(folder)
    if not (folder / 'model.safetensors').is_file():
        return f'in a file of torch.save: {_check_file(NetworkSource("folder", str(folder)), False, None, None)}'
    model_args = {**config.get('model_args', {}), 'num_classes': config['num_classes']}
    expected = create_model(config['architecture'], model_args, on_meta=True).state_dict()
    with safe_open(str(folder / 'model.safetensors'), framework='pt') as file:
        found = set(file.keys())
        if found != set(expected):
            raise ValueError(f'tensors differ from the model: {", ".join(sorted(found ^ set(expected))[:5])}.')
        for name in found:
            tensor, reference = file.get_tensor(name), expected[name]
            if tensor.shape != reference.shape or tensor.dtype.is_floating_point != reference.dtype.is_floating_point:
                raise ValueError(
                    f'{name} must be {tuple(reference.shape)} of {reference.dtype}, but is {tuple(tensor.shape)} of'
                    f' {tensor.dtype}.')
            check_finite({name: tensor}, 'model.safetensors')
    return f'{len(found)} tensors of the right names, shapes and dtypes, all finite'


def _check_config(folder: Path, built: List[nn.Module]) -> str:
    model, _ = load_model(folder)
    built.append(model)
    saved = read_config(folder)
    cfg: Any = model.pretrained_cfg
    if cfg['num_classes'] != saved['num_classes']:
        raise ValueError(f'num_classes must be {saved["num_classes"]}, but the model has {cfg["num_classes"]}.')
    return f'rebuilds {cfg["architecture"]} with {saved["num_classes"]} classes'


def _check_card(folder: Path, repo_id: Optional[str], model: nn.Module) -> str:
    card = folder / 'README.md'
    if not card.is_file():
        return 'there is none, as in a folder that was not pushed yet'
    text = card.read_text(encoding='utf-8')
    blocks = code_blocks(text)
    name = repo_id or repo_id_of(text)
    # a card is somebody's text: only the programs that this package writes are run
    if blocks != example_code(name, is_stochastic(model)):
        raise ValueError("its programs are not those that this package writes, they are not run.")
    for block in blocks:
        program = block.replace(f"'hf-hub:{name}'", repr(f'local-dir:{folder}'))
        result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
        if result.returncode:
            raise ValueError(f'a program of the card fails: {result.stderr.strip().splitlines()[-1]}')
    return f'{len(blocks)} programs run with timm {timm.__version__}'
