"""A network, wherever it is: the arguments that say where, and what no file says of it."""
import argparse
from typing import TYPE_CHECKING, Any, Dict, Tuple

from .arguments import Fraction, KeyValue, ModelName, Network, UsageError

if TYPE_CHECKING:
    from torch import nn

    from ..hub.record import TrainingRecord

__all__ = ['add_network', 'add_network_arguments', 'load_network', 'show_network']

_WHERE = 'a name of timm, hf-hub:user/name, a folder with a config.json, a checkpoint, or a file of weights'


def add_network(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    """The argument that says where the network is, `args.source`."""
    parser.add_argument('source', type=Network(), metavar=metavar, help=f'{what}: {_WHERE}.')
    parser.set_defaults(source_argument=metavar)


def add_network_arguments(parser: argparse.ArgumentParser, has_rate: bool = True) -> None:
    """What weights that do not say their network are told.

    Args:
        parser: The command's.
        has_rate: False for a command with a `--drop-path` of its own.
    """
    group = parser.add_argument_group('network, for weights that do not say it')
    group.add_argument('--model', type=ModelName(), metavar='NAME', help='Name of the network.')
    if has_rate:
        group.add_argument(
            '--drop-path', type=Fraction(), metavar='RATE', help='Its drop rate, if it is not the default one.')
    group.add_argument(
        '--model-kwargs', type=KeyValue(), nargs='+', default=[], metavar='KEY=VALUE',
        help='Other arguments of it, as in drop_distribution=uniform.')


def load_network(args: argparse.Namespace) -> 'Tuple[nn.Module, TrainingRecord]':
    """The network of a command with `add_network` and `add_network_arguments`, and `--ema` if it has that."""
    from ..hub.load import load_model

    ema = getattr(args, 'ema', False)
    check_network(args, {'--ema': ema, '--drop-path': args.drop_path})
    return load_model(args.source, ema, args.model, network_args(args))


def show_network(args: argparse.Namespace, model_args: Dict[str, Any]) -> 'nn.Module':
    """The same without its weights, and with other arguments than it has."""
    from ..hub.load import load_structure

    check_network(args, {})
    return load_structure(args.source, args.model, {**dict(args.model_kwargs), **model_args})


def check_network(args: argparse.Namespace, given: Dict[str, Any]) -> None:
    """Refuse names that timm does not know, and what has no effect for a network that is where it is.

    Raises:
        UsageError: It names the argument.
    """
    from ..hub.load import check_goes_with
    from .checks import check_model_name

    if args.source.kind == 'name':
        check_model_name(args.source_argument, args.source.place)
    if args.model:
        check_model_name('--model', args.model)
    try:
        check_goes_with(args.source, {'--model': args.model, '--model-kwargs': dict(args.model_kwargs), **given})
    except ValueError as e:
        raise UsageError(e) from e


def network_args(args: argparse.Namespace) -> Dict[str, Any]:
    """Arguments of `timm.create_model` that were given."""
    rate = {} if args.drop_path is None else dict(drop_path_rate=args.drop_path)
    return {**rate, **dict(args.model_kwargs)}
