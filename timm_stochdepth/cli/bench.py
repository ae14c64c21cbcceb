"""Time plain timm, its peers and stochastic depth on this machine, interleaved in one run, and count what they do."""
import argparse
from functools import partial
from typing import Any, List

from ..bench.settings import ALL_ROWS, HOST_ROWS, ROWS, BenchSettings
from ..output.files import check_folder, check_new
from . import arguments as kind
from .arguments import UsageError, usage_errors

COLUMNS = """columns:
  ratio           time of a step, forward and backward, divided by plain's in the same round: the median
  95% interval    of that median; what the machine can tell apart is as wide
  limit           share of the forward pass's operations left by what the steps dropped: no skipping gets below it
  over it         ratio - limit: what skipping has cost
  in a loop       on a GPU: the ratio where steps follow each other and nobody waits, as in a training
  ms              time of a step in milliseconds, the median
  MB kept         what autograd keeps for the backward pass; on a GPU "MB at peak", the most that a step has in use
 counts of an eager step, as a ratio to plain's, which no noise moves:
  operations      of convolutions, matrix products and attention
  bytes           read and written
  kernels         started
  kept            bytes kept for the backward pass

columns of --host, each above what plain has, forward and backward:
  us a drop path  time of a step by the number of its drop paths, the median
  calls           Python functions that are called, in eager mode

Each rate takes as many rounds as bring all intervals within 1% of the ratio, from 20 to --max-rounds, and each round a
step of every row. A round of the default takes 3 s on 2 cores of an AMD EPYC: one to five minutes a rate. --rows,
--max-rounds and --max-seconds make it shorter; the progress bar says how long is left at the most.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.epilog = COLUMNS
    add('--model', type=kind.model_name, default='resnet50', metavar='NAME',
        help='A network of timm; a name of this package means the plain one. Where a norm looks at the batch, this'
        ' package scales at inference, as the paper does; elsewhere in training, as its peers do.')
    add('--rows', type=partial(kind.choice, list(ALL_ROWS)), nargs='+', default=list(ROWS), metavar='NAME',
        help=f'Networks to compare with the plain one: {", ".join(ROWS)}, which are the default, or'
        f' {", ".join(name for name in ALL_ROWS if name not in ROWS)}.')
    add('--batch-size', type=kind.count, default=16, metavar='N', help='Images in a batch, of each rank.')
    add('--img-size', type=kind.count, metavar='N',
        help="Size of an image, in pixels; by default 96, or the network's own where that is fixed.")
    add('--rate', type=kind.fraction, nargs='+', default=[0.1], metavar='RATE', help='Drop rates, one table each.')
    add('--distribution', '--drop-distribution', type=kind.distribution, default='linear', metavar='NAME',
        help="'linear' or 'uniform'.")
    add('--amp', action='store_true', help='Autocast to bfloat16.')
    add('--channels-last', action='store_true', help='Memory format of images and weights.')
    add('--compile', action='store_true', help='Run each network under torch.compile.')
    add('--inference', action='store_true', help='Measure the forward pass in eval mode.')
    add('--host', action='store_true',
        help="Measure what a drop path costs the host: in a ViT of 24 blocks with next to no work, at a uniform rate.")
    add('--ddp', action='store_true',
        help='Measure block mode and a conditional skip under DistributedDataParallel, 2 ranks over gloo.')
    add('--device', type=kind.device, default='cpu', help='Device to measure on: cpu, cuda or cuda:N.')
    add('--max-rounds', type=kind.count, default=100, metavar='N', help='Steps of each network, at the most.')
    add('--max-seconds', type=kind.count, default=3600, metavar='N',
        help='No step starts later than this after the first one that counts; what comes before takes its time, too.')
    add('--profile', action='store_true', help='Also print which operations move the bytes of each network.')
    add('--out', type=kind.output_folder, metavar='DIR',
        help='Also write the figures there, as JSON and as a picture: a new or empty folder, or one of such figures.')
    add('--force', action='store_true', help='Write to any folder, and replace figures that are there.')


def run(args: argparse.Namespace) -> None:
    _check_options(args)
    import torch

    from ..bench.contestants import create_contestants
    from ..bench.measure import measure
    from ..bench.ranks import measure_ddp
    from ..bench.report import device_name, draw_rows, format_profile, format_rows, write_rows
    from ..bench.step import Step
    from ..output.plots import save_figure
    from .checks import check_device

    device = check_device('--device', args.device)
    if args.host:
        return _run_host(args, device)
    runs = _settings(args)
    with usage_errors():
        for settings in runs if args.out else ():
            for suffix in ('.json', '.png'):
                check_new(args.out / f'{settings.stem}{suffix}', '--out', args.force)

    x_NCHW = torch.randn(args.batch_size, 3, runs[0].img_size, runs[0].img_size, device=device)
    x_NCHW = x_NCHW.to(memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    name = device_name(device)
    for settings in runs:
        if args.ddp:
            measured = measure_ddp(settings, x_NCHW)
        else:
            measured = measure(create_contestants(settings), Step(x_NCHW, args.amp, args.inference), settings)
        print(f'{settings.title}\n{name}')
        print(format_rows(measured, device), flush=True)
        if args.profile:
            print(format_profile(measured), flush=True)
        if args.out:
            write_rows(measured, settings, name, args.out / f'{settings.stem}.json', args.force)
            figure = draw_rows(measured, f'{settings.title}\n{name}')
            save_figure(figure, args.out / f'{settings.stem}.png', args.force)


def _run_host(args: argparse.Namespace, device: Any) -> None:
    import torch

    from ..bench.contestants import create_contestants
    from ..bench.host import HOST_NETWORK, format_host_rows, measure_host
    from ..bench.report import device_name
    from ..bench.step import Step

    rows = tuple(row for row in HOST_ROWS if row != 'ahead' or device.type == 'cpu')
    for rate in args.rate:
        settings = BenchSettings(
            rate=rate, distribution='uniform', rows=rows, batch_size=args.batch_size, amp=args.amp,
            compile=args.compile, device=args.device, max_rounds=args.max_rounds, max_seconds=args.max_seconds,
            **HOST_NETWORK)
        x_NCHW = torch.randn(args.batch_size, *settings.input_size, device=device)
        measured = measure_host(create_contestants(settings), Step(x_NCHW, args.amp), settings)
        print(f'{settings.title}\n{device_name(device)}\n{format_host_rows(measured)}', flush=True)


def _check_options(args: argparse.Namespace) -> None:
    if args.ddp and (
            args.device != 'cpu' or args.compile or args.inference or args.distribution != 'linear'
            or args.rows != list(ROWS)):
        raise UsageError(
            '--ddp must be without --compile, --inference, --distribution and --rows, and with --device cpu.')
    others = args.ddp or args.inference or args.profile or args.out or args.img_size or args.rows != list(ROWS)
    if args.host and (others or args.model != 'resnet50' or args.channels_last or args.distribution != 'linear'):
        raise UsageError(
            '--host must be with --rate, --batch-size, --amp, --compile, --device, --max-rounds and --max-seconds'
            ' alone: it has a network and rows of its own.')
    if len(set(args.rate)) < len(args.rate):
        raise UsageError(f'--rate must be different ones, but got {" ".join(map(str, args.rate))}.')
    if args.force and not args.out:
        raise UsageError('--force needs an --out to write to.')
    if args.out:
        with usage_errors():
            check_folder(args.out, '--out', args.force, own=['*_rate*.json', '*_rate*.png'])
        import matplotlib  # noqa: F401  for the picture: missed now, and not after minutes


def _settings(args: argparse.Namespace) -> List[BenchSettings]:
    """Settings of the benchmark, one for each rate."""
    from ..checkpoints.file import create_on_meta
    from ..zoo.names import plain_architecture
    from .checks import check_model_name, check_network_size, check_rows, own_size

    rows = ('conditional', 'block') if args.ddp else tuple(args.rows)
    check_model_name('--model', args.model)
    name = plain_architecture(args.model)
    check_rows('--model', name, rows)
    create = partial(create_on_meta, name)
    model: Any = create()
    is_fixed = model.pretrained_cfg.get('fixed_input_size', False)
    img_size = args.img_size or (own_size(model)[-1] if is_fixed else 96)
    model_args = check_network_size('--img-size', (img_size, img_size), create)
    return [
        BenchSettings(
            name, rate, args.distribution, rows, args.batch_size, img_size, model_args, args.amp,
            args.channels_last, args.compile, args.inference, args.ddp, args.device, args.max_rounds, args.max_seconds)
        for rate in args.rate]
