"""Identifiers of licences, as a model card has them."""
import re
from typing import Any

__all__ = ['check_license']


def check_license(name: str, license: Any) -> None:
    """Refuse what has not the form of the Hub's identifiers of licences; which ones there are, the Hub knows.

    Raises:
        TypeError: It is no string.
        ValueError: It is none; the message names the argument.
    """
    if not isinstance(license, str):
        raise TypeError(f'{name} must be an identifier of the Hub, as apache-2.0 or other, but got {license!r}.')
    if not re.fullmatch(r'[a-z0-9][a-z0-9.+-]*', license):
        raise ValueError(f'{name} must be an identifier of the Hub, as apache-2.0 or other, but got {license!r}.')
