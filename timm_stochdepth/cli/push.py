"""Push a checkpoint or a folder to the Hub, with config and model card."""
import argparse
import sys
import warnings

from ..file_kinds import REPOSITORY_FILES
from ..terminal import say
from .arguments import InputPath, NewFolder, RepoId, Text, WholeNumber
from .network import add_network_arguments, network_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'source', type=InputPath('file or folder'), help='A checkpoint, a folder with a config.json, or weights alone.')
    parser.add_argument('repo_id', type=RepoId(), help='user/name of the repository.')
    parser.add_argument('--ema', action='store_true', help="Push a checkpoint's EMA weights.")
    parser.add_argument('--plain', action='store_true', help="Push the folded network, as timm's own architecture.")
    parser.add_argument('--private', action='store_true', help='Make a new repository private.')
    parser.add_argument('--revision', type=Text('a branch'), metavar='NAME', help='Branch to push to.')
    parser.add_argument('--create-pr', action='store_true', help='Open a pull request.')
    parser.add_argument(
        '--labels', type=InputPath('file'), metavar='FILE', help='Names of the classes, one a line, in UTF-8.')
    parser.add_argument('--dry-run', action='store_true', help='Show every file and its size, send nothing.')
    parser.add_argument(
        '--out', type=NewFolder(REPOSITORY_FILES), metavar='DIR',
        help='Keep the files there, to be read: a new or empty folder.')
    add_network_arguments(parser)
    parser.add_argument(
        '--img-size', type=WholeNumber(1), metavar='N', help='Size of its images, for a file that does not say it.')


def run(args: argparse.Namespace) -> None:
    from huggingface_hub.utils import disable_progress_bars

    from ..hub.labels import read_label_names
    from ..hub.push import push_to_hub
    from ..hub.sources import load_model
    from .checks import check_img_size, check_model_name

    if args.model:
        check_model_name('--model', args.model)
    label_names = read_label_names(args.labels) if args.labels else None
    if not sys.stderr.isatty():
        disable_progress_bars()  # of the upload, which the Hub's client shows anywhere
    say(f'reading {args.source}')
    model, record = load_model(args.source, args.ema, args.model, network_args(args))
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
        record=record,
        dry_run=args.dry_run,
        out=args.out,
    )
    for name, size in sizes.items():
        print(f'{name:<20}{size:>13,} bytes')
    print(f'Pushed: {url}' if url else f'Nothing was sent to {args.repo_id}.')
