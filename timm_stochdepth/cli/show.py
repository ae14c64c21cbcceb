"""Show the blocks of a model: rate, expected depth and share of the operations."""
import argparse

from ..plots import PICTURES
from ..rates import DISTRIBUTIONS
from .arguments import Choice, Fraction, ModelName, OutputFile, UsageError, WholeNumber


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'model', type=ModelName(), help='Name of a model with stochastic depth, see `timm-stochdepth list`.')
    parser.add_argument('--drop-path', type=Fraction(), metavar='RATE', help='Drop rate, instead of the default one.')
    parser.add_argument(
        '--drop-distribution', type=Choice(DISTRIBUTIONS), metavar='NAME', help="'linear' or 'uniform'.")
    parser.add_argument(
        '--img-size', type=WholeNumber(1), default=224, metavar='N', help='Size of the image, in pixels.')
    parser.add_argument(
        '--plot', type=OutputFile(PICTURES), metavar='FILE',
        help=f'Also draw the rates into this picture, a new file: {", ".join(PICTURES)}.')
    parser.add_argument('--force', action='store_true', help='Replace a picture that is there.')


def run(args: argparse.Namespace) -> None:
    if args.plot:
        import matplotlib  # noqa: F401  missed now, and not after the table

    import timm
    import torch

    from ..operations import block_drop_limit, branch_shares
    from ..plots import plot_rates
    from ..surgery import drop_rates
    from .checks import check_img_size, check_model_name

    check_model_name('model', args.model)
    with torch.device('meta'):
        model = timm.create_model(args.model)
    rates = drop_rates(model)
    if not rates:
        raise UsageError(f'model must have stochastic depth, but got {args.model!r}: see `timm-stochdepth list`.')
    check_img_size('--img-size', args.img_size, model)
    with torch.device('meta'):
        model = timm.create_model(
            args.model, drop_path_rate=args.drop_path, drop_distribution=args.drop_distribution)
    rates = drop_rates(model)
    shares = branch_shares(model, (3, args.img_size, args.img_size))

    if args.plot:
        plot_rates(args.model, rates, args.plot, args.force, name='--plot')
    print(f'{"block":<12}{"rate":>8}{"expected depth":>17}{"operations":>13}')
    depth = 0.
    for name, rate in rates.items():
        depth += 1. - rate
        print(f'{name:<12}{rate:>8.4f}{depth:>17.2f}{shares[name]:>13.2%}')
    limit = block_drop_limit(rates, shares)
    print(f'Expected depth: {depth:.2f} of {len(rates)} blocks.')
    print(f'Operations left when dropped blocks are skipped: {limit:.3f} of the plain network.')
    if args.plot:
        print(f'Picture: {args.plot}')
