"""ignite's engines, against plain loops."""

import loops
import pytest
import torch
from torch.nn.functional import cross_entropy

import timm_stochdepth
from timm_stochdepth import drop_rates, set_training_progress, start_warmup

pytest.importorskip('ignite')
from ignite.engine import Events, create_supervised_trainer  # noqa: E402
from ignite.handlers import Checkpoint, EMAHandler, FastaiLRFinder  # noqa: E402

pytestmark = loops.TRAINERS


def create_run(method):
    """As in docs/trainers.md."""
    model = loops.network(method)
    start_warmup(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=loops.LR)
    trainer = create_supervised_trainer(model, optimizer, cross_entropy)

    @trainer.on(Events.STARTED | Events.ITERATION_COMPLETED)
    def warm_up(trainer):
        set_training_progress(model, trainer.state.iteration / (trainer.state.max_epochs * trainer.state.epoch_length))

    return trainer, model, optimizer


@pytest.mark.parametrize('method', ['sample', 'block'])
def test_training_is_that_of_a_plain_loop(method):
    trainer, model, _ = create_run(method)
    rates = loops.watch(model)
    trainer.run(loops.batches(), max_epochs=loops.NUM_EPOCHS)
    assert rates == pytest.approx(loops.RATES)
    assert max(drop_rates(model).values()) == loops.RATE
    loops.assert_same_state(model, loops.trained(method))


def test_a_run_that_is_resumed_in_an_epoch_goes_on(tmp_path):
    trainer, model, optimizer = create_run('block')
    loops.watch(model)
    to_save = dict(model=model, optimizer=optimizer, trainer=trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), Checkpoint(to_save, tmp_path, n_saved=None))
    trainer.run(loops.batches(), max_epochs=loops.NUM_EPOCHS)

    resumed, other, optimizer = create_run('block')
    Checkpoint.load_objects(
        dict(model=other, optimizer=optimizer, trainer=resumed), torch.load(tmp_path / 'checkpoint_2.pt')
    )
    rates = loops.watch(other)
    resumed.run(loops.batches(), max_epochs=loops.NUM_EPOCHS)
    assert rates == pytest.approx(loops.RATES[2:])


def test_ema_is_evaluated_at_the_rate_of_its_model():
    trainer, model, _ = create_run('block')
    ema = EMAHandler(model, momentum=0.5)
    ema.attach(trainer)
    alike = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def compare(trainer):
        alike.append(drop_rates(ema.ema_model) == drop_rates(model))

    trainer.run(loops.batches(), max_epochs=loops.NUM_EPOCHS)
    assert all(alike) and len(alike) == loops.NUM_STEPS
    plain = timm_stochdepth.fold_stochastic_depth(ema.ema_model)
    torch.testing.assert_close(loops.logits(plain), loops.logits(ema.ema_model))


def test_lr_find_leaves_the_weights(tmp_path):
    trainer, model, optimizer = create_run('block')
    before = loops.logits(model)
    finder = FastaiLRFinder()
    with finder.attach(trainer, dict(model=model, optimizer=optimizer), num_iter=6) as finding:
        finding.run(loops.batches())
    set_training_progress(model, 0.0)  # docs/trainers.md: the progress is not the finder's to restore
    torch.testing.assert_close(loops.logits(model), before)
    rates = loops.watch(model)
    trainer.run(loops.batches(), max_epochs=loops.NUM_EPOCHS)
    assert rates == pytest.approx(loops.RATES)
    loops.assert_same_state(model, loops.trained('block'))


def test_fold():
    trainer, model, _ = create_run('block')
    trainer.run(loops.batches(), max_epochs=loops.NUM_EPOCHS)
    plain = loops.network(None)
    plain.load_state_dict(timm_stochdepth.fold_stochastic_depth(model).state_dict())
    torch.testing.assert_close(loops.logits(plain), loops.logits(model))
