"""Show the blocks of a model: rate, expected depth and share of the operations, or what their forward does."""
import argparse
from typing import TYPE_CHECKING, Any, Dict, List

from ..files import check_output_file
from ..plots import PICTURES
from ..rates import DISTRIBUTIONS
from .arguments import Choice, Fraction, OutputFile, UsageError, WholeNumber
from .network import add_network, add_network_arguments, show_network

if TYPE_CHECKING:
    from torch import nn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network(parser, 'model', 'The network')
    parser.add_argument('--drop-path', type=Fraction(), metavar='RATE', help='Drop rate, instead of the default one.')
    parser.add_argument(
        '--drop-distribution', type=Choice(DISTRIBUTIONS), metavar='NAME', help="'linear' or 'uniform'.")
    parser.add_argument(
        '--img-size', type=WholeNumber(1), metavar='N', help='Size of the image, in pixels, 224 by default.')
    parser.add_argument(
        '--plot', type=OutputFile(PICTURES), metavar='FILE',
        help=f'Also draw the rates into this picture, a new file: {", ".join(PICTURES)}.')
    parser.add_argument(
        '--code', action='store_true', help='Show the forward of each kind of block, cut at its drop paths, instead.')
    parser.add_argument('--force', action='store_true', help='Replace a picture that is there.')
    add_network_arguments(parser, has_rate=False)


def run(args: argparse.Namespace) -> None:
    _check_options(args)
    if args.plot:
        import matplotlib  # noqa: F401  missed now, and not after the table

    from ..operations import block_drop_limit, branch_shares
    from ..places import drop_rates
    from ..plots import plot_rates
    from ..surgery import apply_stochastic_depth
    from .checks import check_img_size

    if args.plot:
        try:
            check_output_file(args.plot, PICTURES, sources=args.source.paths, name='--plot')
        except ValueError as e:
            raise UsageError(e) from e
    model = show_network(args, {})
    is_plain = not drop_rates(model)
    if is_plain and args.drop_path is None and not args.code:
        raise UsageError(
            f'model must have stochastic depth, but got {str(args.source)!r}: see `timm-stochdepth list`, or give'
            ' --drop-path.')
    img_size = args.img_size or 224
    check_img_size('--img-size', img_size, model)
    if not is_plain:
        settings = dict(drop_path_rate=args.drop_path, drop_distribution=args.drop_distribution)
        model = show_network(args, {name: value for name, value in settings.items() if value is not None})
    else:
        model = show_network(args, {} if args.drop_path is None else dict(drop_path_rate=args.drop_path))
        apply_stochastic_depth(
            model, 'sample', 'DropPath', args.drop_path or 0., args.drop_distribution or 'linear', scale_by_keep=True)
    if args.code:
        _print_code(model)
        return
    rates = drop_rates(model)
    cfg: Any = model.pretrained_cfg
    in_chans: Any = getattr(model, 'in_chans', cfg['input_size'][0])
    shares = branch_shares(model, (in_chans, img_size, img_size))

    if args.plot:
        plot_rates(str(args.source), rates, args.plot, args.force, name='--plot')
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


def _check_options(args: argparse.Namespace) -> None:
    if args.force and not args.plot:
        raise UsageError('--force needs a --plot to replace.')
    without = dict(plot=args.plot, drop_path=args.drop_path, drop_distribution=args.drop_distribution,
                   img_size=args.img_size)
    given = [f'--{name.replace("_", "-")}' for name, value in without.items() if value is not None]
    if args.code and given:
        raise UsageError(f'--code must be without {" and ".join(given)}, which would have no effect.')


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
