"""Push a checkpoint or a folder to the Hub, with config and model card."""
import argparse
import sys
import warnings
from typing import Any

from ..output.file_kinds import REPOSITORY_FILES
from ..output.terminal import say
from .arguments import InputPath, License, NewFolder, RepoId, Text, UsageError, WholeNumber
from .network import add_network, add_network_arguments, load_network


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network(parser, 'source', 'The network')
    parser.add_argument('repo_id', type=RepoId(), help='user/name of the repository.')
    parser.add_argument('--ema', action='store_true', help="Push a checkpoint's EMA weights.")
    parser.add_argument('--plain', action='store_true', help="Push the folded network, as timm's own architecture.")
    parser.add_argument('--private', action='store_true', help='Make a new repository private.')
    parser.add_argument('--revision', type=Text('a branch'), metavar='NAME', help='Branch to push to.')
    parser.add_argument('--create-pr', action='store_true', help='Open a pull request.')
    parser.add_argument(
        '--labels', type=InputPath('file'), metavar='FILE', help='Names of the classes, one a line, in UTF-8.')
    parser.add_argument(
        '--license', type=License(), metavar='NAME',
        help="Licence of the weights, by the Hub's identifier, as apache-2.0; nothing is said of it otherwise, but for"
             ' that of the weights that training started from.')
    parser.add_argument(
        '--dry-run', action='store_true', help='Show every file and its size, and the card, send nothing.')
    parser.add_argument(
        '--out', type=NewFolder(REPOSITORY_FILES), metavar='DIR',
        help='Keep the files there, to be read: a new or empty folder.')
    add_network_arguments(parser)
    parser.add_argument(
        '--img-size', type=WholeNumber(1), metavar='N', help='Size of its images, for a file that does not say it.')


def run(args: argparse.Namespace) -> None:
    from huggingface_hub.utils import disable_progress_bars

    from ..hub.labels import check_label_names, read_label_names
    from ..hub.push import format_sizes, push_to_hub
    from .checks import check_img_size

    label_names = read_label_names(args.labels) if args.labels else None
    if not sys.stderr.isatty():
        disable_progress_bars()  # of the upload, which the Hub's client shows anywhere
    say(f'reading {args.source}')
    model, record = load_network(args)
    if label_names is not None:
        num_classes: Any = model.num_classes
        try:
            check_label_names(label_names, num_classes, '--labels')
        except ValueError as e:
            raise UsageError(e) from e
    if record.args.get('model_ema') and record.scores_ema != args.ema:
        warnings.warn(
            f'The run scored its {"EMA" if record.scores_ema else "own"} weights, and these are others: the card has no'
            f' results. push {"with" if record.scores_ema else "without"} --ema takes those.', stacklevel=2)
    if args.img_size:
        check_img_size('--img-size', args.img_size, model)
        record.args['img_size'] = args.img_size
    say(f'writing the files of {args.repo_id}' if args.dry_run else f'sending {args.repo_id}')
    url, sizes = push_to_hub(
        model,
        args.repo_id,
        plain=args.plain,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
        label_names=label_names,
        license=args.license,
        record=record,
        dry_run=args.dry_run,
        out=args.out,
    )
    if not args.dry_run:
        print(format_sizes(sizes))
    print(f'Pushed: {url}' if url else f'Nothing was sent to {args.repo_id}.')
