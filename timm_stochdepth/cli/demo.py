"""Train plain and stochastic networks on real handwritten digits, and compare them."""
import argparse

from .arguments import KeyValue, ModelName, OutputFolderPath, UsageError, WholeNumber

DEFAULT_MODELS = ('resnet50', 'resnet50_sd_sample', 'resnet50_sd_block')
PICTURE = 'demo.png'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--models', type=ModelName(), nargs='+', default=DEFAULT_MODELS, metavar='NAME', help='Networks to train.')
    parser.add_argument(
        '--epochs', type=WholeNumber(1), default=7, metavar='N', help='Passes over the 1,437 training digits.')
    parser.add_argument(
        '--seed', type=WholeNumber(0, 2 ** 32 - 1), nargs='+', default=[42], metavar='N',
        help='Seed of weights, data order and draws; with several, each network is trained once with each.')
    parser.add_argument(
        '--model-kwargs', type=KeyValue(), nargs='*', default=[], metavar='KEY=VALUE',
        help='Arguments of the networks, as in skip_dropped=True.')
    parser.add_argument(
        '--out', type=OutputFolderPath('demo'), default='demo_output', metavar='DIR',
        help='Folder for digits, models and picture: a new or empty one, or one of this command.')


def run(args: argparse.Namespace) -> None:
    for name in ('models', 'seed'):
        values = getattr(args, name)
        if len(set(values)) < len(values):
            raise UsageError(f'--{name} must be different ones, but got {" ".join(map(str, values))}.')
    runs = [
        (model_name, seed, model_name if len(args.seed) == 1 else f'{model_name}-seed{seed}')
        for model_name in args.models for seed in args.seed]
    args.out.check(PICTURE, *(label for _, _, label in runs))
    has_digits = args.out.holds('digits')
    if not has_digits:
        args.out.check('digits')
    import matplotlib  # noqa: F401  missed now, and not after minutes

    # scikit-learn and timm's training code are for this command alone
    from ..demo.digits import write_digits
    from ..demo.report import format_means, format_results, plot_results
    from ..demo.train import check_network, evaluate, reload, save, train
    from .checks import check_model_name

    model_kwargs = dict(args.model_kwargs)
    for model_name in args.models:
        check_model_name('--models', model_name)
        try:
            check_network(model_name, model_kwargs)
        except ValueError as e:
            raise UsageError(e) from e

    args.out.claim()
    if not has_digits:
        with args.out.write('digits') as folder:
            write_digits(folder)
    data_dir = args.out.path / 'digits'
    results = []
    for model_name, seed, label in runs:
        model, result = train(model_name, data_dir, args.epochs, seed, model_kwargs, label)
        with args.out.write(label) as folder:
            save(model, folder)
        result.reloaded_top1 = evaluate(reload(args.out.path / label), data_dir)
        results.append(result)

    with args.out.write(PICTURE) as file:
        plot_results(results, file)
    print(format_results(results))
    if len(args.seed) > 1:
        print(format_means(results))
    differing = [r.label for r in results if r.reloaded_top1 != r.top1s[-1]]
    if differing:
        raise RuntimeError(f'reloaded from {args.out.path}, these models score differently: {", ".join(differing)}')
    print(f'Reloaded from {args.out.path}, every model scores the same. Picture: {args.out.path / PICTURE}')
