"""Show the blocks of a model: rate, expected depth and share of the operations, or what their forward does."""
import argparse
from functools import partial
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

from ..output.files import check_new
from ..output.plots import PICTURES
from . import arguments as kind
from .arguments import UsageError, option_of, usage_errors
from .network import add_network, add_network_arguments, check_network

if TYPE_CHECKING:
    from torch import nn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_network(parser, 'model')
    add('--drop-path', type=kind.fraction, metavar='RATE', help='Drop rate, instead of the default one.')
    add('--drop-distribution', type=kind.distribution, metavar='NAME', help="'linear' or 'uniform'.")
    add('--img-size', type=kind.count, metavar='N',
        help="Size of the image that operations are counted for, in pixels, by default the network's own.")
    add('--plot', type=partial(kind.output_file, PICTURES), metavar='FILE',
        help=f'Also draw the rates into this picture, a new file: {", ".join(PICTURES)}.')
    add('--code', action='store_true', help='Show the forward of each kind of block, cut at its drop paths, instead.')
    add('--force', action='store_true', help='Replace a picture that is there.')
    add_network_arguments(parser, has_rate=False)


def run(args: argparse.Namespace) -> None:
    _check_options(args)
    if args.plot:
        import matplotlib  # noqa: F401  missed now, and not after the table

        with usage_errors():
            check_new(args.plot, '--plot', args.force, args.network.paths)
    if args.code:
        _print_code(_create(args)[0])
    else:
        _print_table(args)


def _check_options(args: argparse.Namespace) -> None:
    if args.force and not args.plot:
        raise UsageError('--force needs a --plot to replace.')
    given = [
        option_of(dest) for dest in ('plot', 'drop_path', 'drop_distribution', 'img_size')
        if getattr(args, dest) is not None]
    if args.code and given:
        raise UsageError(f'--code must be without {" and ".join(given)}, which would have no effect.')
    for name, dest in (('img_size', 'img_size'), ('drop_path_rate', 'drop_path')):
        if name in dict(args.model_kwargs) and getattr(args, dest) is not None:
            raise UsageError(f'{option_of(dest)} must be left out with --model-kwargs {name}=..., which says the same.')


def _create(args: argparse.Namespace) -> 'Tuple[nn.Module, Tuple[int, int]]':
    """The network, with stochastic depth, and the size of its images."""
    from ..hub.load import load_structure
    from ..hub.named_models import is_stochastic
    from ..inspection import drop_rates
    from ..layers.targets import find_targets
    from .checks import check_network_size, own_size

    def create(**model_args: Any) -> 'nn.Module':
        return load_structure(args.network, args.model, {**dict(args.model_kwargs), **model_args})

    check_network(args, {})
    settings = dict(drop_path_rate=args.drop_path, drop_distribution=args.drop_distribution)
    given = {name: value for name, value in settings.items() if value is not None}
    model = create()
    is_named = is_stochastic(model)
    target_layer = next((name for name in ('DropPath', 'ResidualBlock') if find_targets(model, name)), '')
    if not (is_named or target_layer):
        raise UsageError(
            f'model must have branches that can be dropped, but got {str(args.network)!r}, which has none.')
    size = (args.img_size, args.img_size) if args.img_size else own_size(model)
    create_given = partial(create, **given) if is_named else create
    size_args = {} if args.code else check_network_size('--img-size', size, create_given)
    model = create_given(**size_args)
    if not is_named and (given or not drop_rates(model)):
        _apply(args, model, target_layer)
    return model, size


def _apply(args: argparse.Namespace, model: 'nn.Module', target_layer: str) -> None:
    """Stochastic depth for a network that has none by its name, at the rates of its drop paths if none is given."""
    from ..apply import apply_stochastic_depth
    from ..layers.targets import find_targets

    own_rate = max(rate for target in find_targets(model, target_layer) for rate in target.rates())
    drop_rate, distribution = args.drop_path, args.drop_distribution
    if args.code:
        drop_rate = 0.1  # any does: it is not in the code
    elif drop_rate is None and not own_rate:
        raise UsageError(
            f'model must have stochastic depth, but got {str(args.network)!r}: see `timm-stochdepth list`, or give'
            ' --drop-path.')
    elif drop_rate is None and distribution:
        drop_rate = own_rate
    apply_stochastic_depth(model, 'sample', target_layer, drop_rate, distribution or 'linear', scale_by_keep=True)


def _print_table(args: argparse.Namespace) -> None:
    from ..analysis.flops import block_drop_limit, branch_shares
    from ..inspection import drop_rates
    from ..output.plots import draw_rates, save_figure
    from .checks import in_chans, pixels

    model, size = _create(args)
    rates = drop_rates(model)
    shares = branch_shares(model, (in_chans(model), *size))
    if args.plot:
        save_figure(draw_rates(str(args.network), rates), args.plot, args.force, '--plot')
    width = max(12, *(len(name) + 2 for name in rates))
    print(f'{"block":<{width}}{"rate":>8}{"expected depth":>17}{"operations":>13}')
    depth = 0.
    for name, rate in rates.items():
        depth += 1. - rate
        print(f'{name:<{width}}{rate:>8.4f}{depth:>17.2f}{shares[name]:>13.2%}')
    print(f'Expected depth: {depth:.2f} of {len(rates)} blocks.')
    left = f'{block_drop_limit(rates, shares):.3f} of the plain network, at {pixels(size)} pixels'
    print(f'Operations left when dropped blocks are skipped: {left}.')
    if args.plot:
        print(f'Picture: {args.plot}')


def _print_code(model: 'nn.Module') -> None:
    from ..layers.block import StochasticBlock
    from ..layers.block_class import cuts_of
    from ..layers.targets import class_name, find_targets

    names: Dict[str, List[str]] = {}
    for name, block in model.named_modules():
        for cut in cuts_of(block) if isinstance(block, StochasticBlock) else ():
            names.setdefault(f'# {class_name(block)}: {{}}\n{cut.code}', []).append(name)
    for target in find_targets(model, 'DropPath'):
        if target.stochastic_class is None:
            code = f'# {class_name(target.block)}: {{}}\n# its branches can only be masked: {target.reason}\n'
            names.setdefault(code, []).append(target.name)
    for code, blocks in names.items():
        print(code.replace('{}', ', '.join(blocks), 1))
