"""Whatever Python does in a forward: every mode computes what timm's DropPath computes, notes the same, or refuses."""

import contextlib
import copy
import functools
import importlib
import itertools
import math
import random
import warnings

import pytest
import torch
from timm.layers import DropPath
from timm.utils import AverageMeter
from torch import nn
from torch.utils.checkpoint import checkpoint

import timm_stochdepth as ts

DIM = 8
CONFIG = {'gain': 0.5}
CALLS = 0


def gained(x, gain=2.0):
    return gain * x


def doubled(forward):
    @functools.wraps(forward)
    def wrapper(self, *args, **kwargs):
        return 2 * forward(self, *args, **kwargs)

    return wrapper


def doubled_without_wraps(forward):
    def call(self, x):
        return 2 * forward(self, x)

    return call


def without_gradients(forward):
    @functools.wraps(forward)
    def wrapper(self, x):
        with torch.no_grad():
            frozen = self.fc2(x)
        return forward(self, x) + frozen

    return wrapper


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.drop_path = DropPath(0.4)
        self.layers = nn.ModuleList([nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)])
        self.noted, self.count, self.seen, self.gain = None, 0, {}, 0.7

    def branch(self, x):
        return self.fc1(self.norm(x))


class Keywords(Block):
    def forward(self, x, **kwargs):
        return x + self.drop_path(gained(self.branch(x), **kwargs))

    arguments = dict(gain=3.0)


class Positional(Block):
    def forward(self, x, *gains):
        return x + self.drop_path(gained(self.branch(x), *gains))


class NotesOutside(Block):
    def forward(self, x):
        self.noted = self.fc2(x).square().mean()
        return x + self.drop_path(self.branch(x))


class NotesBranch(Block):
    def forward(self, x):
        y = self.branch(x)
        self.noted = y
        return x + self.drop_path(y)


class Counts(Block):
    def forward(self, x):
        self.count += 1
        return x + min(self.count / 3, 1.0) * self.drop_path(self.branch(x))


class CountsAfter(Block):
    def forward(self, x):
        y = self.branch(x) * self.count
        self.count += 1
        return x + self.drop_path(y)


class SharedDict(Block):
    def forward(self, x):
        self.seen[len(self.seen)] = x.detach().mean()
        return x + self.drop_path(self.branch(x) * len(self.seen))


class NoGrad(Block):
    def forward(self, x):
        with torch.no_grad():
            y = self.norm(x)
        return x + self.drop_path(self.fc1(y))


class NoGradAround(Block):
    def forward(self, x):
        with torch.no_grad():
            x = x + self.drop_path(self.branch(x))
        return x + self.fc2(x)


class Autocast(Block):
    def forward(self, x):
        with torch.autocast('cpu', torch.bfloat16):
            y = self.fc1(self.norm(x))
        return x + self.drop_path(y.float())


class Suppressed(Block):
    def forward(self, x):
        with contextlib.suppress(ZeroDivisionError):
            y = self.branch(x)
        return x + self.drop_path(y)


class PythonRandom(Block):
    def forward(self, x):
        gain = random.random()
        return x + gain * self.drop_path(self.branch(x))


class TorchRandom(Block):
    def forward(self, x):
        gain = torch.rand(())
        return x + self.drop_path(self.branch(x)) * gain


class Iterates(Block):
    def __init__(self):
        super().__init__()
        self.gains = itertools.count(1)

    def forward(self, x):
        gain = next(self.gains)
        return x + self.drop_path(self.branch(x) * gain)


class CountsThenDecides(Block):
    def forward(self, x):
        self.count += 1
        if self.count > 1:
            return x + self.drop_path(self.branch(x))
        return x + self.drop_path(self.fc2(x))


class FillsIn(Block):
    def forward(self, x, gain: float = None):
        if gain is None:
            gain = self.gain
        if gain is not None:  # noqa: SIM108
            y = gain * self.branch(x)
        else:
            y = self.fc2(x)
        return x + self.drop_path(y)


class HandsOnAList(Block):
    def forward(self, x):
        parts = [x, 2 * x]
        return parts[1] + self.drop_path(self.fc1(self.norm(parts[0] + parts[1])))


class Noise(Block):
    def forward(self, x):
        noise = torch.randn_like(x)
        return x + self.drop_path(self.branch(x + noise))


