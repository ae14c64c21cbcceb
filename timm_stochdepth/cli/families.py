"""Show which networks of timm can leave out the branches that they drop, by the classes of their blocks."""
import argparse

from . import arguments as kind
from .arguments import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'filter', nargs='?', type=kind.wildcard, default='*',
        help="Wildcard filter on timm's names, as in 'vit_*'; all of them take some minutes.")


def run(args: argparse.Namespace) -> None:
    from ..analysis.survey import format_survey, survey_families
    from ..zoo.names import timm_modules

    names = list(timm_modules(args.filter))
    if not names:
        raise UsageError(f'filter must match a name of timm, but got {args.filter!r}.')
    print(format_survey(survey_families(names)))
