"""Check that a repository is what it says: every tensor, the hash, the config and the card's code."""
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import timm
from safetensors import safe_open
from torch import nn

from ..files import file_sha256
from ..terminal import progress_bar
from ..weights import check_finite
from .card import code_blocks, example_code
from .config import read_config
from .errors import explain
from .pull import TerminalBar, hub_hashes
from .sources import create_model, is_stochastic, load_model

__all__ = ['verify']

Check = Tuple[str, bool, str]


def verify(repo_or_folder: str, revision: Optional[str] = None) -> Iterator[Check]:
    """Check a folder, or a repository of the Hub, which is downloaded first.

    Args:
        repo_or_folder: Path of a folder, or user/name of a repository.
        revision: Branch, tag or commit of a repository.

    Yields:
        What was checked, whether it holds, and what was found.
    """
    if Path(repo_or_folder).is_dir():
        yield from _verify_folder(Path(repo_or_folder), None, {})
        return
    from huggingface_hub import snapshot_download

    with TemporaryDirectory() as name:  # afresh: a cache would hide what the Hub serves now
        folder = Path(name)
        try:
            hashes = hub_hashes(repo_or_folder, revision)
            snapshot_download(repo_or_folder, revision=revision, local_dir=folder, tqdm_class=TerminalBar)
        except Exception as e:
            yield 'download', False, explain(e, repo_or_folder)
            return
        yield 'download', True, f'{sum(1 for _ in folder.iterdir())} files'
        yield from _verify_folder(folder, repo_or_folder, hashes)


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
    except Exception as e:
        return title, False, explain(e)


def _check_weights(folder: Path) -> str:
    config = read_config(folder)
    model_args = {**config.get('model_args', {}), 'num_classes': config['num_classes']}
    expected = create_model(config['architecture'], on_meta=True, **model_args).state_dict()
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
        raise ValueError('there is no README.md.')
    blocks = code_blocks(card.read_text(encoding='utf-8'))
    name = repo_id or next((b.split("'hf-hub:")[1].split("'")[0] for b in blocks if "'hf-hub:" in b), '')
    # a card is somebody's text: only the programs that this package writes are run
    if blocks != example_code(name, is_stochastic(model)):
        raise ValueError("its programs are not those that this package writes, they are not run.")
    for block in blocks:
        program = block.replace(f"'hf-hub:{name}'", repr(f'local-dir:{folder}'))
        result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
        if result.returncode:
            raise ValueError(f'a program of the card fails: {result.stderr.strip().splitlines()[-1]}')
    return f'{len(blocks)} programs run with timm {timm.__version__}'
