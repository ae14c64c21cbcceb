"""Time plain timm, its peers and stochastic depth on this machine, interleaved in one run."""
import argparse
import json
import platform
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', default='resnet50', metavar='NAME', help='A plain ResNet of timm.')
    parser.add_argument('--batch-size', type=int, default=16, metavar='N', help='Images in a batch.')
    parser.add_argument('--img-size', type=int, default=96, metavar='N', help='Size of an image, in pixels.')
    parser.add_argument('--rate', type=float, default=0.1, help='Drop rate, linear.')
    parser.add_argument('--amp', action='store_true', help='Autocast to bfloat16.')
    parser.add_argument('--channels-last', action='store_true', help='Memory format of images and weights.')
    parser.add_argument('--compile', action='store_true', help='Run each network under torch.compile.')
    parser.add_argument('--device', default='cpu', help='Device to measure on.')
    parser.add_argument('--max-rounds', type=int, default=100, metavar='N', help='Steps of each network, at the most.')
    parser.add_argument('--out', type=Path, metavar='DIR', help='Also write the figures there, as JSON.')


def run(args: argparse.Namespace) -> None:
    import torch

    from ..bench.contestants import create_contestants
    from ..bench.measure import measure
    from ..files import write_beside

    contestants = create_contestants(args.model, args.rate, args.compile, args.img_size)
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    for contestant in contestants:
        contestant.model.to(args.device).to(memory_format=memory_format).train()
    x_NCHW = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=args.device)
    rows = measure(contestants, x_NCHW.to(memory_format=memory_format), args.amp, max_rounds=args.max_rounds)

    print(f'{"network":<28}{"ratio":>8}{"95% interval":>18}{"limit":>8}{"over it":>9}{"MB kept":>9}{"ms":>9}')
    for row in rows:
        interval = f'{row.low:.4f}-{row.high:.4f}'
        print(f'{row.name:<28}{row.ratio:>8.4f}{interval:>18}{row.limit:>8.3f}{row.over_limit:>9.4f}'
              f'{row.memory / 1e6:>9.1f}{row.milliseconds:>9.1f}')
    widest = max((row.high - row.low) / 2 for row in rows)
    verdict = 'within 1%' if widest <= 0.01 else 'not within 1%: the machine was too noisy for these rounds'
    print(f'{rows[0].rounds} rounds, intervals {verdict}.')
    if args.out:
        device = torch.cuda.get_device_name() if args.device.startswith('cuda') else platform.processor()
        settings = {k: v for k, v in vars(args).items() if k not in ('out', 'command')}
        figures = dict(
            settings=settings, device=device, torch=torch.__version__, rows=[row.as_dict() for row in rows])
        with write_beside(args.out / f'{args.model}_{args.rate}.json') as file:
            file.write_text(json.dumps(figures, indent=2) + '\n')
