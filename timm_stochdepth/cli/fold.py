"""Fold a checkpoint into a plain timm network's, or with --unfold back."""
import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('source', type=Path, metavar='IN', help="Checkpoint of timm's train.py, or folder.")
    parser.add_argument('target', type=Path, metavar='OUT', help='File to write, safetensors.')
    parser.add_argument('--ema', action='store_true', help="Take a checkpoint's EMA weights.")
    parser.add_argument(
        '--unfold', metavar='MODEL', help='IN is safetensors of a plain network, OUT gets the weights for this model.')
    parser.add_argument('--drop-path', type=float, metavar='RATE', help='Drop rate to unfold to, if not the default.')


def run(args: argparse.Namespace) -> None:
    from ..hub.fold_file import fold_file, unfold_file

    if args.unfold:
        difference = unfold_file(args.source, args.target, args.unfold, args.drop_path)
    else:
        difference = fold_file(args.source, args.target, args.ema)
    print(f'Wrote {args.target}, largest difference of the logits {difference:.2e}')
