"""Fold a checkpoint into a plain timm network's, or with --unfold back."""
import argparse
from pathlib import Path

from .network import add_network_arguments, network_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('source', type=Path, metavar='IN', help='Checkpoint, folder with a config.json, or weights alone.')
    parser.add_argument(
        'target', type=Path, metavar='OUT', help='File to write: its suffix, .safetensors or .pth, says the format.')
    parser.add_argument('--ema', action='store_true', help="Take a checkpoint's EMA weights.")
    parser.add_argument('--force', action='store_true', help='Replace OUT if it is a file of the same format.')
    parser.add_argument(
        '--unfold', metavar='MODEL', help='IN holds a plain network, OUT gets the weights for this model.')
    add_network_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from ..hub.fold_file import fold_file, unfold_file

    if args.unfold:
        difference = unfold_file(args.source, args.target, args.unfold, args.drop_path, args.force)
    else:
        difference = fold_file(args.source, args.target, args.ema, args.force, args.model, network_args(args))
    print(f'Wrote {args.target}, largest difference of the logits {difference:.2e}')
