"""List the models: names, methods, default rates and pretrained tags."""
import argparse
import textwrap

from . import arguments as kind
from .arguments import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'filter', nargs='?', type=kind.wildcard, default='*',
        help="Wildcard filter on the name, as in 'resnet101*'.")


def run(args: argparse.Namespace) -> None:
    import timm

    from ..zoo.names import is_stochastic_architecture, split_stochastic_name
    from ..zoo.rates import default_rate

    found = timm.list_models(args.filter)
    names = [name for name in found if is_stochastic_architecture(name)]
    if not names:
        others = (
            f', of which timm has {len(found):,}. Any network of timm with drop paths is given stochastic depth by'
            ' apply_stochastic_depth in Python, and under train.py by `timm-stochdepth run --skip-dropped train.py'
            ' --model NAME --drop-path RATE`') if found else ''
        raise UsageError(
            f"filter must match a name with a method, as 'resnet50*' does, but got {args.filter!r}{others}.")
    for name in names:
        plain_name, method = split_stochastic_name(name)
        tags = [str(cfg.tag) for cfg in timm.models.get_arch_pretrained_cfgs(name).values()]
        print(f'{name}: method {method}, rate {default_rate(plain_name, method).rate} linear')
        tags_line = f'{len(tags)} pretrained tags, first the default: {", ".join(tags)}'
        print(textwrap.fill(tags_line, width=100, initial_indent='    ', subsequent_indent='    '))
