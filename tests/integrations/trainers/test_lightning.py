"""Lightning's Trainer, against plain loops."""

import copy
import logging

import loops
import pytest
import timm
import torch
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, update_bn

import timm_stochdepth
from timm_stochdepth import drop_rates, set_training_progress, start_warmup

L = pytest.importorskip('lightning')
from lightning.pytorch.callbacks import (  # noqa: E402
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner import Tuner  # noqa: E402

pytestmark = loops.TRAINERS
logging.getLogger('lightning').setLevel(logging.ERROR)


class Classifier(L.LightningModule):
    """As in docs/trainers.md."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.lr = loops.LR

    def forward(self, images):
        return self.model(images)

    def training_step(self, batch):
        images, targets = batch
        return cross_entropy(self.model(images), targets)

    def validation_step(self, batch):
        self.log('rate', max(drop_rates(self).values(), default=0.0))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def setup(self, stage):
        if stage == 'fit':
            start_warmup(self)

    def progress(self):
        return min(1.0, self.trainer.global_step / self.trainer.estimated_stepping_batches)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        set_training_progress(self, self.progress())

    def on_save_checkpoint(self, checkpoint):
        checkpoint['progress'] = self.progress()

    def on_load_checkpoint(self, checkpoint):
        set_training_progress(self, checkpoint['progress'])


def create_trainer(tmp_path, **kwargs):
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    return L.Trainer(accelerator='cpu', max_epochs=loops.NUM_EPOCHS, default_root_dir=tmp_path, **(quiet | kwargs))


@pytest.mark.parametrize('method', ['sample', 'block'])
def test_training_is_that_of_a_plain_loop(method, tmp_path):
    module = Classifier(loops.network(method))
    rates = loops.watch(module.model)
    create_trainer(tmp_path).fit(module, loops.batches())
    assert rates == pytest.approx(loops.RATES)
    assert max(drop_rates(module).values()) == loops.RATE
    loops.assert_same_state(module.model, loops.trained(method))


def test_a_validation_is_at_the_rate_of_its_moment(tmp_path):
    module = Classifier(loops.network('block'))
    trainer = create_trainer(tmp_path)
    seen = []
    module.on_validation_end = lambda: seen.append(max(drop_rates(module).values()))
    trainer.fit(module, loops.batches(), loops.batches())
    assert seen == [0.0, loops.RATE, loops.RATE]  # the first is the sanity check, the second at half of training


def test_a_checkpoint_of_the_warmup_is_validated_at_its_rate(tmp_path):
    module = Classifier(loops.network('block'))
    at_steps = {}
    module.on_train_batch_start = lambda batch, i: at_steps.update({
        module.trainer.global_step: loops.logits(module.model)
    })
    save = ModelCheckpoint(tmp_path, '{step}', every_n_train_steps=2, save_top_k=-1)
    create_trainer(tmp_path, enable_checkpointing=True, callbacks=save).fit(module, loops.batches())

    other = Classifier(loops.network('block')).eval()
    path = tmp_path / 'step=2.ckpt'
    (result,) = create_trainer(tmp_path).validate(other, loops.batches(), ckpt_path=path, verbose=False)
    assert result['rate'] == pytest.approx(loops.RATES[2])
    torch.testing.assert_close(loops.logits(other), at_steps[2])
    loaded = Classifier.load_from_checkpoint(path, model=loops.network('block')).eval()
    torch.testing.assert_close(loops.logits(loaded), at_steps[2])


def test_ema(tmp_path):
    module = Classifier(loops.network('block'))
    loops.watch(module.model)
    seen = []
    module.on_validation_epoch_start = lambda: seen.append(loops.logits(module.model))
    create_trainer(tmp_path, callbacks=EMAWeightAveraging(decay=0.5), num_sanity_val_steps=0).fit(
        module, loops.batches(), loops.batches()
    )

    model = loops.network('block')
    start_warmup(model)
    loops.watch(model)
    averaged = AveragedModel(model, avg_fn=lambda average, new, num: average + 0.5 * (new - average), use_buffers=True)
    at_epochs = []

    def after_step():
        averaged.update_parameters(model)
        at_epochs.append(loops.logits(averaged))

    loops.train(model, after_step=after_step)
    loops.assert_same_state(module.model, averaged.module)
    torch.testing.assert_close(loops.logits(module.model), loops.logits(averaged))
    # validations see the average
    torch.testing.assert_close(seen, at_epochs[loops.NUM_BATCHES - 1 :: loops.NUM_BATCHES])


class NoDropWhileNormsAreEstimated(Callback):
    """As docs/trainers.md says for StochasticWeightAveraging."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == loops.NUM_EPOCHS:  # the epoch that it adds
            self.no_drop = timm_stochdepth.no_drop(module)
            self.no_drop.__enter__()

    def on_train_end(self, trainer, module):
        self.no_drop.__exit__(None, None, None)


def test_swa(tmp_path):
    module = Classifier(loops.network('block'))
    average = StochasticWeightAveraging(loops.LR, swa_epoch_start=1)
    copies = []
    module.on_train_batch_start = lambda batch, i: copies.append(copy.deepcopy(module.model))
    create_trainer(tmp_path, callbacks=[average, NoDropWhileNormsAreEstimated()]).fit(module, loops.batches())

    reference = copies[-1]  # for any network, Lightning makes a step with the last gradient after it
    with timm_stochdepth.no_drop(reference):
        update_bn(loops.batches(), reference)
    for name, buffer in module.model.named_buffers():
        torch.testing.assert_close(buffer, reference.get_buffer(name))


def test_lr_find_leaves_no_trace(tmp_path):
    module = Classifier(loops.network('block'))
    set_training_progress(module, 1.0)
    before = loops.logits(module.model)
    trainer = create_trainer(tmp_path)
    Tuner(trainer).lr_find(module, loops.batches(), num_training=6, update_attr=False)
    torch.testing.assert_close(loops.logits(module.model), before)
    rates = loops.watch(module.model)
    trainer.fit(module, loops.batches())
    assert rates == pytest.approx(loops.RATES)
    loops.assert_same_state(module.model, loops.trained('block'))


def test_fold(tmp_path):
    module = Classifier(loops.network('block'))
    create_trainer(tmp_path).fit(module, loops.batches())
    plain = timm_stochdepth.fold_stochastic_depth(module)
    torch.testing.assert_close(loops.logits(plain), loops.logits(module))
    timm.models.save_for_hf(plain.model, tmp_path / 'saved', safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}/saved', pretrained=True).eval()
    torch.testing.assert_close(loops.logits(loaded), loops.logits(module))
