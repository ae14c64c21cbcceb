"""The command `timm-stochdepth`: one module of this folder for each subcommand."""
import argparse
import sys
from typing import List, Optional

from .. import __version__
from . import bench, demo, fold, list_models, pull, push, run, show, verify

__all__ = ['main']

_COMMANDS = {
    'demo': demo,
    'list': list_models,
    'show': show,
    'fold': fold,
    'push': push,
    'pull': pull,
    'verify': verify,
    'bench': bench,
    'run': run,
}


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments, without the program's name; those of the process if None.

    Returns:
        The exit status: 0, 1 after an error that is told in one line, or 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog='timm-stochdepth', description='Stochastic depth for timm image models.')
    parser.add_argument('--version', action='version', version=__version__)
    subparsers = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, command in _COMMANDS.items():
        summary = (command.__doc__ or '').splitlines()[0]
        subparser = subparsers.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.add_arguments(subparser)
    args = parser.parse_args(argv)
    try:
        _COMMANDS[args.command].run(args)
    except KeyboardInterrupt:
        print(f'timm-stochdepth {args.command}: interrupted', file=sys.stderr)
        return 130
    except Exception as e:
        from ..hub.errors import explain  # the Hub's client is slow to import, and an error can wait
        print(f'timm-stochdepth {args.command}: {explain(e, getattr(args, "repo_id", None))}', file=sys.stderr)
        return 1
    return 0
