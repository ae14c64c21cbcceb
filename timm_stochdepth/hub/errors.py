"""Explain an error, on this machine or between it and the Hub, in one sentence."""
import json
from typing import Optional

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from ..checkpoints.offline import is_out_of_reach
from ..output.terminal import one_line

__all__ = ['explain']

# derived classes stand before their bases
_OF_THE_HUB = {
    GatedRepoError: '{name} is gated: ask for access on its page, then log in with `hf auth login`.',
    RepositoryNotFoundError: '{name} does not exist, or is private and this login cannot see it.',
    RevisionNotFoundError: '{name} has no such revision.',
    LocalEntryNotFoundError: '{name} cannot be reached, and the cache does not hold what is asked for.',
    EntryNotFoundError: '{name} lacks a file: {text}',
}
_STATUS = {
    401: 'the Hub refuses this login: log in with `hf auth login`, or ask for access',
    403: 'this login may not do that',
    404: 'there is nothing of that name',
    429: 'the Hub asks for fewer requests, try again later',
}
# modules of the demo extra, and the packages that they are in
_EXTRAS = {'matplotlib': 'matplotlib', 'scipy': 'scipy', 'sklearn': 'scikit-learn'}

_WITH_A_MESSAGE = (OSError, ValueError, RuntimeError, ImportError, MemoryError)


def explain(error: BaseException, repo_id: Optional[str] = None) -> str:
    """One sentence that says what failed and what can be done.

    Args:
        error: Whatever was raised while reading, writing, downloading or uploading.
        repo_id: The repository that it was about.
    """
    name, text = repo_id or 'the repository', one_line(error) or type(error).__name__
    for kind, message in _OF_THE_HUB.items():
        if isinstance(error, kind):
            return message.format(name=name, text=text)
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        reason = _STATUS.get(status, 'the Hub failed, try again later' if status >= 500 else 'the Hub refuses')
        return f'{name}: {reason} (HTTP status {status}).'
    if isinstance(error, SafetensorError):
        is_broken = 'deserializing' in text and '(os error' not in text
        return f'the weights {"are truncated or altered, or no safetensors" if is_broken else "cannot be used"}: {text}'
    if isinstance(error.__cause__, HfHubHTTPError):  # the client says which file, and hides the reason
        return explain(error.__cause__, repo_id)
    if is_out_of_reach(error):
        return f'{name} cannot be reached: {text}'
    return _explain_local(error, text)


def _explain_local(error: BaseException, text: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        package = _EXTRAS[error.name]
        return f'{package} is not installed, which the extra timm-stochdepth[demo] brings: pip install {package}'
    if isinstance(error, OSError) and error.strerror:
        names = ' and '.join(str(n) for n in (error.filename, error.filename2) if n is not None)
        return f'{names or "reading or writing"}: {error.strerror}.'
    if isinstance(error, UnicodeError):
        return f'a file is not text in UTF-8: {text}'
    if isinstance(error, json.JSONDecodeError):
        return f'a file is not JSON: {text}'
    if isinstance(error, _WITH_A_MESSAGE) and not isinstance(error, (NotImplementedError, RecursionError)):
        return text
    # of a thing inside, which nobody outside named: not to be taken for a word about what was given
    return f'internal error, please report it: {type(error).__name__}: {text}'
