"""Names of classes."""
from pathlib import Path
from typing import Any, List

__all__ = ['check_label_names', 'read_label_names']


def read_label_names(path: Path) -> List[str]:
    """Names of classes from a text file, one a line, in UTF-8, with any kind of line end and a byte order mark or not.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a folder, or no text in UTF-8.
    """
    if path.is_dir():
        raise ValueError(f'{path} must be a file of names, one a line, but is a folder.')
    try:
        text = path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as e:
        raise ValueError(f'{path} must be text in UTF-8, but is not: {e.reason} at byte {e.start}.') from e
    return [line.strip() for line in text.rstrip().split('\n')] if text.strip() else []


def check_label_names(label_names: Any, num_classes: int, name: str = 'label_names') -> None:
    """Refuse names that are not one for each class.

    Args:
        label_names: The names.
        num_classes: Number of classes.
        name: What they are called where the user gave them.

    Raises:
        TypeError: They are no list of strings.
        ValueError: They are too few or too many, or one is empty; the message gives both numbers.
    """
    if not isinstance(label_names, (list, tuple)) or not all(isinstance(n, str) for n in label_names):
        raise TypeError(f'{name} must be a list of {num_classes} names, but got {label_names!r:.200}.')
    if len(label_names) != num_classes:
        raise ValueError(f'{name} must be {num_classes} names, but got {len(label_names)}.')
    if not all(label_names):
        raise ValueError(
            f'{name} must be {num_classes} names, but number {list(label_names).index("") + 1} is empty.')
