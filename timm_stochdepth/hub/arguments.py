"""Checks of repository names, licences and names of classes."""
import re
from pathlib import Path
from typing import Any, List

__all__ = ['check_label_names', 'check_license', 'check_repo_id', 'read_label_names']

_REPO_NAME = r'[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?'


def check_repo_id(repo_id: Any, name: str = 'repo_id') -> str:
    """Return the name of a repository if it follows the rules of the Hub.

    Raises:
        TypeError: It is not a string.
        ValueError: It does not follow them; the message names the argument, the value and what is allowed.
    """
    allowed = f'{name} must be a name or user/name of the Hub, of letters, digits and single . _ -'
    if not isinstance(repo_id, str):
        raise TypeError(f'{allowed}, but got {repo_id!r}.')
    if not re.fullmatch(f'({_REPO_NAME}/)?{_REPO_NAME}', repo_id) or re.search(r'--|\.\.|\.git$', repo_id):
        raise ValueError(f'{allowed}, but got {repo_id!r}.')
    return repo_id


def check_license(license: Any, name: str = 'license') -> str:
    """Return the Hub's identifier of a licence, by its form; which ones there are, the Hub knows.

    Raises:
        TypeError: It is not a string.
        ValueError: It does not have the form; the message names the argument.
    """
    message = f'{name} must be an identifier of the Hub, as apache-2.0 or other, but got {license!r}.'
    if not isinstance(license, str):
        raise TypeError(message)
    if not re.fullmatch(r'[a-z0-9][a-z0-9.+-]*', license):
        raise ValueError(message)
    return license


def read_label_names(path: Path) -> List[str]:
    """Read names of classes from a text file, one a line, in UTF-8, with any line ends and a byte order mark or not.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not text in UTF-8.
    """
    try:
        text = path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as e:
        raise ValueError(f'{path} must be text in UTF-8, but is not: {e.reason} at byte {e.start}.') from e
    return [line.strip() for line in text.rstrip().split('\n')] if text.strip() else []


def check_label_names(label_names: Any, num_classes: int, name: str = 'label_names') -> None:
    """Refuse names that are not one for each class.

    Raises:
        TypeError: They are not a list of strings.
        ValueError: They are too few or too many, or one is empty; the message gives both numbers.
    """
    if not isinstance(label_names, (list, tuple)) or not all(isinstance(n, str) for n in label_names):
        raise TypeError(f'{name} must be a list of {num_classes} names, but got {label_names!r:.200}.')
    if len(label_names) != num_classes:
        raise ValueError(f'{name} must be {num_classes} names, but got {len(label_names)}.')
    if not all(label_names):
        raise ValueError(f'{name} must be {num_classes} names, but number {label_names.index("") + 1} is empty.')
