"""Fold a checkpoint into a plain timm network's, or with --unfold back."""
import argparse

from ..output.file_kinds import WEIGHTS
from ..output.files import check_output_file
from ..output.terminal import say
from .arguments import ModelName, OutputFile, UsageError
from .network import add_network, add_network_arguments, check_network, network_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network(parser, 'IN', 'The network')
    parser.add_argument(
        'target', type=OutputFile(WEIGHTS), metavar='OUT',
        help=f'New file to write, in the format of its suffix: {", ".join(WEIGHTS)}.')
    parser.add_argument('--force', action='store_true', help='Replace a file of that format.')
    parser.add_argument('--ema', action='store_true', help="Take a checkpoint's EMA weights.")
    parser.add_argument(
        '--unfold', type=ModelName(), metavar='MODEL',
        help='IN holds a plain network, OUT gets the weights for this model.')
    add_network_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from ..hub.fold_file import fold_file, unfold_file
    from .checks import check_model_name

    if args.unfold:
        check_model_name('--unfold', args.unfold)
    # --drop-path is that of the network to be made with --unfold
    check_network(args, {'--ema': args.ema, '--drop-path': None if args.unfold else args.drop_path})
    if args.unfold and (args.ema or args.model):
        raise UsageError('--unfold must be without --ema and --model, which have no effect with it.')
    try:
        check_output_file(args.target, WEIGHTS, sources=args.source.paths)
    except ValueError as e:
        raise UsageError(e) from e
    say(f'folding {args.source}')
    if args.unfold:
        difference = unfold_file(
            args.source, args.target, args.unfold, args.drop_path, args.force, dict(args.model_kwargs))
    else:
        difference = fold_file(args.source, args.target, args.ema, args.force, args.model, network_args(args))
    print(f'Wrote {args.target}, largest difference of the logits {difference:.2e}')