class ReadsGlobal(Block):
    def forward(self, x):
        return x + self.drop_path(self.branch(x) * CONFIG['gain'])


class WritesGlobal(Block):
    def forward(self, x):
        global CALLS
        CALLS += 1
        return x + self.drop_path(self.branch(x) * CALLS)


class Item(Block):
    def forward(self, x):
        gain = self.fc1.weight.abs().mean().item()
        return x + self.drop_path(self.branch(x) * gain)


class AttributeOfChild(Block):
    def forward(self, x):
        return x + self.drop_path(self.branch(x) * self.norm.eps * 1e5)


class Decorated(Block):
    @doubled
    def forward(self, x):
        return x + self.drop_path(self.branch(x))


class DecoratedWithoutWraps(Block):
    @doubled_without_wraps
    def forward(self, x):
        return x + self.drop_path(self.branch(x))


class DecoratedTwice(Block):
    @without_gradients
    @doubled
    def forward(self, x):
        return x + self.drop_path(self.branch(x))


class InferenceDecorator(Block):
    @torch.autocast('cpu', torch.bfloat16)
    def forward(self, x):
        return x + self.drop_path(self.branch(x).float())


class Property(Block):
    @property
    def scale(self):
        return self.gain * 2

    def forward(self, x):
        return x + self.drop_path(self.branch(x)) * self.scale


def counting():
    calls = 0

    class Closure(Block):
        def forward(self, x):
            nonlocal calls
            calls += 1
            return x + self.drop_path(self.branch(x) * calls)

    return Closure


class Loop(Block):
    def forward(self, x):
        y = x
        for layer in self.layers:
            y = layer(y)
        return x + self.drop_path(y)


class While(Block):
    def forward(self, x):
        y, i = x, 0
        while i < 2:
            y = self.layers[i](y)
            i += 1
        return x + self.drop_path(y)


class Appends(Block):
    def forward(self, x):
        outputs = []
        for layer in self.layers:
            outputs.append(layer(x))
        return x + self.drop_path(torch.stack(outputs).sum(0))


class Comprehension(Block):
    def forward(self, x):
        return x + self.drop_path(sum(layer(x) for layer in self.layers))


class Lambda(Block):
    def forward(self, x):
        run = lambda y: self.fc1(y) * self.gain  # noqa: E731
        return x + self.drop_path(run(self.norm(x)))


class Inner(Block):
    def forward(self, x):
        def run(y):
            return self.fc1(y) + y

        return x + self.drop_path(run(self.norm(x)))


class Walrus(Block):
    def forward(self, x):
        return x + self.drop_path(self.fc1(y := self.norm(x)) + y)


class Super(Loop):
    def forward(self, x):
        x = super().forward(x)
        return x + self.drop_path(self.fc2(x))


class Private(Block):
    def __gain(self):
        return self.gain

    def forward(self, x):
        return x + self.drop_path(self.branch(x)) * self.__gain()


class Asserts(Block):
    def forward(self, x):
        y = self.branch(x)
        assert y.shape[1:] == x.shape[1:], y.shape
        return x + self.drop_path(y)


class Deletes(Block):
    def forward(self, x):
        y = self.norm(x)
        z = self.fc1(y)
        del y
        return x + self.drop_path(z)


class Tries(Block):
    def forward(self, x):
        try:
            y = self.branch(x)
        finally:
            self.count += 1
        return x + self.drop_path(y)


class SetsItems(Block):
    def forward(self, x):
        y = self.branch(x)
        y[:, 0] = 0.0
        return x + self.drop_path(y)


class DecidesOnValues(Block):
    def forward(self, x):
        if x.mean() > 0:  # noqa: SIM108
            x = x + self.drop_path(self.branch(x))
        else:
            x = x - 0.5 + self.drop_path(self.fc2(x))
        return x


class Leaves(Block):
    def forward(self, x):
        if x.mean() > 0:
            return self.fc2(x)
        return x + self.drop_path(self.branch(x))


class GradMode(Block):
    def forward(self, x):
        y = self.branch(x) if torch.is_grad_enabled() else self.fc2(x)
        return x + self.drop_path(y)


class Checkpointed(Block):
    def forward(self, x):
        return x + self.drop_path(checkpoint(self.branch, x, use_reentrant=False))


class Warns(Block):
    def forward(self, x):
        y = self.branch(x)
        warnings.warn(f'{y.shape[-1]} channels', stacklevel=2)
        return x + self.drop_path(y)


