"""Pull a repository from the Hub into a folder; a download that was broken off goes on."""
import argparse

from ..output.terminal import say
from .arguments import OutputFolderPath, RepoId, Text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('repo_id', type=RepoId(), help='user/name of the repository.')
    parser.add_argument(
        'folder', type=OutputFolderPath('pull'),
        help='Where to put its files: a new or empty folder, or one that was pulled to before.')
    parser.add_argument(
        '--revision', type=Text('a branch, tag or commit'), metavar='NAME', help='Branch, tag or commit.')


def run(args: argparse.Namespace) -> None:
    from ..hub.pull import pull

    say(f'downloading {args.repo_id} to {args.folder.path}')
    for name, size in pull(args.repo_id, args.folder.path, args.revision).items():
        print(f'{name:<20}{size:>13,} bytes')
    print(f"Pulled: timm.create_model('local-dir:{args.folder.path}', pretrained=True)")
