"""Argument types of the command line, none of which imports anything slow.

A type says 'must be ..., but got ...': the parser puts the argument's name before it. Those with settings are used with
`partial`.
"""
import argparse
import ast
import os
import re
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Generator, NoReturn, Sequence, Tuple, TypeVar

from ..hub.arguments import check_license, check_repo_id
from ..hub.location import NetworkLocation, find_network
from ..output.files import check_folder, check_output_file, expand_home
from ..output.terminal import closest
from ..settings import DISTRIBUTIONS, check_schedule

__all__ = [
    'HelpFormatter', 'Parser', 'UsageError', 'choice', 'count', 'device', 'distribution', 'fraction', 'input_path',
    'key_value', 'license_name', 'model_name', 'network', 'option_of', 'output_file', 'output_folder', 'repo_id',
    'revision', 'schedule', 'text', 'usage_errors', 'whole_number', 'wildcard',
]

T = TypeVar('T')


class UsageError(ValueError):
    """Wrong use of a command that shows only after its arguments are parsed."""


@contextmanager
def usage_errors() -> Generator[None, None, None]:
    """Context that turns the errors of a check of arguments into `UsageError`."""
    try:
        yield
    except (ValueError, OSError) as e:
        raise UsageError(e) from e


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of a table or an example."""


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r'^argument (\S+): ', r'\1 ', ' '.join(message.split()))
        if message.startswith('unrecognized arguments: '):
            message += closest(message.split()[2].partition('=')[0], self._option_string_actions)
        self.exit(2, f'{self.prog}: {message}\n')


def option_of(dest: str) -> str:
    """Name of the option that sets an attribute."""
    return f'--{dest.replace("_", "-")}'


def _refuse(allowed: str, value: str, hint: str = '.') -> NoReturn:
    raise argparse.ArgumentTypeError(f'must be {allowed}, but got {value!r}{hint}')


def _checked(check: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    try:
        return check(*args, **kwargs)
    except (ValueError, OSError) as e:
        raise argparse.ArgumentTypeError(str(e).strip()) from e


def text(what: str, value: str) -> str:
    """Any text but an empty one."""
    return value if value.strip() else _refuse(what, value)


revision = partial(text, 'a branch, tag or commit')
wildcard = partial(text, 'a wildcard filter')


def model_name(value: str) -> str:
    """A name of timm's registry, with or without a tag, or of a folder's or a repository's model: its form."""
    return value if re.fullmatch(r'(hf-hub:|hf_hub:|local-dir:).+|[\w.-]+', value) else _refuse(
        'the name of a model', value)


def choice(choices: Sequence[str], value: str) -> str:
    """One of a few names."""
    return value if value in choices else _refuse(
        f'one of {", ".join(choices)}', value, closest(value, choices))


distribution = partial(choice, DISTRIBUTIONS)


def whole_number(minimum: int, value: str, maximum: int = 2 ** 31 - 1) -> int:
    """A whole number within bounds."""
    number = int(value) if re.fullmatch(r'\s*[+-]?\d{1,18}\s*', value) else minimum - 1
    return number if minimum <= number <= maximum else _refuse(f'a whole number from {minimum:,} to {maximum:,}', value)


count = partial(whole_number, 1)


def fraction(value: str) -> float:
    """A number in [0, 1]."""
    try:
        number = float(value)
    except ValueError:
        number = -1.
    return number if 0. <= number <= 1. else _refuse('in [0, 1]', value)  # NaN is in no range


def schedule(value: str) -> Tuple[Tuple[float, float], ...]:
    """Points of a schedule, as in 0:1,0.2:0: progress of training and share of the rate."""
    try:
        return check_schedule('', [tuple(float(number) for number in point.split(':')) for point in value.split(',')])
    except (TypeError, ValueError):
        _refuse('points PROGRESS:SHARE of numbers in [0, 1], their progress rising, as 0:1,0.2:0', value)


def key_value(value: str) -> Tuple[str, Any]:
    """One of timm's keyword arguments, its value read as timm's `ParseKwargs` reads it."""
    key, equals, literal = value.partition('=')
    if not equals or not key.isidentifier():
        _refuse('of the form KEY=VALUE', value)
    try:
        return key, ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        return key, literal


def device(value: str) -> str:
    """A device, whether the machine has it or not."""
    return value if re.fullmatch(r'cpu|cuda(:[0-9]{1,3})?', value) else _refuse(
        'cpu, cuda or cuda:N', value, closest(value, ('cpu', 'cuda')))


def repo_id(value: str) -> str:
    """The name of a repository, by the rules of the Hub."""
    return _checked(check_repo_id, value, name='')


def license_name(value: str) -> str:
    """The Hub's identifier of a licence."""
    return _checked(check_license, value, name='')


def network(value: str) -> NetworkLocation:
    """The location of a network, see `find_network`."""
    return _checked(find_network, value)


def input_path(kind: str, value: str) -> Path:
    """A file or folder that can be read; `kind` is `'file'` or `'folder'`."""
    path = expand_home(value)
    try:
        exists, is_kind = os.path.exists(path), os.path.isdir(path) == (kind == 'folder')
    except ValueError:  # a null character
        exists = is_kind = False
    if not value or not exists:
        _refuse(f'a {kind}', value, ', which does not exist.')
    if not is_kind:
        _refuse(f'a {kind}', value, f', which is not a {kind}.')
    if not os.access(path, os.R_OK | (os.X_OK if kind == 'folder' else 0)):
        _refuse(f'a {kind} that can be read', value)
    return path


def output_file(suffixes: Sequence[str], value: str) -> Path:
    """A file to write, with one of these suffixes; whether it replaces one is checked with `check_new`."""
    return _checked(check_output_file, value, suffixes, name='')


def output_folder(value: str) -> Path:
    """A folder to write to; what it may hold is checked with `check_folder`."""
    return _checked(check_folder, value, name='', force=True)
