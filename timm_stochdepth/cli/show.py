"""Show the blocks of a model: rate, expected depth and share of the operations, or what their forward does."""
import argparse
from typing import TYPE_CHECKING, Dict, List

from ..plots import PICTURES
from ..rates import DISTRIBUTIONS
from .arguments import Choice, Fraction, ModelName, OutputFile, UsageError, WholeNumber

if TYPE_CHECKING:
    from torch import nn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'model', type=ModelName(), help='Name of a model of timm, or of this package: see `timm-stochdepth list`.')
    parser.add_argument('--drop-path', type=Fraction(), metavar='RATE', help='Drop rate, instead of the default one.')
    parser.add_argument(
        '--drop-distribution', type=Choice(DISTRIBUTIONS), metavar='NAME', help="'linear' or 'uniform'.")
    parser.add_argument(
        '--img-size', type=WholeNumber(1), default=224, metavar='N', help='Size of the image, in pixels.')
    parser.add_argument(
        '--plot', type=OutputFile(PICTURES), metavar='FILE',
        help=f'Also draw the rates into this picture, a new file: {", ".join(PICTURES)}.')
    parser.add_argument(
        '--code', action='store_true', help='Show the forward of each kind of block, cut at its drop paths, instead.')
    parser.add_argument('--force', action='store_true', help='Replace a picture that is there.')


def run(args: argparse.Namespace) -> None:
    if args.plot:
        import matplotlib  # noqa: F401  missed now, and not after the table

    import timm
    import torch

    from ..operations import block_drop_limit, branch_shares
    from ..places import drop_rates
    from ..plots import plot_rates
    from ..surgery import apply_stochastic_depth
    from .checks import check_img_size, check_model_name

    check_model_name('model', args.model)
    with torch.device('meta'):
        model = timm.create_model(args.model)
    is_plain = not drop_rates(model)
    if is_plain and args.drop_path is None and not args.code:
        raise UsageError(
            f'model must have stochastic depth, but got {args.model!r}: see `timm-stochdepth list`, or give'
            ' --drop-path.')
    check_img_size('--img-size', args.img_size, model)
    with torch.device('meta'):
        model = timm.create_model(
            args.model, drop_path_rate=args.drop_path, drop_distribution=None if is_plain else args.drop_distribution)
    if is_plain:
        apply_stochastic_depth(
            model, 'sample', 'DropPath', args.drop_path or 0., args.drop_distribution or 'linear', scale_by_keep=True)
    if args.code:
        _print_code(model)
        return
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


def _print_code(model: 'nn.Module') -> None:
    from ..blocks import StochasticBlock, cuts_of
    from ..targets import class_name, find_targets

    names: Dict[str, List[str]] = {}
    for name, block in model.named_modules():
        if isinstance(block, StochasticBlock):
            for cut in cuts_of(block):
                names.setdefault(f'# {class_name(block)}: {{}}\n{cut.code}', []).append(name)
    for target in find_targets(model, 'DropPath'):
        if target.stochastic_class is None:
            text = f'# {class_name(target.block)}: {{}}\n# its branches can only be masked: {target.reason}\n'
            names.setdefault(text, []).append(target.name)
    for code, blocks in names.items():
        print(code.replace('{}', ', '.join(blocks), 1))
