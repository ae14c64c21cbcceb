"""Time plain timm, its peers and stochastic depth on this machine, interleaved in one run."""
import argparse

from ..rates import DISTRIBUTIONS
from .arguments import Choice, Device, Fraction, ModelName, OutputFolderPath, UsageError, WholeNumber


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--model', type=ModelName(), default='resnet50', metavar='NAME', help='A plain network of timm.')
    parser.add_argument(
        '--batch-size', type=WholeNumber(1), default=16, metavar='N', help='Images in a batch, of each rank.')
    parser.add_argument('--img-size', type=WholeNumber(1), default=96, metavar='N', help='Size of an image, in pixels.')
    parser.add_argument('--rate', type=Fraction(), default=0.1, help='Drop rate.')
    parser.add_argument(
        '--drop-distribution', type=Choice(DISTRIBUTIONS), default='linear', metavar='NAME',
        help="'linear' or 'uniform'.")
    parser.add_argument('--amp', action='store_true', help='Autocast to bfloat16.')
    parser.add_argument('--channels-last', action='store_true', help='Memory format of images and weights.')
    parser.add_argument('--compile', action='store_true', help='Run each network under torch.compile.')
    parser.add_argument('--inference', action='store_true', help='Time the forward pass in eval mode.')
    parser.add_argument(
        '--ddp', action='store_true',
        help='Time block mode against a conditional skip under DistributedDataParallel, 2 ranks over gloo.')
    parser.add_argument(
        '--device', type=Device(), default='cpu', help='Device to measure on: cpu, cuda or cuda:N.')
    parser.add_argument(
        '--max-rounds', type=WholeNumber(1), default=100, metavar='N', help='Steps of each network, at the most.')
    parser.add_argument(
        '--out', type=OutputFolderPath('bench'), metavar='DIR',
        help='Also write the figures there, as JSON and as a picture: a new or empty folder, or one of this command.')


def run(args: argparse.Namespace) -> None:
    if args.ddp and (args.device != 'cpu' or args.compile or args.inference or args.drop_distribution != 'linear'):
        raise UsageError(
            '--ddp must be without --compile, --inference and --drop-distribution, and with --device cpu.')
    if args.out:
        import matplotlib  # noqa: F401  for the picture: missed now, and not after minutes

    import timm
    import torch

    from ..bench.contestants import create_contestants
    from ..bench.measure import Step, measure
    from ..bench.ranks import measure_ddp
    from ..bench.report import device_name, format_rows, plot_rows, write_rows
    from .checks import check_device, check_img_size, check_skippable

    device = check_device('--device', args.device)
    check_skippable('--model', args.model)
    with torch.device('meta'):
        check_img_size('--img-size', args.img_size, timm.create_model(args.model))
    flags = [f for f in ('amp', 'channels_last', 'compile', 'inference', 'ddp') if getattr(args, f)]
    flags += ['uniform'] if args.drop_distribution == 'uniform' else []
    stem = '_'.join([args.model, f'rate{args.rate}', device.type, *flags])
    if args.out:
        args.out.check(f'{stem}.json', f'{stem}.png')
        args.out.claim()

    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    x_NCHW = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=device)
    x_NCHW = x_NCHW.to(memory_format=memory_format)
    if args.ddp:
        rows = measure_ddp(args.model, args.rate, x_NCHW, args.amp, args.max_rounds)
    else:
        contestants = create_contestants(
            args.model, args.rate, args.batch_size, args.img_size, args.compile, args.drop_distribution)
        for contestant in contestants:
            contestant.model.to(device).to(memory_format=memory_format).train(not args.inference)
        rows = measure(contestants, Step(x_NCHW, args.amp, args.inference), max_rounds=args.max_rounds)

    name = device_name(device)
    print(name)
    print(format_rows(rows, 'MB at peak' if device.type == 'cuda' else 'MB kept'))
    if args.out:
        settings = {k: v for k, v in vars(args).items() if k not in ('out', 'command')}
        title = f'{args.model}, rate {args.rate}, {args.batch_size} x {args.img_size}px'
        with args.out.write(f'{stem}.json') as file:
            write_rows(rows, settings, name, file)
        with args.out.write(f'{stem}.png') as file:
            plot_rows(rows, ', '.join([title, *flags]) + f'\n{name}', file)
