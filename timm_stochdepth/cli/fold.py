"""Fold a checkpoint into a plain timm network's, or with --unfold back."""
import argparse
from functools import partial

from ..output.files import WEIGHTS, check_new
from ..output.terminal import say
from . import arguments as kind
from .arguments import UsageError, usage_errors
from .network import add_network, add_network_arguments, check_network, load_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_network(parser, 'IN')
    add('target', type=partial(kind.output_file, WEIGHTS), metavar='OUT',
        help=f'New file to write, in the format of its suffix: {", ".join(WEIGHTS)}.')
    add('--force', action='store_true', help='Replace a file that is there.')
    add('--ema', action='store_true', help="Take a checkpoint's EMA weights.")
    add('--unfold', type=kind.model_name, metavar='MODEL',
        help='IN holds a plain network, OUT gets the weights for this model.')
    add_network_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from ..hub.fold_file import fold_file, is_folded, unfold_file
    from .checks import check_model_name

    with usage_errors():
        # what was folded before may be the same: known once this is folded
        check_new(args.target, 'OUT', args.force or is_folded(args.target), args.network.paths)
    if args.unfold:
        check_model_name('--unfold', args.unfold)
    # --drop-path is that of the network to be made with --unfold
    check_network(args, {'--ema': args.ema, '--drop-path': None if args.unfold else args.drop_path})
    if args.unfold and (args.ema or args.model):
        raise UsageError('--unfold must be without --ema and --model, which have no effect with it.')
    say(f'folding {args.network}')
    if args.unfold:
        difference = unfold_file(
            args.network, args.target, args.unfold, args.drop_path, args.force, model_args=dict(args.model_kwargs))
    else:
        difference = fold_file(args.network, args.target, args.force, **load_args(args))
    print(f'Wrote {args.target}, largest difference of the logits {difference:.2e}')
