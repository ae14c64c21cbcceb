"""Pull a repository from the Hub into a folder; a download that was broken off goes on."""
import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('repo_id', help='user/name of the repository.')
    parser.add_argument('folder', type=Path, help='Where to put its files.')
    parser.add_argument('--revision', metavar='NAME', help='Branch, tag or commit.')


def run(args: argparse.Namespace) -> None:
    from ..hub.pull import pull

    for name, size in pull(args.repo_id, args.folder, args.revision).items():
        print(f'{name:<20}{size:>13,} bytes')
    print(f"Pulled: timm.create_model('local-dir:{args.folder}', pretrained=True)")
