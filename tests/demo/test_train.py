import random

import numpy as np
import pytest
import torch
from fashion import write_fashion

from timm_stochdepth.demo.fashion_mnist import FORMAT, read_fashion_mnist
from timm_stochdepth.demo.network import Network, fitted
from timm_stochdepth.demo.randomness import RandomStream
from timm_stochdepth.demo.recipe import Recipe
from timm_stochdepth.demo.train import train_in_turn

CPU = torch.device('cpu')
RECIPE = Recipe(data='fashion-mnist', num_images=48, epochs=2, batch_size=16, eval_every=2)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fashion') / 'files'
    write_fashion(folder)
    return read_fashion_mnist(folder, RECIPE.num_images)


def draw():
    return torch.rand(1).item(), np.random.rand(), random.random()


def test_streams_do_not_disturb_one_another():
    torch.manual_seed(7)
    outside = torch.rand(2).tolist()
    torch.manual_seed(7)
    one, other = RandomStream(1, CPU), RandomStream(1, CPU)
    assert torch.rand(1).item() == outside[0]
    drawn = []
    for stream in (one, one, other, one, other, other):
        with stream:
            drawn.append((stream, draw()))
    assert torch.rand(1).item() == outside[1]
    ones, others = ([values for stream, values in drawn if stream is s] for s in (one, other))
    assert ones == others and len({value for values in ones for value in values}) == 9
    with RandomStream(2, CPU):
        assert not set(draw()) & set(ones[0])


def losses_of(methods, images, seed=1):
    networks = [fitted(Network('test_vit', {}, 0.4, method), FORMAT) for method in methods]
    trained = train_in_turn(networks, images, RECIPE, seed)
    return {result.method: (result.step_losses, result.top1s) for _, result in trained}


def test_a_network_learns_in_turn_what_it_learns_alone(images):
    together = losses_of(['plain', 'timm', 'block'], images)
    torch.rand(3)  # whatever was drawn before
    for method, losses in together.items():
        assert losses_of([method], images)[method] == losses
    assert len({tuple(losses) for losses, _ in together.values()}) == 3
    assert losses_of(['timm'], images, seed=2)['timm'] != together['timm']


def test_losses_are_those_of_a_plain_loop(images):
    network = fitted(Network('test_vit', {}, 0.4, 'timm'), FORMAT)
    recipe = Recipe(num_images=48, epochs=1, batch_size=16, warmup_epochs=0)
    _, result = train_in_turn([network], images, recipe, seed=3)[0]

    torch.manual_seed(3)
    random.seed(3)
    batches = list(images.train_loader(recipe))
    torch.manual_seed(3)
    model = network.create()
    decayed = [p for p in model.parameters() if p.ndim > 1 and p is not model.pos_embed and p is not model.cls_token]
    others = [p for p in model.parameters() if all(p is not d for d in decayed)]
    optimizer = torch.optim.AdamW(
        [dict(params=decayed), dict(params=others, weight_decay=0.0)], 2e-3, weight_decay=0.02
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    expected = []
    for x_NCHW, target_N in batches:
        loss = torch.nn.functional.cross_entropy(model.train()(x_NCHW), target_N, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        expected.append(loss.item())
    assert result.step_losses == pytest.approx(expected, abs=1e-5)
    assert len(result.step_seconds) == 3 and min(result.step_seconds) > 0
