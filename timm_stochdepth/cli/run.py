"""Run a script of timm's, train.py for instance, with stochastic depth for any model and a drop warm-up."""
import argparse
import sys
import traceback

from ..output.terminal import complain
from ..settings import DISTRIBUTIONS, METHODS, Settings
from .arguments import Choice, Fraction, InputPath, Schedule, UsageError

_EXAMPLE = """\
example:
  timm-stochdepth run --skip-dropped --drop-warmup 0.1 \\
      train.py --data-dir DATA --model vit_small_patch16_224 --drop-path 0.4

The options above stand before the script. What follows it is the script's own.
"""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the example."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = _HelpFormatter
    parser.epilog = _EXAMPLE
    parser.add_argument(
        '--stochastic-depth', type=Choice(METHODS), metavar='METHOD',
        help="'sample' or 'block': how the drop paths of any model of timm drop, at the rate of the script's"
             " --drop-path; 'sample' if one of the next four is given alone.")
    parser.add_argument(
        '--skip-dropped', action='store_true',
        help='Do not compute what they drop, for each sample by itself; its checkpoints are plain ones of timm.')
    parser.add_argument(
        '--drop-distribution', type=Choice(DISTRIBUTIONS), metavar='NAME',
        help="How the rate of the script's --drop-path is spread over the blocks, 'linear' or 'uniform', instead of"
             " timm's own way.")
    parser.add_argument(
        '--drop-warmup', type=Fraction(), metavar='FRACTION',
        help="Fraction of training over which the rates rise from 0; it follows the script's scheduler.")
    parser.add_argument(
        '--drop-schedule', type=Schedule(), metavar='POINTS',
        help='Points PROGRESS:SHARE of training and of the rates, linear in between, instead of a warm-up: 0:1,0.2:0 is'
             ' early stochastic depth, 0.2:0,0.2001:1 late.')
    parser.add_argument('script', type=InputPath('file'), help='Path of the script.')
    parser.add_argument('args', nargs=argparse.REMAINDER, help='Its arguments.')


def run(args: argparse.Namespace) -> None:
    _refuse_what_has_no_effect(args)
    from ..checkpoints.drop_options import DropOptions, LauncherError
    from ..checkpoints.offline import is_out_of_reach
    from ..integrations.timm_scripts.launcher import run_script

    options = None
    asked = (args.stochastic_depth, args.drop_distribution, args.drop_warmup, args.drop_schedule)
    if args.skip_dropped or any(value is not None for value in asked):
        settings = Settings(
            args.stochastic_depth or 'sample',
            drop_rate=None,
            drop_warmup=args.drop_warmup or 0.,
            drop_schedule=args.drop_schedule,
            scale_by_keep=True,
            skip_dropped=args.skip_dropped,
        )
        options = DropOptions(settings, args.drop_distribution)
    try:
        run_script(str(args.script), args.args, options)
    except LauncherError:
        raise  # a sentence
    except SystemExit as e:
        _tell_of_place(args, e.code)
        raise
    except Exception as e:
        traceback.print_exc()  # the script's own errors are shown as they are
        if is_out_of_reach(e):
            complain(
                'the Hub is out of reach, and the cache does not hold what is asked for. Without a network,'
                " train.py's --pretrained --pretrained-path FILE takes weights that are on this machine.")
        sys.exit(1)


def _refuse_what_has_no_effect(args: argparse.Namespace) -> None:
    if args.skip_dropped and args.stochastic_depth == 'block':
        raise UsageError(
            '--skip-dropped must be left out with --stochastic-depth block, which never computes what it drops.')
    if args.drop_warmup is not None and args.drop_schedule is not None:
        raise UsageError('--drop-warmup must be left out with --drop-schedule, which takes its place.')


def _tell_of_place(args: argparse.Namespace, status: object) -> None:
    """Say where an option of the launcher stands that a script has refused."""
    names = [f'--{name.replace("_", "-")}' for name in vars(args) if name not in ('command', 'script', 'args')]
    misplaced = [name for word in args.args for name in [word.partition('=')[0]] if name in names]
    if status == 2 and misplaced:
        complain(f'{misplaced[0]} stands before the script if it is to be an option of timm-stochdepth run.')
