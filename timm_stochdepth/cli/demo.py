"""Train plain and stochastic networks on real images, and compare them."""
import argparse
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List

from ..demo.methods import METHODS
from ..demo.recipe import Recipe
from ..output.files import check_folder, check_new
from . import arguments as kind
from .arguments import UsageError, usage_errors

if TYPE_CHECKING:
    from ..demo.images import Format, Images
    from ..demo.network import Network
    from ..demo.train import Result

DEFAULT_MODELS = ('resnet50', 'resnet50_sd_sample', 'resnet50_sd_block')
DEFAULT_METHODS = ('timm', 'skip')
# what the networks are trained with, if nothing else is said
DATA: Dict[str, Dict[str, Any]] = {
    'digits': dict(num_images=1437, lr=2e-3),
    'fashion-mnist': dict(num_images=10_000, lr=5e-4),  # of a transformer, too
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--data', type=partial(kind.choice, tuple(DATA)), default=Recipe.data, metavar='NAME',
        help='digits or fashion-mnist.')
    add('--data-dir', type=partial(kind.input_path, 'folder'), metavar='DIR',
        help='Where the four files of fashion-mnist are, if not where its Debian package puts them.')
    add('--models', '--model', type=kind.model_name, nargs='+', default=DEFAULT_MODELS, metavar='NAME',
        help='Networks to train.')
    add('--drop-path', type=kind.fraction, metavar='RATE', help='Drop rate, instead of the default one.')
    add('--methods', type=partial(kind.choice, tuple(METHODS)), nargs='+', metavar='NAME',
        help="What to compare at that rate on networks whose names have no stochastic depth: plain, none; timm, its"
             " DropPath; skip, the same without computing what it drops; sample and block, the paper's. timm and skip"
             ' by default.')
    add('--images', type=kind.count, metavar='N',
        help='Training images: by default all 1,437 digits, or 10,000 of fashion-mnist.')
    add('--epochs', type=kind.count, default=Recipe.epochs, metavar='N', help='Passes over them.')
    add('--batch-size', type=kind.count, default=Recipe.batch_size, metavar='N', help='Images in a batch.')
    add('--lr', type=kind.fraction, metavar='LR',
        help='Learning rate of AdamW: by default 0.002 for the digits, 0.0005 for fashion-mnist.')
    add('--eval-every', type=kind.count, default=Recipe.eval_every, metavar='N', help='Epochs between two evaluations.')
    add('--seed', type=partial(kind.whole_number, 0, maximum=2 ** 32 - 1), nargs='+', default=[42], metavar='N',
        help='Seed of weights, data order and draws; with several, each network is trained once with each.')
    add('--model-kwargs', type=kind.key_value, nargs='*', default=[], metavar='KEY=VALUE',
        help='Arguments of the networks, as in skip_dropped=True.')
    add('--device', type=kind.device, default=Recipe.device, help='Device to train on: cpu, cuda or cuda:N.')
    add('--out', type=kind.output_folder, default='demo_output', metavar='DIR',
        help='Folder for runs and picture: a new or empty one, or one of this command, which then goes on.')
    add('--force', action='store_true', help='Write to any folder, and replace a picture that is there.')


def run(args: argparse.Namespace) -> None:
    _check_options(args)
    import matplotlib  # noqa: F401  missed now, and not after minutes
    import scipy  # noqa: F401

    # scikit-learn and timm's training code are for this command alone
    from ..demo import digits, fashion_mnist
    from ..demo.pictures import draw_losses, draw_networks
    from ..demo.run_folder import is_run, read_result, run_name, write_run
    from ..demo.train import train_in_turn
    from ..output.plots import is_own_picture, save_figure
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
    name, draw = ('loss.png', draw_losses) if any(n.method for n in networks) else ('demo.png', draw_networks)
    picture = args.out / name
    folders = {(n.label, seed): args.out / run_name(n, recipe, seed) for seed in args.seed for n in networks}
    found = {key for key, folder in folders.items() if is_run(folder)}
    with usage_errors():
        check_new(picture, '--out', args.force or is_own_picture(picture))
        for key in set(folders) - found:
            check_new(folders[key], '--out')
    images = _images(args, recipe.num_images)

    results = {key: read_result(folders[key]) for key in found}
    for seed in args.seed:
        missing = [n for n in networks if (n.label, seed) not in found]
        trained = train_in_turn(missing, images, recipe, seed) if missing else []
        for network, (model, result) in zip(missing, trained):
            write_run(folders[network.label, seed], model, result, network, recipe, images)
            results[network.label, seed] = result
    ordered = [results[n.label, seed] for n in networks for seed in args.seed]
    save_figure(draw(ordered, recipe), picture, args.force or is_own_picture(picture), '--out')
    _report(ordered, len(found), picture)


def _check_options(args: argparse.Namespace) -> None:
    for name in ('models', 'seed', 'methods'):
        values = getattr(args, name) or ()
        if len(set(values)) < len(values):
            raise UsageError(f'--{name} must be different ones, but got {" ".join(map(str, values))}.')
    if args.methods and not args.drop_path:
        raise UsageError(f'--methods needs a --drop-path above 0, but got {args.drop_path}.')
    if args.data_dir and args.data == 'digits':
        raise UsageError(f'--data-dir must be without --data digits, but got {str(args.data_dir)!r}.')
    with usage_errors():
        check_folder(args.out, '--out', args.force, own=['*-seed*', 'demo.png', 'loss.png'])


def _report(results: 'List[Result]', num_found: int, picture: Path) -> None:
    from ..demo.report import format_agreement, format_means, format_results

    print(format_results(results))
    if len({result.seed for result in results}) > 1:
        print(format_means(results))
    agreement = format_agreement(results)
    if agreement:
        print(agreement)
    differing = [r.label for r in results if r.reloaded_top1 != r.saved_top1]
    if differing:
        raise RuntimeError(f'reloaded from {picture.parent}, these models score differently: {", ".join(differing)}')
    if num_found:
        print(f'{num_found} of {len(results)} runs were there already, and were not trained again.')
    print(f'Reloaded from {picture.parent}, every model scores the same. Picture: {picture}')


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
    with usage_errors():
        networks = [fitted(network, image_format) for network in networks]
        for network in networks:
            if network.method:
                check_method(network)
    return networks


def _images(args: argparse.Namespace, num_images: int) -> 'Images':
    """The images, in memory."""
    from ..demo.digits import NUM_TRAIN_IMAGES, read_digits
    from ..demo.fashion_mnist import DEFAULT_FOLDER, read_fashion_mnist

    if args.data == 'fashion-mnist':
        with usage_errors():
            return read_fashion_mnist(args.data_dir or DEFAULT_FOLDER, num_images)
    if num_images > NUM_TRAIN_IMAGES:
        raise UsageError(f'--images must be {NUM_TRAIN_IMAGES:,} at the most for the digits, but got {num_images}.')
    return read_digits(num_images)