class InPlace(Block):
    def forward(self, x):
        shortcut = x
        x = self.branch(x)
        x = self.drop_path(x)
        x += shortcut
        return x


class AfterChange(Block):
    def forward(self, x):
        y = self.fc1(x)
        x = x * 2
        return x + self.drop_path(self.norm(y))


class Rebinds(Block):
    def forward(self, x):
        y = self.fc1(x)
        x = self.norm(x)
        z = y + x
        return self.fc2(x) + self.drop_path(z)


class Match(Block):
    def forward(self, x):
        gain = {0.7: 2.0}.get(self.gain, math.pi)
        return x + self.drop_path(self.branch(x)) * gain


class DropsInMethod(Block):
    def dropped(self, x):
        return self.drop_path(self.branch(x))

    def forward(self, x):
        return x + self.dropped(x)


class DropsInMethodInTraining(Block):
    def inner(self, x):
        return x + self.drop_path(self.branch(x))

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False) if self.training else self.inner(x)


class DropsInMethodAfterNoise(Block):
    def dropped(self, x):
        return self.drop_path(self.branch(x) * torch.rand(()))

    def forward(self, x):
        return nn.functional.dropout(x, 0.3) + self.dropped(x)


class PositionalOnly(Block):
    def forward(block, x, /, *, gain=2.0):  # noqa: N805
        return x + block.drop_path(block.branch(x)) * gain


class Lines(Block):
    def forward(self, x):
        """A text
        of lines."""
        text = """two
lines"""
        return x + self.drop_path(self.branch(x)) * len(text)


class HandsItselfOn(Block):
    def forward(self, x):
        return Loop.forward(self, x)


