"""Time plain timm, its peers and stochastic depth on this machine, interleaved in one run, and count what they do."""
import argparse
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from ..bench.settings import ROWS, BenchSettings
from ..settings import DISTRIBUTIONS
from .arguments import Choice, Device, Fraction, ModelName, OutputFolderPath, UsageError, WholeNumber

if TYPE_CHECKING:
    from torch import nn

COLUMNS = """columns:
  ratio           time of a step, forward and backward, divided by plain's in the same round: the median
  95% interval    of that median; what the machine can tell apart is as wide
  limit           share of the forward pass's operations left by what the steps dropped: no skipping gets below it
  over it         ratio - limit: what skipping has cost
  ms              time of a step in milliseconds, the median
  MB kept         what autograd keeps for the backward pass; on a GPU "MB at peak", the most that a step has in use
 counts of an eager step, as a ratio to plain's, which no noise moves:
  operations      of convolutions, matrix products and attention
  bytes           read and written
  kernels         started
  kept            bytes kept for the backward pass

Each rate takes as many rounds as bring all intervals within 1% of the ratio, from 20 to --max-rounds, and each round a
step of every row. A round of the default takes 3 s on 2 cores of an AMD EPYC: one to five minutes a rate. --rows,
--max-rounds and --max-seconds make it shorter; the progress bar says how long is left at the most.
"""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults, and a table below that keeps its lines."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = COLUMNS, _Formatter
    parser.add_argument(
        '--model', type=ModelName(), default='resnet50', metavar='NAME',
        help='A plain network of timm. Where a norm looks at the batch, this package scales at inference, as the paper'
        ' does; elsewhere in training, as its peers do.')
    parser.add_argument(
        '--rows', type=Choice(list(ROWS)), nargs='+', default=list(ROWS), metavar='NAME',
        help=f'Networks to compare with the plain one: {", ".join(ROWS)}.')
    parser.add_argument(
        '--batch-size', type=WholeNumber(1), default=16, metavar='N', help='Images in a batch, of each rank.')
    parser.add_argument(
        '--img-size', type=WholeNumber(1), metavar='N',
        help="Size of an image, in pixels; by default 96, or the network's own where that is fixed.")
    parser.add_argument(
        '--rate', type=Fraction(), nargs='+', default=[0.1], metavar='RATE', help='Drop rates, one table each.')
    parser.add_argument(
        '--distribution', '--drop-distribution', type=Choice(DISTRIBUTIONS), default='linear', metavar='NAME',
        help="'linear' or 'uniform'.")
    parser.add_argument('--amp', action='store_true', help='Autocast to bfloat16.')
    parser.add_argument('--channels-last', action='store_true', help='Memory format of images and weights.')
    parser.add_argument('--compile', action='store_true', help='Run each network under torch.compile.')
    parser.add_argument('--inference', action='store_true', help='Measure the forward pass in eval mode.')
    parser.add_argument(
        '--ddp', action='store_true',
        help='Measure block mode and a conditional skip under DistributedDataParallel, 2 ranks over gloo.')
    parser.add_argument(
        '--device', type=Device(), default='cpu', help='Device to measure on: cpu, cuda or cuda:N.')
    parser.add_argument(
        '--max-rounds', type=WholeNumber(1), default=100, metavar='N', help='Steps of each network, at the most.')
    parser.add_argument(
        '--max-seconds', type=WholeNumber(1), default=3600, metavar='N',
        help='No step starts later than this after the first one that counts; what comes before takes its time, too.')
    parser.add_argument(
        '--profile', action='store_true', help='Also print which operations move the bytes of each network.')
    parser.add_argument(
        '--out', type=OutputFolderPath('bench'), metavar='DIR',
        help='Also write the figures there, as JSON and as a picture: a new or empty folder, or one of this command.')


def run(args: argparse.Namespace) -> None:
    if args.ddp and (
            args.device != 'cpu' or args.compile or args.inference or args.distribution != 'linear'
            or args.rows != list(ROWS)):
        raise UsageError(
            '--ddp must be without --compile, --inference, --distribution and --rows, and with --device cpu.')
    if len(set(args.rate)) < len(args.rate):
        raise UsageError(f'--rate must be different ones, but got {" ".join(map(str, args.rate))}.')
    if args.out:
        import matplotlib  # noqa: F401  for the picture: missed now, and not after minutes

    import torch

    from ..bench.contestants import create_contestants
    from ..bench.measure import measure
    from ..bench.ranks import measure_ddp
    from ..bench.report import device_name, draw_rows, format_profile, format_rows, write_rows
    from ..bench.step import Step
    from ..checkpoints.file import create_on_meta
    from ..output.plots import save_figure
    from .checks import check_device, check_network_size, check_rows

    device = check_device('--device', args.device)
    rows = ('conditional', 'block') if args.ddp else tuple(args.rows)
    check_rows('--model', args.model, rows)
    create = partial(create_on_meta, args.model)
    img_size = args.img_size or _default_size(create())
    model_args = check_network_size('--img-size', (img_size, img_size), create)
    runs = [
        BenchSettings(
            args.model, rate, args.distribution, rows, args.batch_size, img_size, model_args, args.amp,
            args.channels_last, args.compile, args.inference, args.ddp, args.device, args.max_rounds, args.max_seconds)
        for rate in args.rate]
    if args.out:
        args.out.check(*(f'{settings.stem}{suffix}' for settings in runs for suffix in ('.json', '.png')))

    x_NCHW = torch.randn(args.batch_size, 3, img_size, img_size, device=device)
    x_NCHW = x_NCHW.to(memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    name = device_name(device)
    with args.out.claimed() if args.out else nullcontext():
        for settings in runs:
            if args.ddp:
                measured = measure_ddp(settings, x_NCHW)
            else:
                step = Step(x_NCHW, args.amp, args.inference)
                measured = measure(create_contestants(settings), step, settings)
            print(f'{settings.title}\n{name}')
            print(format_rows(measured, device), flush=True)
            if args.profile:
                print(format_profile(measured), flush=True)
            if args.out:
                with args.out.write(f'{settings.stem}.json') as file:
                    write_rows(measured, settings, name, file)
                with args.out.write(f'{settings.stem}.png') as file:
                    save_figure(draw_rows(measured, f'{settings.title}\n{name}'), file)


def _default_size(model: 'nn.Module') -> int:
    from .checks import own_size

    cfg: Any = model.pretrained_cfg
    return own_size(model)[-1] if cfg.get('fixed_input_size', False) else 96
