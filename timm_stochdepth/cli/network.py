"""Arguments for a network's location, and for what no file says of it."""
import argparse
from typing import Any, Dict

from . import arguments as kind
from .arguments import usage_errors

__all__ = ['add_network', 'add_network_arguments', 'check_network', 'load_args']


def add_network(parser: argparse.ArgumentParser, metavar: str = 'network') -> None:
    """Add the argument that says where the network is, `args.network`."""
    parser.add_argument(
        'network', type=kind.network, metavar=metavar,
        help='The network: a name of timm, hf-hub:user/name, a folder with a config.json, a checkpoint, or a file of'
             ' weights.')
    parser.set_defaults(network_argument=metavar)


def add_network_arguments(parser: argparse.ArgumentParser, has_rate: bool = True) -> None:
    """Add arguments for weights that do not say their network; without a rate for a command that has its own."""
    group = parser.add_argument_group('network, for weights that do not say it')
    group.add_argument('--model', type=kind.model_name, metavar='NAME', help='Name of the network.')
    if has_rate:
        group.add_argument(
            '--drop-path', type=kind.fraction, metavar='RATE', help='Its drop rate, if it is not the default one.')
    group.add_argument(
        '--model-kwargs', type=kind.key_value, nargs='+', default=[], metavar='KEY=VALUE',
        help='Other arguments of it, as in drop_distribution=uniform.')


def check_network(args: argparse.Namespace, given: Dict[str, Any]) -> None:
    """Refuse names that timm does not know, and options without effect for a network of this location."""
    from ..hub.load import check_goes_with
    from .checks import check_model_name

    if args.network.kind == 'name':
        check_model_name(args.network_argument, args.network.name)
    if args.model:
        check_model_name('--model', args.model)
    with usage_errors():
        check_goes_with(args.network, {'--model': args.model, '--model-kwargs': dict(args.model_kwargs), **given})


def load_args(args: argparse.Namespace) -> Dict[str, Any]:
    """Keyword arguments for `load_model`."""
    rate = {} if args.drop_path is None else dict(drop_path_rate=args.drop_path)
    return dict(use_ema=args.ema, model_name=args.model, model_args={**rate, **dict(args.model_kwargs)})
