"""On a device all draws of a forward pass are taken at its first drop path: those that drop paths take one by one."""

import copy
import threading
from functools import partial

import pytest
import timm
import torch
from networks import images, randomize
from steps import assert_same, step
from torch.utils.checkpoint import checkpoint_sequential

import timm_stochdepth as ts
from timm_stochdepth.draws.fixed import select_fixed
from timm_stochdepth.draws.selection import select_kept
from timm_stochdepth.inspection import drop_paths
from timm_stochdepth.layers import drawn_ahead

NETWORKS = {
    'vit_tiny_patch16_224': dict(img_size=32, depth=4, embed_dim=48, num_heads=3),
    'test_convnext': {},
    'resnet18': {},
}


def as_on_device(model):
    """Have the drop paths of a model drawn as they are where the network is no CPU's."""
    for _, drop_path in drop_paths(model):
        drop_path.select = partial(drawn_ahead.select_ahead, drop_path)
    return model


def twins(name='vit_tiny_patch16_224', rate=0.5, **kwargs):
    """A network whose drop paths draw one by one, and one of the same weights that draws as on a device."""
    torch.manual_seed(0)
    model = randomize(timm.create_model(name, num_classes=3, **NETWORKS[name])).double()
    settings = ts.Settings('sample', rate, 'uniform', scale_by_keep=True, skip_dropped=True, **kwargs)
    ts.apply_stochastic_depth(model, settings=settings, target_layer_name='DropPath')
    return model.train(), as_on_device(copy.deepcopy(model)).train()


@pytest.fixture
def sizes(monkeypatch):
    """For how many drop paths something was told to a device, each time."""
    told = []

    def select(keep_PN, *args):
        told.append(len(keep_PN))
        return select_kept(keep_PN, *args)

    monkeypatch.setattr('timm_stochdepth.draws.bernoulli.select_kept', select)
    return told


@pytest.mark.parametrize('name', NETWORKS)
def test_draws_are_those_of_drop_paths_that_draw_one_by_one(name, sizes):
    model, ahead = twins(name)
    num_drop_paths = len(list(drop_paths(model)))
    x = images(6, 32).double()
    for seed in range(5):
        del sizes[:]
        assert_same(step(ahead, x, seed=seed), step(model, x, seed=seed))
        if seed > 1 and drawn_ahead._top_hooks:  # a pass is known when the next one begins
            assert sizes == [num_drop_paths]


@pytest.mark.parametrize('draw', ['independent', 'fixed'])
def test_where_others_draw_in_between_from_the_same_generator_nothing_is_drawn_ahead(draw):
    model, ahead = twins(draw=draw)
    for m in (model, ahead):  # a GPU's dropout shares its generator with fixed numbers
        for block in m.blocks[:3]:
            block.mlp.drop2.p = 0.1
    for seed in range(5):
        x = images(6, 32).double()
        assert_same(step(ahead, x, seed=seed), step(model, x, seed=seed))


def test_another_batch_size_and_another_rate_are_drawn_for(sizes):
    model, ahead = twins()
    for batch_size, rate in [(6, 0.5), (6, 0.5), (5, 0.5), (6, 0.5), (6, 0.2), (6, 0.2)]:
        for m in (model, ahead):
            ts.set_drop_rate(m, rate)
        x = images(batch_size, 32).double()
        assert_same(step(ahead, x, seed=1), step(model, x, seed=1))
    assert not drawn_ahead._top_hooks or sizes[-1] == 8


def test_a_rate_that_changes_within_a_pass_is_drawn_for():
    _, ahead = twins(rate=0.3)
    x = images(64, 32).double()
    for seed in range(2):
        step(ahead, x, seed=seed)
    noted = []
    last = ahead.blocks[3].drop_path2
    last.select = lambda shortcut: noted.append(drawn_ahead.select_ahead(last, shortcut)) or noted[-1]
    hook = ahead.blocks[2].register_forward_pre_hook(lambda module, args: setattr(last, 'drop_prob', 1.0))
    step(ahead, x, seed=3)
    hook.remove()
    assert len(noted[0].run_K) == 0


def test_a_pass_that_was_left_leaves_nothing():
    model, ahead = twins()
    x = images(6, 32).double()

    def leave(module, args):
        raise KeyError

    for seed in range(3):
        step(ahead, x, seed=seed)
    hook = ahead.blocks[2].register_forward_pre_hook(leave)
    with pytest.raises(KeyError):
        ahead(x)
    hook.remove()
    assert_same(step(ahead, x, seed=9), step(model, x, seed=9))
    assert_same(step(ahead, x, seed=10), step(model, x, seed=10))


