"""Train networks in turn, step by step, on the same batches, with timm's own loader, task, optimizer and scheduler."""
import copy
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import AverageMeter, accuracy
from torch import Tensor, nn
from tqdm import tqdm

from .drops import DropCounter
from .images import Images
from .network import Network, network_label, short_labels
from .randomness import RandomStream
from .recipe import Recipe

__all__ = ['Result', 'evaluate', 'train_in_turn']

# short, so that 80 columns hold the losses of three networks
_BAR_FORMAT = '{desc}: {percentage:3.0f}%|{bar}| {remaining} left{postfix}'


@dataclass
class Result:
    """What the training of a network showed.

    Attributes:
        model_name: A name of timm's registry.
        method: How it drops, or None for what the name says.
        seed: Seed of its weights, of the data's order and of its draws.
        steps_per_epoch: Number of steps in an epoch.
        step_losses: Loss of each step.
        step_seconds: Time of each step: forward, backward and the optimizer's, without the data.
        top1s: Top-1 accuracy in percent after an epoch, by the epoch's number.
        drop_rates: Rate of each block, of a network with this package's stochastic depth.
        drop_frequencies: How often its branch was dropped.
        beside: Labels of the networks that were trained in turn with this one, itself among them.
        saved_top1: Top-1 accuracy of what is saved, the plain network where stochastic depth was given by hand.
        reloaded_top1: The same, read back.
    """
    model_name: str
    method: Optional[str]
    seed: int
    steps_per_epoch: int
    step_losses: List[float] = field(default_factory=list)
    step_seconds: List[float] = field(default_factory=list)
    top1s: Dict[int, float] = field(default_factory=dict)
    drop_rates: Dict[str, float] = field(default_factory=dict)
    drop_frequencies: Dict[str, float] = field(default_factory=dict)
    beside: List[str] = field(default_factory=list)
    saved_top1: float = float('nan')
    reloaded_top1: float = float('nan')

    @property
    def label(self) -> str:
        return network_label(self.model_name, self.method)

    @property
    def epoch_losses(self) -> List[float]:
        steps = range(0, len(self.step_losses), self.steps_per_epoch)
        return [fmean(self.step_losses[i:i + self.steps_per_epoch]) for i in steps]

    @property
    def top1(self) -> float:
        """That of the last epoch."""
        return self.top1s[max(self.top1s)]


class Trainee:
    """A network in training, with all that is its own: weights, optimizer, schedule, and a stream of draws."""

    def __init__(self, network: Network, recipe: Recipe, seed: int, steps_per_epoch: int) -> None:
        self.device = torch.device(recipe.device)
        self.draws = RandomStream(seed, self.device)
        with self.draws:
            self.model = network.create().to(self.device)
        self.task = ClassificationTask(
            self.model, device=self.device, criterion_kwargs=dict(smoothing=recipe.smoothing), verbose=False)
        self.optimizer = create_optimizer_v2(
            self.model, opt='adamw', lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer, num_epochs=recipe.epochs, warmup_epochs=recipe.warmup_epochs, warmup_lr=recipe.warmup_lr,
            step_on_epochs=False, updates_per_epoch=steps_per_epoch)
        self.result = Result(network.model_name, network.method, seed, steps_per_epoch)

    def warm_up(self, x_NCHW: Tensor) -> None:
        """Let libraries make ready what they make once, on a copy."""
        copy.deepcopy(self.model).train()(x_NCHW).sum().backward()

    def step(self, x_NCHW: Tensor, target_N: Tensor) -> None:
        with self.draws:
            started = self._now()
            loss = self.task(x_NCHW, target_N)['loss']
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.result.step_seconds.append(self._now() - started)
        self.result.step_losses.append(loss.item())
        self.scheduler.step_update(len(self.result.step_losses))

    def _now(self) -> float:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def evaluate(model: nn.Module, images: Images, recipe: Recipe) -> float:
    """Top-1 accuracy on the held-out images, in percent."""
    top1 = AverageMeter()
    model.eval()
    with torch.inference_mode():
        for x_NCHW, target_N in images.validation_loader(recipe):
            top1.update(accuracy(model(x_NCHW), target_N)[0].item(), len(target_N))
    return top1.avg


def _batches(loader: Any, draws: RandomStream) -> Iterator[Tuple[Tensor, Tensor]]:
    """The batches of an epoch, augmented by a stream of draws."""
    with draws:
        batches = iter(loader)
    while True:
        with draws:
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def train_in_turn(
        networks: Sequence[Network],
        images: Images,
        recipe: Recipe,
        seed: int,
) -> List[Tuple[nn.Module, Result]]:
    """Train networks from scratch, all of them on a batch before the next one is taken.

    They share the batches, and nothing else: whatever one draws, the others draw what they would draw alone. What the
    machine does meanwhile holds all of them up alike.

    Args:
        networks: What to train.
        images: What to train and score on.
        recipe: How.
        seed: Seed of initial weights, data order and draws, for each network the same.
    """
    data_draws = RandomStream(seed, torch.device(recipe.device))
    loader = images.train_loader(recipe)
    trainees = [Trainee(network, recipe, seed, len(loader)) for network in networks]
    x_NCHW = torch.zeros(recipe.batch_size, *images.format.input_size, device=recipe.device)
    for trainee in trainees:
        trainee.warm_up(x_NCHW)
        trainee.result.beside = [network.label for network in networks]
    with ExitStack() as stack:
        counters = [stack.enter_context(DropCounter(trainee.model)) for trainee in trainees]
        progress = stack.enter_context(
            tqdm(total=recipe.epochs * len(loader), desc=f'seed {seed}', bar_format=_BAR_FORMAT))
        names = short_labels([network.label for network in networks])
        for epoch in range(1, recipe.epochs + 1):
            for trainee in trainees:
                trainee.task.train()
            for x_NCHW, target_N in _batches(loader, data_draws):
                turn = progress.n % len(trainees)  # no network always comes first
                for trainee in trainees[turn:] + trainees[:turn]:
                    trainee.step(x_NCHW, target_N)
                progress.update()
                losses = (f'{name} {t.result.step_losses[-1]:.2f}' for name, t in zip(names, trainees))
                progress.set_postfix_str(f'loss {", ".join(losses)}')
            if recipe.evaluates(epoch):
                for trainee in trainees:
                    trainee.result.top1s[epoch] = evaluate(trainee.model, images, recipe)
        for trainee, counter in zip(trainees, counters):
            trainee.result.drop_rates, trainee.result.drop_frequencies = counter.rates(), counter.frequencies()
    return [(trainee.model, trainee.result) for trainee in trainees]
