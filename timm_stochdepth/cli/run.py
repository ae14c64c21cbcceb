"""Run a script of timm's, train.py for instance, with the models registered and the drop warm-up connected."""
import argparse
import sys
import traceback

from ..training.launcher import run_script


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('script', help='Path of the script.')
    parser.add_argument('args', nargs=argparse.REMAINDER, help='Its arguments.')


def run(args: argparse.Namespace) -> None:
    try:
        run_script(args.script, args.args)
    except Exception:
        traceback.print_exc()  # the script's own errors are shown as they are
        sys.exit(1)
