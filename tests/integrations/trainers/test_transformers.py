"""transformers' Trainer with a network of timm, against plain loops."""

import loops
import pytest
import timm
import torch
from torch.utils.data import Dataset

import timm_stochdepth
from timm_stochdepth import drop_rates, set_training_progress, start_warmup

pytest.importorskip('transformers')
pytest.importorskip('accelerate')  # which its Trainer needs
from transformers import (  # noqa: E402
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

pytestmark = loops.TRAINERS


class Images(Dataset):
    def __len__(self):
        return len(loops.samples())

    def __getitem__(self, i):
        image, target = loops.samples()[i]
        return dict(pixel_values=image, labels=target)


class WarmUp(TrainerCallback):
    """As in docs/trainers.md."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        set_training_progress(model, state.global_step / state.max_steps)

    on_step_end = on_train_begin


class InOrder(Trainer):
    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def wrapped(method):
    """transformers' wrapper around the network of the tests."""
    args = {name: value for name, value in loops.SMALL.items() if name != 'num_classes'}
    settings = dict(drop_path_rate=loops.RATE, drop_warmup=loops.WARMUP) if method else {}
    config = TimmWrapperConfig(
        architecture=f'resnet50_sd_{method}' if method else 'resnet50', model_args=args | settings, num_labels=4
    )
    model = TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict(loops.network(method).state_dict())
    return model


def create_trainer(model, folder, **kwargs):
    settings = TrainingArguments(
        folder,
        num_train_epochs=loops.NUM_EPOCHS,
        per_device_train_batch_size=loops.BATCH_SIZE,
        optim='sgd',
        learning_rate=loops.LR,
        lr_scheduler_type='constant',
        max_grad_norm=0.0,
        use_cpu=True,
        report_to='none',
        remove_unused_columns=False,
        disable_tqdm=True,
        **{'save_strategy': 'no', **kwargs},
    )
    start_warmup(model)
    return InOrder(model, settings, train_dataset=Images(), eval_dataset=Images(), callbacks=[WarmUp()])


@pytest.mark.parametrize('method', ['sample', 'block'])
def test_training_is_that_of_a_plain_loop(method, tmp_path):
    model = wrapped(method)
    rates = loops.watch(model.timm_model)
    create_trainer(model, tmp_path).train()
    assert rates == pytest.approx(loops.RATES)
    assert max(drop_rates(model).values()) == loops.RATE
    loops.assert_same_state(model.timm_model, loops.trained(method))


def test_a_run_that_is_resumed_goes_on(tmp_path):
    model = wrapped('block')
    create_trainer(model, tmp_path, save_strategy='steps', save_steps=2).train()
    resumed = wrapped('block')
    rates = loops.watch(resumed.timm_model, offset=2)
    create_trainer(resumed, tmp_path / 'resumed').train(resume_from_checkpoint=str(tmp_path / 'checkpoint-2'))
    assert rates == pytest.approx(loops.RATES[2:])


def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path):
    model = wrapped('block')
    create_trainer(model, tmp_path, save_strategy='steps', save_steps=2).train()
    resumed = wrapped('block')
    create_trainer(resumed, tmp_path / 'resumed').train(resume_from_checkpoint=str(tmp_path / 'checkpoint-2'))
    loops.assert_same_state(resumed, model)


def test_the_best_model_is_for_the_rate_of_its_moment(tmp_path):
    model = wrapped('block')
    at_steps = {}

    class Keep(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            at_steps[state.global_step] = loops.logits(model.timm_model)

    trainer = create_trainer(
        model, tmp_path, save_strategy='steps', save_steps=2, eval_strategy='steps', eval_steps=2,
        load_best_model_at_end=True,
    )  # fmt: skip
    trainer.add_callback(Keep())
    trainer.train()
    best = int(trainer.state.best_model_checkpoint.rpartition('-')[2])
    set_training_progress(model, best / loops.NUM_STEPS)  # docs/trainers.md: it does not come with the weights
    torch.testing.assert_close(loops.logits(model.timm_model), at_steps[best])


def test_saved_and_loaded(tmp_path):
    model = wrapped('block')
    create_trainer(model, tmp_path).train()
    model.save_pretrained(tmp_path)
    loaded = TimmWrapperForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loops.logits(loaded.timm_model), loops.logits(model.timm_model))


def test_folded_saved_and_loaded(tmp_path):
    model = wrapped('block')
    create_trainer(model, tmp_path).train()
    plain = timm_stochdepth.fold_stochastic_depth(model)
    torch.testing.assert_close(loops.logits(plain.timm_model), loops.logits(model.timm_model))
    plain.save_pretrained(tmp_path)
    loaded = TimmWrapperForImageClassification.from_pretrained(tmp_path)
    assert not drop_rates(loaded)
    torch.testing.assert_close(loops.logits(loaded.timm_model), loops.logits(model.timm_model))


def test_a_folder_of_timm_is_loaded(tmp_path):
    model = loops.network('block')
    set_training_progress(model, 1.0)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = TimmWrapperForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loops.logits(loaded.timm_model), loops.logits(model))
