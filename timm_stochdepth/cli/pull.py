"""Pull a repository from the Hub into a folder; a download that was broken off goes on."""
import argparse

from ..output.files import check_folder
from ..output.terminal import say
from . import arguments as kind
from .arguments import usage_errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('repo_id', type=kind.repo_id, help='user/name of the repository.')
    add('folder', type=kind.output_folder, help='Where to put its files: a new or empty folder.')
    add('--revision', type=kind.revision, metavar='NAME', help='Branch, tag or commit.')
    add('--force', action='store_true',
        help='Write to a folder that holds something, in place of files of the same names.')


def run(args: argparse.Namespace) -> None:
    with usage_errors():
        check_folder(args.folder, 'folder', args.force)
    from ..hub.pull import pull

    say(f'downloading {args.repo_id} to {args.folder}')
    for name, size in pull(args.repo_id, args.folder, args.revision, args.force).items():
        print(f'{name:<20}{size:>13,} bytes')
    print(f"Pulled: timm.create_model('local-dir:{args.folder}', pretrained=True)")