class Leaf(torch.fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return True


def graph():
    block = Loop()
    return torch.fx.GraphModule(block, Leaf().trace(block))


class Getattr(Block):
    def forward(self, x):
        return x + getattr(self, 'drop_path')(self.branch(x))  # noqa: B009


# what mixes the samples of a batch: each of these is right when it is masked, and no branch of a part of the samples
class TemporalShift(Block):
    def forward(self, x):
        frames = x.view(len(x) // 2, 2, *x.shape[1:])
        frames = frames.flip(1)
        return x + self.drop_path(self.fc1(frames.reshape(x.shape)))


class Rolls(Block):
    def branch(self, x):
        return self.fc1(x.roll(1, 0))

    def forward(self, x):
        return x + self.drop_path(self.branch(x))


class MeanOfBatch(Block):
    def forward(self, x):
        y = self.fc1(x)
        return x + self.drop_path(y - y.mean(0))


EQUAL = [
    Positional, NotesOutside, Counts, SharedDict, NoGrad, NoGradAround, Autocast, Suppressed, PythonRandom,
    TorchRandom, Noise, Iterates, CountsThenDecides, FillsIn, HandsOnAList, ReadsGlobal, WritesGlobal, Item,
    AttributeOfChild, Decorated, DecoratedWithoutWraps, DecoratedTwice, InferenceDecorator, Property, Loop, While,
    Appends, Comprehension, Lambda, Inner, Private, Super, DropsInMethod, PositionalOnly, Lines, Asserts, Deletes,
    SetsItems, DecidesOnValues, Leaves, GradMode, Checkpointed, Warns, InPlace, AfterChange, Match, Keywords,
    NotesBranch,
]  # fmt: skip
# that nothing is left out of, with the reason
REFUSED = {
    DropsInMethodAfterNoise: 'calls its drop path in a method',
    DropsInMethodInTraining: 'calls its drop path in a method',
    Getattr: 'calls its drop path as one of its children',
    HandsItselfOn: 'calls its drop path as one of its children',
    Walrus: 'a variable is bound within an expression',
    Rebinds: 'x is changed within the branch',
    CountsAfter: 'nothing is computed',
    Tries: 'nothing is computed',
}
MIXED = [TemporalShift, Rolls, MeanOfBatch]
METHODS = {
    'mask': ('sample', {}),
    'skip': ('sample', dict(skip_dropped=True)),
    'block': ('block', {}),
}


def network(block):
    global CALLS
    torch.manual_seed(0)
    random.seed(0)
    CALLS = 0
    CONFIG['gain'] = 0.5
    return nn.Sequential(block(), block())


def steps(model):
    """Losses, gradients and notes of three steps, in which what the forward reads changes."""
    global CALLS
    random.seed(0)
    CALLS, results = 0, []
    for step in range(3):
        CONFIG['gain'] = 0.5 + step
        torch.manual_seed(step)
        x = torch.randn(6, 3, DIM) - step % 2
        torch.manual_seed(10 + step)
        model.zero_grad()
        arguments = getattr(type(model[0]), 'arguments', {})
        for block in model:
            block.gain = 0.7 + step
            x = block(x, **arguments)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            noted = [n for block in model if isinstance(n := getattr(block, 'noted', None), torch.Tensor)]
            loss = x.square().mean() + sum(n.square().mean() for n in noted if n.ndim == 0)
        loss.backward()
        gradients = [torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()]
        counts = [(getattr(block, 'count', 0), len(getattr(block, 'seen', ()))) for block in model]
        results.append([x.detach(), gradients, counts, [n.detach() for n in noted if n.ndim == 0], CALLS])
    return results


def run(block, name):
    plain = network(block)
    method, settings = METHODS[name]
    model = copy.deepcopy(plain)
    if method == 'block':  # drops for the whole batch, which timm does not: here nothing
        ts.apply_stochastic_depth(model, method, 'DropPath', 1e-12, 'uniform', scale_by_keep=True)
        for child in plain:
            child.drop_path = nn.Identity()
    else:
        ts.apply_stochastic_depth(model, method, 'DropPath', None, scale_by_keep=True, **settings)
    expected = steps(plain)
    return steps(model), expected, model, plain


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize('block', EQUAL, ids=lambda block: block.__name__)
def test_a_step_is_timms(block, name):
    if name == 'block' and block in (TorchRandom, Noise):
        pytest.skip('the decisions are drawn by the same generator')
    torch.testing.assert_close(*run(block, name)[:2])


@pytest.mark.parametrize('name', METHODS)
def test_a_step_is_timms_where_a_forward_has_a_variable_of_its_function(name):
    results = []
    for closure in (counting(), counting()):
        plain = network(closure)
        if results:
            method, settings = METHODS[name]
            rate = 1e-12 if method == 'block' else None
            ts.apply_stochastic_depth(plain, method, 'DropPath', rate, 'uniform', scale_by_keep=True, **settings)
        elif METHODS[name][0] == 'block':
            for child in plain:
                child.drop_path = nn.Identity()
        results.append(steps(plain))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize('name', METHODS)
def test_a_graph_of_fx_is_a_block(name):
    results, expected, *_ = run(graph, name)
    torch.testing.assert_close(results, expected)


@pytest.mark.parametrize('block', [*REFUSED, *MIXED], ids=lambda block: block.__name__)
def test_what_is_masked_is_masked_as_timm_masks_it(block):
    torch.testing.assert_close(*run(block, 'mask')[:2])


@pytest.mark.parametrize('name', ['skip', 'block'])
@pytest.mark.parametrize('block', REFUSED, ids=lambda block: block.__name__)
def test_what_is_not_understood_is_refused_when_it_is_applied(block, name):
    method, settings = METHODS[name]
    with pytest.raises(ValueError, match=REFUSED[block]):
        ts.apply_stochastic_depth(network(block), method, 'DropPath', 0.5, **settings)


@pytest.mark.parametrize('block', MIXED, ids=lambda block: block.__name__)
def test_branches_that_mix_the_samples_are_refused_in_the_first_pass(block):
    model = network(block)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.5, skip_dropped=True)
    with pytest.raises(ValueError, match='skip_dropped must be False .*samples'):
        model(torch.randn(6, 3, DIM))
    torch.testing.assert_close(*run(block, 'block')[:2])


def test_a_trusted_block_is_not_compared():
    ts.TRUSTED_BLOCKS.append(MeanOfBatch)
    try:
        model = network(MeanOfBatch)
        ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.5, 'uniform', skip_dropped=True)
        calls = []
        model[0].fc1.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
        torch.manual_seed(1)
        model(torch.randn(6, 3, DIM))
    finally:
        ts.TRUSTED_BLOCKS.remove(MeanOfBatch)
    assert len(calls) == 1 and 0 < calls[0] < 6


class Switched(Block):
    is_on = True

    def forward(self, x):
        if self.is_on:
            x = x + self.drop_path(self.branch(x))
        return self.fc2(x)


