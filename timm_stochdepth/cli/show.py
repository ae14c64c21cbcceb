"""Show the blocks of a model: rate, expected depth and share of the operations."""
import argparse
from pathlib import Path

import timm
import torch

from ..operations import block_drop_limit, branch_shares
from ..plots import plot_rates
from ..surgery import drop_rates


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', help='Name of a model with stochastic depth, see `timm-stochdepth list`.')
    parser.add_argument('--drop-path', type=float, metavar='RATE', help='Drop rate, instead of the default one.')
    parser.add_argument('--drop-distribution', metavar='NAME', help="'linear' or 'uniform'.")
    parser.add_argument('--img-size', type=int, default=224, metavar='N', help='Size of the image, in pixels.')
    parser.add_argument('--plot', type=Path, metavar='FILE', help='Also draw the rates into this picture.')


def run(args: argparse.Namespace) -> None:
    with torch.device('meta'):
        model = timm.create_model(args.model)
    rates = drop_rates(model)
    if not rates:
        raise ValueError(f'model must have stochastic depth, but got {args.model!r}: see `timm-stochdepth list`.')
    with torch.device('meta'):
        model = timm.create_model(
            args.model, drop_path_rate=args.drop_path, drop_distribution=args.drop_distribution)
    rates = drop_rates(model)
    shares = branch_shares(model, (3, args.img_size, args.img_size))

    print(f'{"block":<12}{"rate":>8}{"expected depth":>17}{"operations":>13}')
    depth = 0.
    for name, rate in rates.items():
        depth += 1. - rate
        print(f'{name:<12}{rate:>8.4f}{depth:>17.2f}{shares[name]:>13.2%}')
    limit = block_drop_limit(rates, shares)
    print(f'Expected depth: {depth:.2f} of {len(rates)} blocks.')
    print(f'Operations left when dropped blocks are skipped: {limit:.3f} of the plain network.')
    if args.plot:
        plot_rates(args.model, rates, args.plot)
        print(f'Picture: {args.plot}')
