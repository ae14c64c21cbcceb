"""Draws of drop paths, noted or given."""

import copy

import torch

from timm_stochdepth.draws.bernoulli import Draws
from timm_stochdepth.inspection import drop_paths


class NotedDraws(Draws):
    """The draws of others, which are also appended to a list."""

    def __init__(self, draws, noted):
        self.draws, self.noted = draws, noted

    def __deepcopy__(self, memo):
        return NotedDraws(copy.deepcopy(self.draws, memo), self.noted)

    def samples(self, *args):
        self.noted.append(self.draws.samples(*args))
        return self.noted[-1]

    def batch(self, drop_prob):
        self.noted.append(self.draws.batch(drop_prob))
        return self.noted[-1]


class GivenDecisions(Draws):
    """Draws for batches that an iterator gives."""

    def __init__(self, given):
        self.given = given

    def batch(self, drop_prob):
        return next(self.given)


class GivenDraws(GivenDecisions):
    """Draws that an iterator gives."""

    def samples(self, x, *args):
        return torch.as_tensor(next(self.given)).to(x.device, x.dtype)


def note_draws(model, noted=None):
    """Note what the drop paths of a model draw, in one list."""
    noted = [] if noted is None else noted
    for _, drop_path in drop_paths(model):
        drop_path.draws = NotedDraws(drop_path.draws, noted)
    return noted


def give_draws(model, given):
    """Have the drop paths of a model that drop take their draws from a list, in forward order."""
    given = iter(given)
    for _, drop_path in drop_paths(model):
        if drop_path.drop_prob > 0:
            drop_path.draws = GivenDraws(given)
    return given
