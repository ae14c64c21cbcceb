"""Run a script of timm's, train.py for instance, with the models registered and the drop warm-up connected."""
import argparse
import sys
import traceback

from .arguments import InputPath


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('script', type=InputPath('file'), help='Path of the script.')
    parser.add_argument('args', nargs=argparse.REMAINDER, help='Its arguments.')


def run(args: argparse.Namespace) -> None:
    from ..training.launcher import run_script

    try:
        run_script(str(args.script), args.args)
    except Exception:
        traceback.print_exc()  # the script's own errors are shown as they are
        sys.exit(1)
