"""Small runs of Composer's trainer, and the plain loops that they are compared with."""

import pytest
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip('composer.trainer')  # not 'composer', which this folder is taken for

from composer import Callback, Trainer
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from composer.utils.reproducibility import seed_all

import timm_stochdepth as ts

SEED = 3
BATCH_SIZE = 8
NUM_BATCHES = 4
NUM_SAMPLES = BATCH_SIZE * NUM_BATCHES
DROP_RATE = 0.5
NETWORK = dict(
    layers=(1, 1, 1, 1), channels=(4, 8, 8, 8), stem_type='deep', stem_width=8, num_classes=10, zero_init_last=False
)


def data(num_samples=NUM_SAMPLES):
    generator = torch.Generator().manual_seed(0)
    images_NCHW = torch.randn(num_samples, 3, 32, 32, generator=generator, dtype=torch.get_default_dtype())
    return TensorDataset(images_NCHW, torch.randint(0, 10, (num_samples,), generator=generator))


def loader(num_samples=NUM_SAMPLES):
    return DataLoader(data(num_samples), batch_size=BATCH_SIZE)


def network():
    torch.manual_seed(0)
    return ResNet(Bottleneck, **NETWORK)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def stochastic_depth(method='block', **kwargs):
    return ts.StochasticDepth(method, 'ResNetBottleneck', DROP_RATE, **{'drop_warmup': 0.5, **kwargs})


class Rates(Callback):
    """The rates in force at each batch that trains, and at each that evaluates."""

    def __init__(self):
        self.train, self.eval = [], []

    def before_forward(self, state, logger):
        self.train.append(rate_of(state.model))

    def eval_before_forward(self, state, logger):
        self.eval.append(rate_of(state.model))


def rate_of(model):
    return max(ts.drop_rates(model).values(), default=None)


def trainer(algorithms, max_duration='2ep', callbacks=(), model=None, **kwargs):
    """A trainer of a small network; its `rates` are those in force, its `logged` what was logged."""
    model = model or ComposerClassifier(network(), num_classes=10)
    rates, logged = Rates(), InMemoryLogger()
    made = Trainer(
        model=model,
        algorithms=algorithms,
        max_duration=max_duration,
        optimizers=sgd(model),
        callbacks=[rates, *callbacks],
        loggers=[logged],
        device='cpu',
        progress_bar=False,
        seed=SEED,
        **kwargs,
    )
    made.rates, made.logged = rates, logged
    return made


def fit(algorithms, max_duration='2ep', **kwargs):
    made = trainer(algorithms, max_duration, **{'train_dataloader': loader(), **kwargs})
    made.fit()
    made.close()
    return made


def weights(model):
    """The weights of a network, under the names that they have without what it stands in."""
    return {key.rpartition('module.')[2]: value.clone() for key, value in model.state_dict().items()}


def logits(model):
    """What a model computes at inference."""
    model.eval()
    with torch.no_grad():
        return model((data().tensors[0], None))


def plain_loop(method, step, num_batches=2 * NUM_BATCHES, prepare=lambda model: None):
    """Train without Composer, in the order that it draws in; yields the network after each batch."""
    model = network()
    prepare(model)
    ts.apply_stochastic_depth(model, method, 'ResNetBottleneck', DROP_RATE, drop_warmup=0.5)
    optimizer = sgd(model)
    seed_all(SEED)  # what the trainer does last before it takes the first batch
    ts.set_training_progress(model, 0.0)
    model.train()
    update = 0
    while update < num_batches:
        for x, y in loader():
            ts.set_training_progress(model, update / num_batches)
            step(model, optimizer, x, y)
            update += 1
            yield model
