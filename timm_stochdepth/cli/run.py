"""Run a script of timm's, train.py for instance, with the models registered and the drop warm-up connected."""
import argparse
import sys
import traceback

from ..settings import METHODS
from ..terminal import complain
from .arguments import Choice, InputPath


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--stochastic-depth', type=Choice(METHODS), metavar='METHOD',
        help="'sample' or 'block': how the drop paths of any model of timm drop, at the rate of the script's"
             ' --drop-path.')
    parser.add_argument(
        '--skip-dropped', action='store_true',
        help='Do not compute what they drop, for each sample by itself; its checkpoints are plain ones of timm.')
    parser.add_argument('script', type=InputPath('file'), help='Path of the script.')
    parser.add_argument('args', nargs=argparse.REMAINDER, help='Its arguments.')


def run(args: argparse.Namespace) -> None:
    from ..offline import is_out_of_reach
    from ..settings import Settings
    from ..training.launcher import run_script

    settings = None
    if args.stochastic_depth or args.skip_dropped:
        settings = Settings(
            args.stochastic_depth or 'sample', drop_rate=None, scale_by_keep=True, skip_dropped=args.skip_dropped)
    try:
        run_script(str(args.script), args.args, settings)
    except Exception as e:
        traceback.print_exc()  # the script's own errors are shown as they are
        if is_out_of_reach(e):
            complain(
                'the Hub is out of reach, and the cache does not hold what is asked for. Without a network,'
                " train.py's --pretrained-path FILE takes weights that are on this machine.")
        sys.exit(1)
