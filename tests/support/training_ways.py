"""Trains a small network in a way that the docs describe, WAY NETWORK: what that writes, into the current folder.

A loop of one's own also notes the logits of the trained network.
"""

import os
import sys
from pathlib import Path

import timm
import torch
from PIL import Image

import timm_stochdepth as ts
from timm_stochdepth.cli.main import main

RATE = 0.5
NUM_CLASSES = 4
NETWORKS = ('resnet10t', 'test_vit', 'test_convnext')
SMALL = ('layers=[1,2,1,1]', 'base_width=8')
TIMM_REPO = os.environ.get('TIMM_REPO')  # a checkout of timm's, whose train.py takes the place of the small script

# of the launcher and of the script, by the way's name
BY_SCRIPT = {
    'skip': (('--skip-dropped',), ()),
    'block': (('--stochastic-depth', 'block'), ()),
    'sample': (('--stochastic-depth', 'sample'), ()),
    'ema': (('--skip-dropped',), ('--model-ema',)),
    'amp': (('--skip-dropped',), ('--amp',)),
    'initial checkpoint': (('--skip-dropped',), ('--initial-checkpoint', 'initial.pth')),
}
REGISTERED = ('resnet50_sd_sample', 'resnet50_sd_block')
# arguments of apply_stochastic_depth
DROP_PATH = dict(target_layer_name='DropPath', drop_rate=RATE)
LOOPS = {
    'torch.save': dict(DROP_PATH, stochastic_method='sample', skip_dropped=True),
    "torch.save, timm's convention": dict(DROP_PATH, stochastic_method='sample', skip_dropped=True, scale_by_keep=True),
    'CheckpointSaver': dict(DROP_PATH, stochastic_method='block'),
}


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model.eval()(images())


def script(name):
    """A script that trains, and where to: timm's own, on image files of noise, or the one of timm's parts."""
    if not TIMM_REPO:
        return [str(Path(__file__).with_name('small_train.py')), '--output', '.']
    for split in ('train', 'validation'):
        for number in range(2 * NUM_CLASSES):
            path = Path('images', split, str(number % NUM_CLASSES), f'{number}.png')
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((32, 32), 50).convert('RGB').save(path)
    return [
        *(f'{TIMM_REPO}/train.py', '--data-dir', 'images', '--output', '..', '--experiment', name, '--epochs', '1'),
        *('--num-classes', str(NUM_CLASSES), '--img-size', '32', '--device', 'cpu', '-b', '4', '--workers', '0'),
    ]


def by_script(way, name):
    options, arguments = BY_SCRIPT.get(way, ((), ()))
    if '--initial-checkpoint' in arguments:
        torch.save(timm.create_model(name, num_classes=NUM_CLASSES).state_dict(), 'initial.pth')
    kwargs = ('--model-kwargs', *SMALL) if name in REGISTERED else ()
    assert main(['run', *options, *script(name), '--model', name, '--drop-path', str(RATE), *arguments, *kwargs]) == 0


def by_loop(way, name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=NUM_CLASSES)
    ts.apply_stochastic_depth(model, **LOOPS[way])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        model.train()(images()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(logits(model), 'logits.pt')
    if way == 'CheckpointSaver':
        timm.utils.CheckpointSaver(model, optimizer, checkpoint_dir='.', recovery_dir='.').save_checkpoint(0, 1.0)
    else:
        torch.save(model.state_dict(), 'last.pth.tar')


def all_ways():
    """Functions, ways and networks."""
    yield from ((by_script, 'registered', name) for name in REGISTERED)
    yield from ((by_script, way, name) for way in BY_SCRIPT for name in NETWORKS)
    yield from ((by_loop, way, name) for way in LOOPS for name in NETWORKS)


if __name__ == '__main__':
    torch.set_num_threads(1)
    (train_network,) = (train for train, *asked in all_ways() if asked == sys.argv[1:])
    train_network(*sys.argv[1:])
