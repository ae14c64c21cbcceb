"""What went wrong between here and the Hub, in one sentence."""
from typing import Optional

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

__all__ = ['explain']

_STATUS = {
    401: 'the Hub refuses this login: log in with `hf auth login`, or ask for access',
    403: 'this login may not do that',
    404: 'there is nothing of that name',
    429: 'the Hub asks for fewer requests, try again later',
}


def explain(error: BaseException, repo_id: Optional[str] = None) -> str:
    """One sentence that says what failed and what can be done.

    Args:
        error: Whatever was raised while reading, writing, downloading or uploading.
        repo_id: The repository that it was about.
    """
    name = repo_id or 'the repository'
    if isinstance(error, GatedRepoError):
        return f'{name} is gated: ask for access on its page, then log in with `hf auth login`.'
    if isinstance(error, RepositoryNotFoundError):
        return f'{name} does not exist, or is private and this login cannot see it.'
    if isinstance(error, RevisionNotFoundError):
        return f'{name} has no such revision.'
    if isinstance(error, LocalEntryNotFoundError):
        return f'{name} cannot be reached, and the cache does not hold what is asked for.'
    if isinstance(error, EntryNotFoundError):
        return f'{name} lacks a file: {_one_line(error)}'
    if isinstance(error, HFValidationError):
        return f'repo_id must be a name or user/name of the Hub: {_one_line(error)}'
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        reason = _STATUS.get(status, 'the Hub failed, try again later' if status >= 500 else 'the Hub refuses')
        return f'{name}: {reason} (HTTP status {status}).'
    if isinstance(error, SafetensorError):
        if 'deserializing' not in str(error):
            return f'the weights cannot be written: {_one_line(error)}'
        return f'the weights are truncated or altered, or no safetensors: {_one_line(error)}'
    if isinstance(error.__cause__, HfHubHTTPError):  # the client says which file, and hides the reason
        return explain(error.__cause__, repo_id)
    return _one_line(error) or type(error).__name__


def _one_line(error: BaseException) -> str:
    return ' '.join(str(error).split())
