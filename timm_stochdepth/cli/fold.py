"""Fold a checkpoint into a plain timm network's, or with --unfold back."""
import argparse

from ..file_kinds import WEIGHTS
from ..files import check_output_file
from ..terminal import say
from .arguments import InputPath, ModelName, OutputFile, UsageError
from .network import add_network_arguments, network_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'source', type=InputPath('file or folder'), metavar='IN',
        help='A checkpoint, a folder with a config.json, or weights alone.')
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

    for name in ('unfold', 'model'):
        if getattr(args, name):
            check_model_name(f'--{name}', getattr(args, name))
    if args.unfold and (args.ema or args.model):
        raise UsageError('--unfold must be without --ema and --model, which have no effect with it.')
    try:
        check_output_file(args.target, WEIGHTS, sources=[args.source])
    except ValueError as e:
        raise UsageError(e) from e
    say(f'folding {args.source}')
    if args.unfold:
        difference = unfold_file(
            args.source, args.target, args.unfold, args.drop_path, args.force, dict(args.model_kwargs))
    else:
        difference = fold_file(args.source, args.target, args.ema, args.force, args.model, network_args(args))
    print(f'Wrote {args.target}, largest difference of the logits {difference:.2e}')
