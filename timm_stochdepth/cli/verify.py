"""Verify a network: tensors and config, and of a repository of the Hub hash and card as well."""
import argparse

from ..output.terminal import say
from . import arguments as kind
from .arguments import UsageError
from .network import add_network, add_network_arguments, check_network, load_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    parser.add_argument(
        '--revision', type=kind.revision, metavar='NAME',
        help='Branch, tag or commit of a repository.')
    parser.add_argument('--ema', action='store_true', help="Take a checkpoint's EMA weights.")
    add_network_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from ..hub.verify import verify

    if args.revision and (args.network.kind != 'hub' or '@' in args.network.name):
        raise UsageError(f'--revision must be for a repository of the Hub without one, but got {args.revision!r}.')
    check_network(args, {'--ema': args.ema, '--drop-path': args.drop_path})
    say(f'verifying {args.network}')
    failed = []
    for title, holds, found in verify(args.network, args.revision, **load_args(args)):
        print(f'{"ok" if holds else "FAILED":<8}{title}: {found}')
        if not holds:
            failed.append(title)
    if failed:
        raise ValueError(f'{args.network}: verification failed: {", ".join(failed)}.')
