"""Recognize drop paths of other packages, their rate, and the convention by which they scale."""
import copy
import random
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any, Generator, List, Tuple

import timm.layers
import torch
import torchvision.ops
from torch import Tensor, nn

__all__ = ['NotTakenOver', 'Peer', 'looks_like_drop_path', 'read_peer']

_KNOWN = (timm.layers.DropPath, torchvision.ops.StochasticDepth)
# where it is copied from timm's or torchvision's: what the class ends in, and what the rate is called
_CLASS_NAMES = ('DropPath', 'StochasticDepth')
_RATE_NAMES = ('drop_prob', 'p', 'drop_rate')

_RATE, _NUM_CALLS = 0.25, 64  # of the calls that show what a class computes
_SHAPES = ((5, 3, 2), (5, 3, 2, 4))  # tokens and images


class NotTakenOver(ValueError):
    """A module may be a drop path, and is not understood; the message is the reason."""


@dataclass(frozen=True)
class Peer:
    """What a drop path of somebody else's does.

    Attributes:
        rate: Its drop rate.
        scale_by_keep: Whether it divides by the keep probability in training.
        inference_scale: What it multiplies its branch with at inference.
    """
    rate: float
    scale_by_keep: bool
    inference_scale: float = 1.


def looks_like_drop_path(name: str, module: nn.Module) -> bool:
    """Whether a module that its block has under some name may be a drop path, by the name or by its class."""
    if isinstance(module, _KNOWN):
        return True
    if type(module) is nn.Identity or next(module.children(), None) is not None:
        return False
    return 'drop_path' in name or (type(module).__name__.endswith(_CLASS_NAMES) and not _has_tensors(module))


def read_peer(name: str, module: nn.Module) -> Peer:
    """Read a module that looks like a drop path.

    timm's and torchvision's are known. Of another class a copy is called, with generators of its own.

    Args:
        name: Name that its block has it under.
        module: The module, left as it is.

    Raises:
        NotTakenOver: It does something else, or nothing tells what; the message is the reason.
    """
    if not isinstance(module, _KNOWN):
        if 'drop_path' not in name:
            raise NotTakenOver('its name does not hold drop_path')
        if not type(module).__name__.endswith(_CLASS_NAMES):
            raise NotTakenOver(f'its class is not called {" or ".join(_CLASS_NAMES)}')
    if _has_tensors(module):
        raise NotTakenOver('it has parameters or buffers')
    if type(module) in _KNOWN:
        rate: Any = getattr(module, 'drop_prob', None) or getattr(module, 'p', None) or 0.
        return Peer(float(rate), bool(getattr(module, 'scale_by_keep', True)))
    rate_name, rate = _rate_of(module)
    kept, at_inference = _factors(module, rate_name)
    if (kept, at_inference) == (1. / (1. - _RATE), 1.):
        return Peer(rate, scale_by_keep=True)
    return Peer(rate, scale_by_keep=False, inference_scale=1. if at_inference == 1. else 1. - rate)


def _has_tensors(module: nn.Module) -> bool:
    return bool(module._parameters or module._buffers)


def _rate_of(module: nn.Module) -> Tuple[str, float]:
    rates = {n: float(v) for n, v in vars(module).items() if n in _RATE_NAMES and isinstance(v, Real)}
    if len(rates) != 1:
        raise NotTakenOver(f'not exactly one of its attributes {", ".join(_RATE_NAMES)} is a number')
    (name, rate), = rates.items()
    if not 0. <= rate <= 1.:
        raise NotTakenOver(f'its {name} is {rate}')
    return name, rate


def _factors(module: nn.Module, rate_name: str) -> Tuple[float, float]:
    """What a drop path multiplies the samples with that it keeps in training, and all samples with at inference."""
    for shape in _SHAPES:
        try:
            in_training, at_inference = _call(module, rate_name, shape)
        except Exception:  # whatever other people's code raises on an input that it is not made for
            continue
        kept = in_training[in_training != 0.]
        # a number that is the probability to keep would drop three of four
        drops_at_rate = len(in_training) / 2 < len(kept) < len(in_training)
        for factors in ((1. / (1. - _RATE), 1.), (1., 1. - _RATE), (1., 1.)):
            if drops_at_rate and _is_all(kept, factors[0]) and _is_all(at_inference, factors[1]):
                return factors
    raise NotTakenOver('it does not multiply each sample by 0, at its rate, or by the same factor as all others')


def _is_all(x: Tensor, value: float) -> bool:
    return torch.allclose(x, torch.full_like(x, value))


def _call(module: nn.Module, rate_name: str, shape: Tuple[int, ...]) -> List[Tensor]:
    """The factors of many samples in training, and at inference."""
    probe: Any = copy.copy(module)  # with attributes of its own
    vars(probe)[rate_name] = _RATE
    factors = []
    with _own_generators(), torch.no_grad():
        x = torch.rand(shape) + 1.
        for mode in (True, False):
            probe.training = mode
            factors.append(torch.cat([_factor_of_samples(probe.forward(x.clone()), x) for _ in range(_NUM_CALLS)]))
    return factors


def _factor_of_samples(y: Tensor, x: Tensor) -> Tensor:
    factors = (y / x).flatten(1)
    if y.shape != x.shape or not torch.allclose(factors, factors[:, :1]):
        raise NotTakenOver('it treats parts of a sample differently')
    return factors[:, 0]


@contextmanager
def _own_generators() -> Generator[None, None, None]:
    """Context in which what is drawn on the CPU leaves no trace."""
    numpy_random: Any = getattr(sys.modules.get('numpy'), 'random', None)
    state, numpy_state = random.getstate(), numpy_random and numpy_random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.device('cpu'):
            torch.default_generator.manual_seed(0)
            random.seed(0)
            if numpy_random:
                numpy_random.seed(0)
            yield
    finally:
        random.setstate(state)
        if numpy_random:
            numpy_random.set_state(numpy_state)
