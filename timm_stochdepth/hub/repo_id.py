"""Names of repositories."""
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

__all__ = ['check_repo_id']


def check_repo_id(repo_id: Any) -> str:
    """Return the name of a repository if the Hub takes it.

    Raises:
        TypeError: It is no string.
        ValueError: It is none by the Hub's rules; the message names the argument, the value and what is allowed.
    """
    if not isinstance(repo_id, str):
        raise TypeError(f'repo_id must be a name or user/name of the Hub, but got {repo_id!r}.')
    try:
        validate_repo_id(repo_id)
    except HFValidationError as e:
        raise ValueError(f'repo_id must be a name or user/name of the Hub, but got {repo_id!r}: {e}') from e
    return repo_id
