"""Push a checkpoint or a folder to the Hub, with config and model card."""
import argparse
from functools import partial
from typing import Any

from ..messages import warn_user
from ..output.files import check_folder, check_new
from ..output.terminal import say
from . import arguments as kind
from .arguments import usage_errors
from .network import add_network, add_network_arguments, check_network, load_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_network(parser)
    add('repo_id', type=kind.repo_id, help='user/name of the repository.')
    add('--ema', action='store_true', help="Push a checkpoint's EMA weights.")
    add('--plain', action='store_true', help="Push the folded network, as timm's own architecture.")
    add('--keep-stochastic-depth', action='store_true',
        help="Push a network that was trained under the launcher by this package's name for it, and not folded.")
    add('--private', action='store_true', help='Make a new repository private.')
    add('--revision', type=kind.revision, metavar='NAME', help='Branch to push to.')
    add('--create-pr', action='store_true', help='Open a pull request.')
    add('--labels', type=partial(kind.input_path, 'file'), metavar='FILE',
        help='Names of the classes, one a line, in UTF-8.')
    add('--license', type=kind.license_name, metavar='NAME',
        help="Licence of the weights, by the Hub's identifier, as apache-2.0; nothing is said of it otherwise, but for"
             ' that of the weights that training started from.')
    add('--dry-run', action='store_true', help='Show every file and its size, and the card, send nothing.')
    add('--out', type=kind.output_folder, metavar='DIR', help='Also keep the files there: a new or empty folder.')
    add('--force', action='store_true',
        help='Replace the card that is on the Hub, and files of the same names in --out.')
    add_network_arguments(parser)
    add('--img-size', type=kind.count, metavar='N', help='Size of its images, for a file that does not say it.')


def run(args: argparse.Namespace) -> None:
    from ..hub.arguments import check_label_names, read_label_names
    from ..hub.folder import FILES
    from ..hub.load import load_model
    from ..hub.push import format_sizes, push_to_hub
    from .checks import check_img_size

    if args.out:
        with usage_errors():
            check_folder(args.out, '--out', args.force)
            for name in FILES:
                check_new(args.out / name, '--out', args.force, args.network.paths)
    label_names = read_label_names(args.labels) if args.labels else None
    say(f'reading {args.network}')
    check_network(args, {'--ema': args.ema, '--drop-path': args.drop_path})
    model, record = load_model(args.network, **load_args(args))
    num_classes: Any = model.num_classes
    with usage_errors():
        if label_names is not None:
            check_label_names(label_names, num_classes, '--labels')
        if args.img_size:
            check_img_size('--img-size', args.img_size, model)
            record.args['img_size'] = args.img_size
    if record.args.get('model_ema') and record.scores_ema != args.ema:
        warn_user(
            f'The run scored its {"EMA" if record.scores_ema else "own"} weights, and these are others: the card has no'
            f' results. push {"with" if record.scores_ema else "without"} --ema takes those.')
    say(f'writing the files of {args.repo_id}' if args.dry_run else f'sending {args.repo_id}')
    options = (
        'plain', 'keep_stochastic_depth', 'private', 'revision', 'create_pr', 'license', 'dry_run', 'out', 'force')
    url, sizes = push_to_hub(
        model, args.repo_id, label_names=label_names, record=record, **{name: getattr(args, name) for name in options})
    if not args.dry_run:
        print(format_sizes(sizes))
    print(f'Pushed: {url}' if url else f'Nothing was sent to {args.repo_id}.')
