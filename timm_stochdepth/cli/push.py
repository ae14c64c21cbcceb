"""Push a checkpoint or a folder to the Hub, with config and model card."""
import argparse
from pathlib import Path

from .network import add_network_arguments, network_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('source', type=Path, help='Checkpoint, folder with a config.json, or weights alone.')
    parser.add_argument('repo_id', help='user/name of the repository.')
    parser.add_argument('--ema', action='store_true', help="Push a checkpoint's EMA weights.")
    parser.add_argument('--plain', action='store_true', help="Push the folded network, as timm's own architecture.")
    parser.add_argument('--private', action='store_true', help='Make a new repository private.')
    parser.add_argument('--revision', metavar='NAME', help='Branch to push to.')
    parser.add_argument('--create-pr', action='store_true', help='Open a pull request.')
    parser.add_argument('--labels', type=Path, metavar='FILE', help='Names of the classes, one a line.')
    parser.add_argument('--dry-run', action='store_true', help='Show every file and its size, send nothing.')
    parser.add_argument('--out', type=Path, metavar='DIR', help='Keep the files there, too: a new or empty folder.')
    add_network_arguments(parser)
    parser.add_argument(
        '--img-size', type=int, metavar='N', help='Size of the images, for a file that does not say it.')


def run(args: argparse.Namespace) -> None:
    from ..hub.labels import read_label_names
    from ..hub.push import push_to_hub
    from ..hub.sources import load_model

    label_names = read_label_names(args.labels) if args.labels else None
    model, record = load_model(args.source, args.ema, args.model, network_args(args))
    if args.img_size:
        record.args['img_size'] = args.img_size
    url, sizes = push_to_hub(
        model,
        args.repo_id,
        plain=args.plain,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
        label_names=label_names,
        record=record,
        dry_run=args.dry_run,
        out=args.out,
    )
    for name, size in sizes.items():
        print(f'{name:<20}{size:>13,} bytes')
    print(f'Pushed: {url}' if url else f'Nothing was sent to {args.repo_id}.')