def test_a_part_of_a_network_draws_for_itself():
    model, ahead = twins()
    x = images(6, 32).double()
    for seed in range(3):
        step(ahead, x, seed=seed)
    tokens = torch.randn(6, 5, 48, dtype=torch.float64, requires_grad=True)
    for idx in (1, 3, 0, 2, 2):
        assert_same(step(ahead.blocks[idx], tokens, seed=4), step(model.blocks[idx], tokens, seed=4))
    assert_same(step(ahead, x, seed=5), step(model, x, seed=5))


@pytest.mark.parametrize('reentrant', [False, True])
def test_a_checkpoint_repeats_its_draws(reentrant):
    _, ahead = twins()
    tokens = torch.randn(6, 5, 48, dtype=torch.float64, requires_grad=True)

    def gradients(run):
        ahead.zero_grad()
        torch.manual_seed(3)
        y = run()
        y.square().mean().backward()
        return [y.detach(), *(p.grad.clone() for p in ahead.blocks.parameters())]

    def checkpointed():
        x = ahead.blocks[0](tokens)  # draws for all of them
        return checkpoint_sequential(list(ahead.blocks)[1:], 2, x, use_reentrant=reentrant)

    for _ in range(3):
        expected = gradients(lambda: ahead.blocks(tokens))
    gradients(checkpointed)  # of a pass that was to take another course: it raises where draws are not repeated
    for _ in range(3):
        assert_same(gradients(checkpointed), expected)


@pytest.mark.parametrize('draw', ['independent', 'fixed'])
def test_a_pass_that_takes_another_course_gives_its_draws_back(draw):
    model, ahead = twins(draw=draw)
    tokens = torch.randn(6, 5, 48, dtype=torch.float64, requires_grad=True)

    def run(m, course, seed):
        m.zero_grad()
        torch.manual_seed(seed)
        x = tokens
        for idx in course:
            x = m.blocks[idx](x)
        x.square().mean().backward()
        return [x.detach(), torch.rand(3), *(p.grad for p in m.parameters() if p.grad is not None)]

    for seed, course in enumerate([
        (0, 1, 2, 3),
        (0, 1, 2, 3),
        (0, 2, 3),
        (0, 1, 2, 3),
        (0, 3),
        (0, 1, 1, 2),
        (0, 1, 2, 3),
    ]):
        if course[-1] != 3:  # what is left is given back by the next call
            run(ahead, course, seed), run(model, course, seed)
        else:
            assert_same(run(ahead, course, seed), run(model, course, seed))


def test_fixed_numbers_are_drawn_one_by_one_where_nothing_can_be_given_back(monkeypatch):
    model, _ = twins(draw='fixed')
    sizes = []

    def select(steps, x):
        sizes.append(len(steps))
        return select_fixed(steps, x)

    monkeypatch.setattr('timm_stochdepth.draws.fixed.select_fixed', select)
    model.to('meta')  # which has no generator to be asked, as that of MPS
    for _ in range(3):
        model(images(6, 32).double().to('meta')).sum().backward()
    assert sizes == [1] * 3 * len(list(drop_paths(model)))


def test_networks_that_take_turns_draw_each_for_itself():
    model, ahead = twins()
    other, other_ahead = twins('test_convnext')
    x = images(6, 32).double()
    for seed in range(4):
        for plain, of_device in ((model, ahead), (other, other_ahead)):
            assert_same(step(of_device, x, seed=seed), step(plain, x, seed=seed))
    copied = as_on_device(copy.deepcopy(ahead))  # shares the progress of training
    for seed in range(4):
        assert_same(step(ahead, x, seed=seed), step(copied, x, seed=seed))


def test_threads_draw_each_for_itself():
    model, ahead = twins()
    x = images(6, 32).double()
    for seed in range(3):
        step(ahead, x, seed=seed)
    torch.manual_seed(4)
    ahead.blocks[0](torch.randn(6, 5, 48, dtype=torch.float64))
    thread = threading.Thread(target=lambda: ahead(x).sum().backward())
    thread.start()
    thread.join()
    assert_same(step(ahead, x, seed=5), step(model, x, seed=5))


def test_without_gradients_drop_paths_draw_one_by_one(sizes):
    model, ahead = twins()
    x = images(6, 32).double()
    with torch.no_grad():
        for seed in range(3):
            torch.manual_seed(seed)
            y = ahead(x)
            torch.manual_seed(seed)
            torch.testing.assert_close(y, model(x))
    assert not sizes


def test_nothing_is_kept_of_a_network_that_is_gone():
    _, ahead = twins()
    for seed in range(3):
        step(ahead, images(6, 32).double(), seed=seed)
    num_known = len(drawn_ahead._passes)
    del ahead
    step(twins('test_convnext')[1], images(6, 32).double(), seed=0)
    assert len(drawn_ahead._passes) <= num_known
