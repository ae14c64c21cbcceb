"""Train plain and stochastic networks on real handwritten digits, and compare them."""
import argparse
from pathlib import Path

from timm.utils import ParseKwargs

DEFAULT_MODELS = ('resnet50', 'resnet50_sd_sample', 'resnet50_sd_block')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--models', nargs='+', default=DEFAULT_MODELS, metavar='NAME', help='Networks to train.')
    parser.add_argument('--epochs', type=int, default=7, metavar='N', help='Passes over the 1,437 training digits.')
    parser.add_argument(
        '--seed', type=int, nargs='+', default=[42], metavar='N',
        help='Seed of weights, data order and draws; with several, each network is trained once with each.')
    parser.add_argument(
        '--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE',
        help='Arguments of the networks, as in skip_dropped=True.')
    parser.add_argument(
        '--out', type=Path, default=Path('demo_output'), metavar='DIR', help='Folder for digits, models and picture.')


def run(args: argparse.Namespace) -> None:
    # matplotlib, scikit-learn and timm's training code are for this command alone
    from ..demo.digits import write_digits
    from ..demo.report import format_means, format_results, plot_results
    from ..demo.train import evaluate, reload, save, train

    if args.epochs < 1:
        raise ValueError(f'--epochs must be 1 or more, but got {args.epochs}.')
    data_dir = write_digits(args.out / 'digits')
    results = []
    for model_name in args.models:
        for seed in args.seed:
            label = model_name if len(args.seed) == 1 else f'{model_name}-seed{seed}'
            model, result = train(model_name, data_dir, args.epochs, seed, args.model_kwargs, label)
            save(model, args.out / label)
            result.reloaded_top1 = evaluate(reload(args.out / label), data_dir)
            results.append(result)

    picture = args.out / 'demo.png'
    plot_results(results, picture)
    print(format_results(results))
    if len(args.seed) > 1:
        print(format_means(results))
    differing = [r.label for r in results if r.reloaded_top1 != r.top1s[-1]]
    if differing:
        raise RuntimeError(f'reloaded from {args.out}, these models score differently: {", ".join(differing)}')
    print(f'Reloaded from {args.out}, every model scores the same. Picture: {picture}')
