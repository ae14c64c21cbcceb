"""List the models: names, default rates with their sources, and pretrained tags if these are asked for."""
import argparse
import re
import textwrap
from fnmatch import fnmatchcase
from typing import Any, Dict, List, Tuple

from ..output.terminal import closest
from . import arguments as kind
from .arguments import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'filter', nargs='?', type=kind.wildcard, default='*',
        help="Wildcard filter on the name, or on that of timm's network, as in 'resnet101*'.")
    parser.add_argument(
        '--tags', action='store_true', help='Also the pretrained tags, the default first; timm is imported for them.')


def run(args: argparse.Namespace) -> None:
    from ..zoo.names import split_stochastic_name
    from ..zoo.rates import default_rate
    from ..zoo.without_drop_paths import default_distribution

    modules = _modules()
    names = _matching(args.filter, modules)
    if not names:
        why = _why(args.filter, modules)
        raise UsageError(f'filter must match a name of this package, but got {args.filter!r}{why}')
    for name in names:
        plain_name, method = split_stochastic_name(name)
        rate, source = default_rate(plain_name, method)
        print(f'{name}: method {method}, rate {rate} {default_distribution(modules[plain_name])} ({source})')
        if args.tags:
            print(textwrap.fill(_tags(name), width=100, initial_indent='    ', subsequent_indent='    '))


def _modules() -> Dict[str, str]:
    """The module of each of timm's names."""
    from ..zoo.names import timm_modules
    from ..zoo.sources import modules_in_sources

    try:
        return modules_in_sources()
    except ValueError:  # of a timm to come, which is imported then
        return timm_modules()


def _matching(pattern: str, modules: Dict[str, str]) -> List[str]:
    """Names that match a pattern themselves, or whose plain network does, in timm's order."""
    from ..zoo.exceptions import methods_of
    from ..zoo.names import stochastic_name

    found = []
    for plain_name, module in modules.items():
        names = [stochastic_name(plain_name, method) for method in methods_of(plain_name, module)]
        found += [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(plain_name, pattern)]
    return sorted(found, key=_natural)


def _natural(name: str) -> Tuple[Any, ...]:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name.lower()))


def _why(pattern: str, modules: Dict[str, str]) -> str:
    """Why nothing matches, as the end of a sentence."""
    from ..settings import METHODS
    from ..zoo.exceptions import why_without_method
    from ..zoo.names import split_stochastic_name

    plain_pattern, method = split_stochastic_name(pattern)
    lacks_method = any(fnmatchcase(m, method) for m in METHODS)  # and is not a name that is misspelled, or has a tag
    for name in (pattern, plain_pattern) if lacks_method else (pattern,):
        plain_name = next((n for n in modules if fnmatchcase(n, name)), None)
        if plain_name is not None:
            return f': {why_without_method(plain_name, modules[plain_name])}.'
    return closest(pattern, _matching('*', modules) if plain_pattern else modules)


def _tags(name: str) -> str:
    from timm.models import get_arch_pretrained_cfgs

    tags = [str(cfg.tag) for cfg in get_arch_pretrained_cfgs(name).values()]
    return f'{len(tags)} pretrained tags, first the default: {", ".join(tags)}' if tags else 'no pretrained tags'