@pytest.mark.parametrize('name', METHODS)
def test_a_branch_can_be_switched_off_and_on(name):
    plain = network(Switched)
    method, settings = METHODS[name]
    model = copy.deepcopy(plain)
    ts.apply_stochastic_depth(model, method, 'DropPath', 1.0, 'uniform', **settings)
    x = torch.randn(4, 3, DIM)
    for is_on in (False, True, False):
        for block in (*plain, *model):
            block.is_on = is_on
        expected = plain[1].fc2(plain[0].fc2(x)) if is_on else plain(x)  # all is dropped
        torch.testing.assert_close(model(x), expected)


def test_a_forward_of_the_block_itself_masks():
    plain = network(Loop)
    for block in plain:
        block.forward = lambda x, block=block: 3 * x + block.drop_path(block.fc1(x))
    with pytest.raises(ValueError, match='attribute of the block itself'):
        ts.apply_stochastic_depth(copy.deepcopy(plain), 'sample', 'DropPath', None, skip_dropped=True)


@pytest.mark.parametrize('name', ['skip', 'block'])
def test_the_comparison_leaves_no_trace(name):
    """Hooks, counters, buffers, lists and generators are after the first pass what one pass makes of them."""

    class Noting(Block):
        def __init__(self):
            super().__init__()
            self.register_buffer('passes', torch.zeros(()))
            self.outputs, self.meter = [], AverageMeter()

        def forward(self, x):
            self.passes += 1
            self.outputs.append(len(x))
            self.meter.update(1.0)
            return x + self.drop_path(self.branch(x))

    model = network(Noting)
    method, settings = METHODS[name]
    ts.apply_stochastic_depth(model, method, 'DropPath', 1e-12, 'uniform', **settings)
    calls = []
    model[0].fc1.register_forward_hook(lambda *args: calls.append(args))
    torch.manual_seed(3)
    model(torch.ones(4, 3, DIM))
    state = torch.get_rng_state()
    torch.manual_seed(3)
    model(torch.ones(4, 3, DIM))
    assert [len(block.outputs) for block in model] == [2, 2] and len(calls) == 2
    assert [block.passes.item() for block in model] == [block.meter.count for block in model] == [2.0, 2.0]
    assert torch.equal(state, torch.get_rng_state())  # the first pass has drawn no more than the second


def test_a_file_that_was_edited_since_it_was_imported_is_not_cut(tmp_path, monkeypatch):
    """Its source is not what runs."""
    file = tmp_path / 'edited_blocks.py'
    text = 'from test_python import Block\n\n\nclass Edited(Block):\n    def forward(self, x):\n        return {}\n'
    file.write_text(text.format('x + self.drop_path(self.branch(x))'))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module('edited_blocks')
    ts.apply_stochastic_depth(network(module.Edited), 'sample', 'DropPath', 0.5, skip_dropped=True)

    class Again(module.Edited):  # for which nothing was parsed yet
        pass

    file.write_text(text.format('x + self.drop_path(self.branch(x) + self.fc2(x))'))
    with pytest.raises(ValueError, match='edited since'):
        ts.apply_stochastic_depth(network(Again), 'sample', 'DropPath', 0.5, skip_dropped=True)
    ts.apply_stochastic_depth(network(Again), 'sample', 'DropPath', 0.5)


@pytest.mark.parametrize('name', ['skip', 'block'])
def test_what_has_nothing_to_do_with_the_samples_runs_whatever_is_dropped(name):
    method, settings = METHODS[name]
    model = network(Iterates)
    ts.apply_stochastic_depth(model, method, 'DropPath', 1.0, 'uniform', **settings)
    for _ in range(3):
        model(torch.randn(4, 3, DIM))
    assert [next(block.gains) for block in model] == [4, 4]


class NotesInDict(Block):
    def forward(self, x):
        y = self.branch(x)
        self.seen['branch'] = y
        return x + self.drop_path(y)


@pytest.mark.parametrize('block', [NotesInDict, SharedDict, Counts, NotesBranch, Iterates])
def test_scaling_the_weights_leaves_what_a_forward_notes(block):
    model = network(block)
    with contextlib.suppress(ValueError):  # some ends are not found
        ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4, keep_function=True)
    for child in model:
        assert (child.noted, child.count, child.seen) == (None, 0, {})
    assert block is not Iterates or [next(child.gains) for child in model] == [1, 1]
