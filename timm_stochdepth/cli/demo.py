"""Train plain and stochastic networks on real images, and compare them."""
import argparse
from inspect import signature
from typing import TYPE_CHECKING, Any, Dict, List

from ..demo.methods import METHODS
from ..demo.recipe import Recipe
from .arguments import (
    Choice,
    Device,
    Fraction,
    InputPath,
    KeyValue,
    ModelName,
    OutputFolderPath,
    UsageError,
    WholeNumber,
)

if TYPE_CHECKING:
    from ..demo.images import Format, Images
    from ..demo.network import Network

DEFAULT_MODELS = ('resnet50', 'resnet50_sd_sample', 'resnet50_sd_block')
DEFAULT_METHODS = ('timm', 'skip')
# what the networks are trained with, if nothing else is said
DATA: Dict[str, Dict[str, Any]] = {
    'digits': dict(num_images=1437, lr=2e-3),
    'fashion-mnist': dict(num_images=10_000, lr=5e-4),  # of a transformer, too
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--data', type=Choice(tuple(DATA)), default=Recipe.data, metavar='NAME', help='digits or fashion-mnist.')
    parser.add_argument(
        '--data-dir', type=InputPath('folder'), metavar='DIR',
        help='Where the four files of fashion-mnist are, if not where its Debian package puts them.')
    parser.add_argument(
        '--models', '--model', type=ModelName(), nargs='+', default=DEFAULT_MODELS, metavar='NAME',
        help='Networks to train.')
    parser.add_argument(
        '--drop-path', type=Fraction(), metavar='RATE', help='Drop rate, instead of the default one.')
    parser.add_argument(
        '--methods', type=Choice(tuple(METHODS)), nargs='+', metavar='NAME',
        help="What to compare at that rate on networks whose names have no stochastic depth: plain, none; timm, its"
             " DropPath; skip, the same without computing what it drops; sample and block, the paper's. timm and skip"
             ' by default.')
    parser.add_argument(
        '--images', type=WholeNumber(1), metavar='N',
        help='Training images: by default all 1,437 digits, or 10,000 of fashion-mnist.')
    parser.add_argument('--epochs', type=WholeNumber(1), default=Recipe.epochs, metavar='N', help='Passes over them.')
    parser.add_argument(
        '--batch-size', type=WholeNumber(1), default=Recipe.batch_size, metavar='N', help='Images in a batch.')
    parser.add_argument(
        '--lr', type=Fraction(), metavar='LR',
        help='Learning rate of AdamW: by default 0.002 for the digits, 0.0005 for fashion-mnist.')
    parser.add_argument(
        '--eval-every', type=WholeNumber(1), default=Recipe.eval_every, metavar='N',
        help='Epochs between two evaluations.')
    parser.add_argument(
        '--seed', type=WholeNumber(0, 2 ** 32 - 1), nargs='+', default=[42], metavar='N',
        help='Seed of weights, data order and draws; with several, each network is trained once with each.')
    parser.add_argument(
        '--model-kwargs', type=KeyValue(), nargs='*', default=[], metavar='KEY=VALUE',
        help='Arguments of the networks, as in skip_dropped=True.')
    parser.add_argument(
        '--device', type=Device(), default=Recipe.device, help='Device to train on: cpu, cuda or cuda:N.')
    parser.add_argument(
        '--out', type=OutputFolderPath('demo'), default='demo_output', metavar='DIR',
        help='Folder for runs and picture: a new or empty one, or one of this command, which then goes on.')


def run(args: argparse.Namespace) -> None:
    for name in ('models', 'seed', 'methods'):
        values = getattr(args, name) or ()
        if len(set(values)) < len(values):
            raise UsageError(f'--{name} must be different ones, but got {" ".join(map(str, values))}.')
    if args.methods and not args.drop_path:
        raise UsageError(f'--methods needs a --drop-path above 0, but got {args.drop_path}.')
    if args.data_dir and args.data == 'digits':
        raise UsageError(f'--data-dir must be without --data digits, but got {str(args.data_dir)!r}.')
    import matplotlib  # noqa: F401  missed now, and not after minutes
    import scipy  # noqa: F401

    # scikit-learn and timm's training code are for this command alone
    from ..demo import digits, fashion_mnist
    from ..demo.pictures import draw_losses, draw_networks
    from ..demo.report import format_agreement, format_means, format_results
    from ..demo.run_folder import read_result, run_name, write_run
    from ..demo.train import train_in_turn
    from ..output.plots import save_figure
    from .checks import check_device

    check_device('--device', args.device)
    recipe = Recipe(
        data=args.data,
        num_images=args.images or DATA[args.data]['num_images'],
        epochs=args.epochs,
        batch_size=args.batch_size,
        eval_every=args.eval_every,
        lr=DATA[args.data]['lr'] if args.lr is None else args.lr,
        device=args.device,
    )
    if recipe.batch_size > recipe.num_images:
        raise UsageError(f'--batch-size must be at most --images, {recipe.num_images}, but got {recipe.batch_size}.')
    networks = _networks(args, (digits if args.data == 'digits' else fashion_mnist).FORMAT)
    picture, draw = ('loss.png', draw_losses) if any(n.method for n in networks) else ('demo.png', draw_networks)
    names = {(n.label, seed): run_name(n, recipe, seed) for seed in args.seed for n in networks}
    found = {key for key, name in names.items() if args.out.holds(name)}
    args.out.check(picture, *(name for key, name in names.items() if key not in found))
    images = _images(args, recipe.num_images)

    results = {key: read_result(args.out.path / names[key]) for key in found}
    with args.out.claimed():
        for seed in args.seed:
            missing = [n for n in networks if (n.label, seed) not in found]
            trained = train_in_turn(missing, images, recipe, seed) if missing else []
            for network, (model, result) in zip(missing, trained):
                with args.out.write(names[network.label, seed]) as folder:
                    write_run(folder, model, result, network, recipe, images)
                results[network.label, seed] = result
        ordered = [results[n.label, seed] for n in networks for seed in args.seed]
        with args.out.write(picture) as file:
            save_figure(draw(ordered, recipe), file)

    print(format_results(ordered))
    if len(args.seed) > 1:
        print(format_means(ordered))
    agreement = format_agreement(ordered)
    if agreement:
        print(agreement)
    differing = [r.label for r in ordered if r.reloaded_top1 != r.saved_top1]
    if differing:
        raise RuntimeError(f'reloaded from {args.out.path}, these models score differently: {", ".join(differing)}')
    if found:
        print(f'{len(found)} of {len(ordered)} runs were there already, and were not trained again.')
    print(f'Reloaded from {args.out.path}, every model scores the same. Picture: {args.out.path / picture}')


def _networks(args: argparse.Namespace, image_format: 'Format') -> 'List[Network]':
    """The networks to compare, all of them checked."""
    import timm

    from ..demo.network import Network, check_method, fitted, has_own_depth
    from ..hub.config import RESERVED_ARGS
    from .checks import check_model_name

    networks: List[Network] = []
    model_args = {name: value for name, value in args.model_kwargs if value is not None}  # as timm leaves them out
    of_timm = [name for name in model_args if name in (*RESERVED_ARGS, *signature(timm.create_model).parameters)]
    if of_timm:
        raise UsageError(f'--model-kwargs must be arguments of the network alone, but has {", ".join(of_timm)}.')
    for model_name in args.models:
        check_model_name('--models/--model', model_name)
        has_method = args.drop_path and not has_own_depth(model_name)
        for method in (args.methods or DEFAULT_METHODS) if has_method else (None,):
            networks.append(Network(model_name, model_args, args.drop_path, method))
    if args.methods and not any(n.method for n in networks):
        raise UsageError(
            f'--methods must be for networks whose names have no stochastic depth, but got {" ".join(args.models)}.')
    try:
        networks = [fitted(network, image_format) for network in networks]
        for network in networks:
            if network.method:
                check_method(network)
    except ValueError as e:
        raise UsageError(e) from e
    return networks


def _images(args: argparse.Namespace, num_images: int) -> 'Images':
    """The images, in memory."""
    from ..demo.digits import NUM_TRAIN_IMAGES, read_digits
    from ..demo.fashion_mnist import DEFAULT_FOLDER, read_fashion_mnist

    if args.data == 'fashion-mnist':
        try:
            return read_fashion_mnist(args.data_dir or DEFAULT_FOLDER, num_images)
        except ValueError as e:
            raise UsageError(e) from e
    if num_images > NUM_TRAIN_IMAGES:
        raise UsageError(f'--images must be {NUM_TRAIN_IMAGES:,} at the most for the digits, but got {num_images}.')
    return read_digits(num_images)
