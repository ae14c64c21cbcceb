"""List the models: names, methods, default rates and pretrained tags."""
import argparse
import textwrap

from .arguments import Text, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'filter', nargs='?', type=Text('a wildcard filter'), default='*',
        help="Wildcard filter on the name, as in 'resnet101*'.")


def run(args: argparse.Namespace) -> None:
    import timm
    import torch

    from ..models.pretrained import is_stochastic_architecture
    from ..places import drop_paths

    names = [n for n in timm.list_models(args.filter) if is_stochastic_architecture(n)]
    if not names:
        raise UsageError(f'filter must match one of {", ".join(timm.list_models(module="resnet_sd"))},'
                         f' but got {args.filter!r}.')
    for name in names:
        with torch.device('meta'):
            settings = next(drop_path.settings for _, drop_path in drop_paths(timm.create_model(name)))
        tags = [str(cfg.tag) for cfg in timm.models.get_arch_pretrained_cfgs(name).values()]
        print(f'{name}: method {settings.stochastic_method}, rate {settings.drop_rate} {settings.drop_distribution}')
        tags_line = f'{len(tags)} pretrained tags, first the default: {", ".join(tags)}'
        print(textwrap.fill(tags_line, width=100, initial_indent='    ', subsequent_indent='    '))
