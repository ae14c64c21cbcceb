"""Verify a folder, or a repository of the Hub: tensors, hash, config and the card's code."""
import argparse

from ..terminal import say
from .arguments import RepoOrFolder, Text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'source', type=RepoOrFolder(), metavar='REPO_OR_DIR', help='user/name of a repository, or path of a folder.')
    parser.add_argument(
        '--revision', type=Text('a branch, tag or commit'), metavar='NAME',
        help='Branch, tag or commit of a repository.')


def run(args: argparse.Namespace) -> None:
    from ..hub.verify import verify

    say(f'verifying {args.source}')
    failed = []
    for title, holds, found in verify(args.source, args.revision):
        print(f'{"ok" if holds else "FAILED":<8}{title}: {found}')
        if not holds:
            failed.append(title)
    if failed:
        raise ValueError(f'{args.source} is not what it says: {", ".join(failed)}.')
