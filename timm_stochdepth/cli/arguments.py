"""What each kind of argument takes, checked while the command line is read: nothing here is slow to import.

A kind is the `type` of an argument, and says 'must be ..., but got ...': the parser puts the argument's name before it.
"""
import argparse
import ast
import os
import re
from pathlib import Path
from typing import Any, Callable, Collection, NoReturn, Sequence, Tuple, TypeVar

from ..hub.license import check_license
from ..hub.location import NetworkSource, find_network
from ..output.files import check_output_file, expand_home
from ..output.folder import OutputFolder, check_folder, entries
from ..output.terminal import closest
from ..settings import check_schedule

__all__ = [
    'Choice', 'Device', 'Fraction', 'InputPath', 'KeyValue', 'License', 'ModelName', 'Network', 'NewFolder',
    'OutputFile', 'OutputFolderPath', 'Parser', 'RepoId', 'Schedule', 'Text', 'UsageError', 'WholeNumber',
]

T = TypeVar('T')


class UsageError(ValueError):
    """A wrong value of the command line that is only seen later, when torch and timm are there."""


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r'^argument (\S+): ', r'\1 ', ' '.join(message.split()))
        if message.startswith('unrecognized arguments: '):
            message += closest(message.split()[2].partition('=')[0], self._option_string_actions)
        self.exit(2, f'{self.prog}: {message}\n')


def _refuse(allowed: str, value: str, hint: str = '.') -> NoReturn:
    raise argparse.ArgumentTypeError(f'must be {allowed}, but got {value!r}{hint}')


class Text:
    """Anything but nothing.

    Args:
        what: What it is, in words.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self, value: str) -> str:
        if not value.strip():
            _refuse(self.what, value)
        return value


class ModelName:
    """The form of a name of timm's registry, with or without a tag; or of a folder's or a repository's model."""

    def __call__(self, value: str) -> str:
        if not re.fullmatch(r'(hf-hub:|hf_hub:|local-dir:).+|[\w.-]+', value):
            _refuse('the name of a model', value)
        return value


class Choice:
    """One of a few names."""

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = choices

    def __call__(self, value: str) -> str:
        if value not in self.choices:
            _refuse(f'one of {", ".join(self.choices)}', value, closest(value, self.choices))
        return value


class WholeNumber:
    """A whole number within bounds."""

    def __init__(self, minimum: int, maximum: int = 2 ** 31 - 1) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def __call__(self, value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = self.minimum - 1
        if not self.minimum <= number <= self.maximum:
            _refuse(f'a whole number from {self.minimum:,} to {self.maximum:,}', value)
        return number


class Fraction:
    """A number in [0, 1]."""

    def __call__(self, value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = -1.
        if not 0. <= number <= 1.:  # NaN is in no range
            _refuse('in [0, 1]', value)
        return number


class Schedule:
    """Points of a schedule, as in 0:1,0.2:0: progress of training and share of the rate."""

    def __call__(self, value: str) -> Tuple[Tuple[float, float], ...]:
        try:
            points = [tuple(float(number) for number in point.split(':')) for point in value.split(',')]
            return check_schedule('', points)
        except (TypeError, ValueError):
            _refuse(
                'points PROGRESS:SHARE of numbers in [0, 1], their progress rising, as 0:1,0.2:0', value)


class KeyValue:
    """One of timm's keyword arguments, its value read as timm's `ParseKwargs` reads it."""

    def __call__(self, value: str) -> Tuple[str, Any]:
        key, equals, text = value.partition('=')
        if not equals or not key.isidentifier():
            _refuse('of the form KEY=VALUE', value)
        try:
            return key, ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return key, text


class Device:
    """What this package measures on; whether the machine has it is not known yet."""

    def __call__(self, value: str) -> str:
        if not re.fullmatch(r'cpu|cuda(:[0-9]{1,3})?', value):
            _refuse('cpu, cuda or cuda:N', value, closest(value, ('cpu', 'cuda')))
        return value


class RepoId:
    """The name of a repository, by the rules of the Hub."""

    def __call__(self, value: str) -> str:
        part = r'[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?'
        if not re.fullmatch(f'({part}/)?{part}', value) or re.search(r'--|\.\.|\.git$', value):
            _refuse('a name or user/name of the Hub, of letters, digits and single . _ -', value)
        return value


class License:
    """The Hub's identifier of a licence."""

    def __call__(self, value: str) -> str:
        _checked(lambda: check_license('', value))
        return value


class InputPath:
    """A file or folder that can be read.

    Args:
        kind: `'file'`, `'folder'`, or `'file or folder'`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, value: str) -> Path:
        if not value:
            _refuse(f'a {self.kind}', value)
        place = expand_home(value)
        try:
            is_folder, exists = os.path.isdir(place), os.path.exists(place)
        except ValueError:  # a null character
            is_folder = exists = False
        if not exists:
            _refuse(f'a {self.kind}', value, ', which does not exist.')
        if is_folder and 'folder' not in self.kind:
            _refuse('a file', value, ', a folder.')
        if not is_folder and 'file' not in self.kind:
            _refuse('a folder', value, ', which is none.')
        if not os.access(place, os.R_OK | (os.X_OK if is_folder else 0)):
            _refuse(f'a {self.kind} that can be read', value)
        return place


class Network:
    """A network, wherever it is: see `find_network`."""

    def __call__(self, value: str) -> NetworkSource:
        return _checked(lambda: find_network(value))


class OutputFile:
    """A file to write; what may be replaced is known when all arguments are: see `check_output_file`.

    Args:
        suffixes: Suffixes that its name may have.
    """

    def __init__(self, suffixes: Sequence[str]) -> None:
        self.suffixes = suffixes

    def __call__(self, value: str) -> Path:
        return _checked(lambda: check_output_file(value, self.suffixes, name=''))


class OutputFolderPath:
    """A folder to write to: new, empty, or one that the command has written to before.

    Args:
        command: Name of the command.
    """

    def __init__(self, command: str) -> None:
        self.command = command

    def __call__(self, value: str) -> OutputFolder:
        return _checked(lambda: OutputFolder(value, self.command, name=''))


class NewFolder:
    """A folder to write to, new or empty; or with files of the same names, whose content decides when it is known.

    Args:
        names: Names of the files.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = names

    def __call__(self, value: str) -> Path:
        folder = _checked(lambda: check_folder(value, name=''))
        strange = [entry.name for entry in entries(folder) if entry.name not in self.names]
        if strange:
            _refuse('a new or empty folder', value, f', which holds {strange[0]}.')
        return folder


def _checked(check: Callable[[], T]) -> T:
    try:
        return check()
    except (ValueError, OSError) as e:
        raise argparse.ArgumentTypeError(str(e).strip()) from e
