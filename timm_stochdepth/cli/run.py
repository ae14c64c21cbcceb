"""Run a script of timm's, train.py for instance, with stochastic depth for any model and a drop warm-up."""
import argparse
import sys
import traceback
from functools import partial

from ..output.terminal import complain
from ..settings import DRAWS, METHODS, Settings
from . import arguments as kind
from .arguments import UsageError, option_of, usage_errors

_EXAMPLE = """\
example:
  timm-stochdepth run --skip-dropped --drop-warmup 0.1 \\
      train.py --data-dir DATA --model vit_small_patch16_224 --drop-path 0.4

The options above stand before the script. What follows it is the script's own.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.epilog = _EXAMPLE
    add('--stochastic-depth', type=partial(kind.choice, METHODS), metavar='METHOD',
        help="'sample' or 'block': how the drop paths of any model of timm drop, at the rate of the script's"
             " --drop-path; 'sample' if one of the next ones is given alone.")
    add('--skip-dropped', action='store_true',
        help='Do not compute what they drop, for each sample by itself; its checkpoints are plain ones of timm.')
    add('--round-up', action='store_true',
        help='With --skip-dropped: round the number of samples that run a branch up, so that a GPU meets few numbers.')
    add('--draw', type=partial(kind.choice, DRAWS), default='independent', metavar='NAME',
        help="'independent', or 'fixed', by which as many samples run a branch in each batch.")
    add('--drop-distribution', type=kind.distribution, metavar='NAME',
        help="How the rate of the script's --drop-path is spread over the blocks, 'linear' or 'uniform', instead of"
             " timm's own way.")
    add('--drop-warmup', type=kind.fraction, metavar='FRACTION',
        help="Fraction of training over which the rates rise from 0; it follows the script's scheduler.")
    add('--drop-schedule', type=kind.schedule, metavar='POINTS',
        help='Points PROGRESS:SHARE of training and of the rates, linear in between, instead of a warm-up: 0:1,0.2:0 is'
             ' early stochastic depth, 0.2:0,0.2001:1 late.')
    add('script', type=partial(kind.input_path, 'file'), help='Path of the script.')
    add('args', nargs=argparse.REMAINDER, help='Its arguments.')


def run(args: argparse.Namespace) -> None:
    if args.skip_dropped and args.stochastic_depth == 'block':
        raise UsageError(
            '--skip-dropped must be left out with --stochastic-depth block, which never computes what it drops.')
    if args.drop_warmup is not None and args.drop_schedule is not None:
        raise UsageError('--drop-warmup must be left out with --drop-schedule, which takes its place.')
    if args.round_up and not args.skip_dropped:
        raise UsageError('--round-up must be left out without --skip-dropped: all samples run.')
    from ..checkpoints.drop_options import DropOptions, LauncherError
    from ..checkpoints.offline import is_out_of_reach
    from ..integrations.timm_scripts.launcher import run_script

    options = None
    asked = (args.stochastic_depth, args.drop_distribution, args.drop_warmup, args.drop_schedule)
    if args.skip_dropped or args.draw == 'fixed' or any(value is not None for value in asked):
        with usage_errors():
            settings = _settings(args)
        options = DropOptions(settings, args.drop_distribution)

    try:
        run_script(str(args.script), args.args, options)
    except LauncherError:
        raise  # a sentence
    except SystemExit as e:
        _tell_of_misplaced(args, e.code)
        raise
    except Exception as e:
        traceback.print_exc()  # the script's own errors are shown as they are
        if is_out_of_reach(e):
            complain(
                'the Hub is out of reach, and the cache does not hold what is asked for. Without a network,'
                " train.py's --pretrained --pretrained-path FILE takes weights that are on this machine.")
        sys.exit(1)


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        args.stochastic_depth or 'sample',
        drop_rate=None,
        drop_warmup=args.drop_warmup or 0.,
        drop_schedule=args.drop_schedule,
        scale_by_keep=True,
        skip_dropped=args.skip_dropped,
        round_up=args.round_up,
        draw=args.draw,
    )


def _tell_of_misplaced(args: argparse.Namespace, status: object) -> None:
    """Tell where to put an option of the launcher that a script has refused."""
    own = {option_of(dest) for dest in vars(args) if dest not in ('command', 'script', 'args')}
    misplaced = [word.partition('=')[0] for word in args.args if word.partition('=')[0] in own]
    if status == 2 and misplaced:
        complain(f'{misplaced[0]} stands before the script if it is to be an option of timm-stochdepth run.')
