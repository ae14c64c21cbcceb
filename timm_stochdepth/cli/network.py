"""Arguments that say which network a file of weights is for, where the file does not."""
import argparse
from typing import Any, Dict

from .arguments import Fraction, KeyValue, ModelName

__all__ = ['add_network_arguments', 'network_args']


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('network, for weights that do not say it')
    group.add_argument('--model', type=ModelName(), metavar='NAME', help='Name of the network.')
    group.add_argument(
        '--drop-path', type=Fraction(), metavar='RATE', help='Its drop rate, if it is not the default one.')
    group.add_argument(
        '--model-kwargs', type=KeyValue(), nargs='*', default=[], metavar='KEY=VALUE',
        help='Other arguments of it, as in drop_distribution=uniform.')


def network_args(args: argparse.Namespace) -> Dict[str, Any]:
    """Arguments of `timm.create_model` that were given."""
    rate = {} if args.drop_path is None else dict(drop_path_rate=args.drop_path)
    return {**rate, **dict(args.model_kwargs)}
