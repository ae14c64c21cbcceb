"""Cards that say by their last line whether anybody has edited them since they were written."""
import hashlib
import re
from pathlib import Path
from typing import Optional, Tuple

from huggingface_hub import ModelCard

__all__ = ['for_repository', 'is_edited', 'read_card', 'sign']

_SIGNATURE = re.compile(r'\n<!-- as timm-stochdepth wrote it, sha256 ([0-9a-f]{64}) -->\n\Z')


def sign(text: str) -> str:
    """A card with the line that tells it from an edited one; a comment, which no reader of the page sees."""
    return f'{text}\n<!-- as timm-stochdepth wrote it, sha256 {_sha256(text)} -->\n'


def is_edited(text: str) -> bool:
    """Whether a card is somebody's own, or was edited since it was written."""
    text = text.replace('\r\n', '\n')
    signature = _SIGNATURE.search(text)
    return signature is None or signature[1] != _sha256(text[:signature.start()])


def for_repository(text: str, old_repo_id: str, repo_id: str) -> str:
    """A card whose programs load another repository than they did, and that is edited if it was before."""
    if not old_repo_id or old_repo_id == repo_id:
        return text
    own = _SIGNATURE.sub('', text) if not is_edited(text) else None
    renamed = (text if own is None else own).replace(f"'hf-hub:{old_repo_id}'", f"'hf-hub:{repo_id}'")
    return renamed if own is None else sign(renamed)


def read_card(folder: Path) -> 'Tuple[Optional[str], Optional[str]]':
    """The model card of a folder and the licence that it states; None for what is not there.

    A README.md that does not begin with metadata, as the Hub reads it, is about something else.
    """
    path = folder / 'README.md'
    if not path.is_file():
        return None, None
    text = path.read_text(encoding='utf-8', errors='replace')
    if not text.startswith('---'):
        return None, None
    try:
        license = ModelCard(text, ignore_metadata_errors=True).data.to_dict().get('license')
    except Exception:  # whatever YAML's reader raises
        return None, None
    return text, license if isinstance(license, str) else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
