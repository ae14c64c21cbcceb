import copy
import pickle
import warnings

import pytest
import timm.optim
import timm.scheduler
import torch
from networks import assert_same_output, images, randomize
from timm.task import ClassificationTask
from timm.task._helpers import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver, ModelEmaV3

import timm_stochdepth as ts
from timm_stochdepth.folding.rescale import fold_weights
from timm_stochdepth.integrations.timm_scripts.launcher import helped
from timm_stochdepth.integrations.timm_scripts.script_run import ScriptRun

NUM_EPOCHS, UPDATES_PER_EPOCH = 4, 3


def small_network(method='block', drop_warmup=0.5, **kwargs):
    model = timm.models.ResNet(timm.models.resnet.BasicBlock, (2, 1, 1, 1), num_classes=10, channels=(8, 8, 8, 8))
    ts.apply_stochastic_depth(model, method, 'ResNetBasicBlock', 0.4, drop_warmup=drop_warmup, **kwargs)
    return randomize(model)


@pytest.mark.parametrize('method', ['sample', 'block'])
def test_plain_loop(method):
    model = small_network(method)
    for progress, rate in ((0.0, 0.0), (0.25, 0.2), (0.5, 0.4), (0.75, 0.4), (1, 0.4)):
        ts.set_training_progress(model, progress)
        assert list(ts.drop_rates(model).values()) == pytest.approx([rate * i / 4 for i in range(5)])


@pytest.mark.parametrize('make_ema', [ModelEmaV3, torch.optim.swa_utils.AveragedModel, copy.deepcopy])
def test_copies_follow_the_model(make_ema):
    model = small_network()
    ts.set_training_progress(model, 0.0)
    ema = make_ema(model)
    ts.set_training_progress(model, 0.25)
    assert list(ts.drop_rates(ema).values()) == list(ts.drop_rates(model).values())
    ts.apply_stochastic_depth(model, 'block', 'ResNetBasicBlock', 0.4, drop_warmup=0.5)
    ts.set_training_progress(model, 0.1)
    assert max(ts.drop_rates(ema).values()) == pytest.approx(0.2)  # a new run of the model is not the copy's


@pytest.mark.parametrize('make_ema', [ModelEmaV3, torch.optim.swa_utils.AveragedModel, copy.deepcopy])
@pytest.mark.parametrize('method', ['sample', 'block'])
def test_copies_compute_at_the_rate_that_the_model_is_given(method, make_ema):
    model = timm.create_model(f'resnet50_sd_{method}', num_classes=4, drop_path_rate=0.1)
    ema = make_ema(model)
    teacher = ts.fold_stochastic_depth(model).eval()  # a copy that does not follow
    x = torch.randn(2, 3, 32, 32)
    y = teacher(x)
    for rate in (0.5, 0.0, 0.3):
        ts.set_drop_rate(model, rate)
        assert max(ts.drop_rates(ema).values()) == rate
        torch.testing.assert_close(ema.eval()(x), model.eval()(x))
        assert torch.equal(teacher(x), y)


def test_a_part_of_a_model_may_have_a_rate_of_its_own():
    model = timm.create_model('resnet50_sd_block', num_classes=4, drop_path_rate=0.2)
    ema = copy.deepcopy(model)
    before = ts.drop_rates(model)
    ts.set_drop_rate(model.layer4, 0.4)
    for network in (model, ema):
        rates = ts.drop_rates(network)
        assert rates['layer4.2'] == 0.4
        assert {n: r for n, r in rates.items() if 'layer4' not in n} == {
            n: r for n, r in before.items() if 'layer4' not in n
        }


def test_a_file_keeps_the_progress_and_does_not_follow():
    model = small_network()
    ts.set_training_progress(model, 0.25)
    loaded = pickle.loads(pickle.dumps(model))
    assert ts.drop_rates(loaded) == ts.drop_rates(model)
    ts.set_training_progress(model, 1.0)
    assert max(ts.drop_rates(loaded).values()) == pytest.approx(0.2)
    ts.set_training_progress(loaded, 0.0)
    assert set(ts.drop_rates(loaded).values()) == {0.0}


def test_a_folded_copy_is_left_alone():
    model = small_network()
    folded = ts.fold_stochastic_depth(model)
    ts.set_training_progress(model, 0.1)
    assert not any(hasattr(m, 'drop_prob') for m in folded.modules())


@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('scale_by_keep', [False, True])
def test_a_warmup_starts_from_the_function_of_the_weights(method, scale_by_keep):
    plain = randomize(
        timm.models.ResNet(timm.models.resnet.BasicBlock, (2, 1, 1, 1), num_classes=10, channels=(8, 8, 8, 8))
    ).eval()
    model = small_network(method, scale_by_keep=scale_by_keep).eval()
    model.load_state_dict(fold_weights(plain.state_dict(), model, {}))
    parameters = list(model.parameters())
    x = images()
    assert_same_output(model(x), plain(x))
    ts.start_warmup(model)
    assert set(ts.drop_rates(model).values()) == {0.0}
    assert all(p is q for p, q in zip(parameters, model.parameters()))
    assert_same_output(model(x), plain(x))
    ts.start_warmup(model)
    assert_same_output(model(x), plain(x))


def test_a_warmup_that_nobody_drives_is_told_once():
    model = small_network()
    with pytest.warns(UserWarning, match='timm-stochdepth run SCRIPT') as record:
        model.train()
        model.train()
    assert len(record) == 1


def test_a_warmup_that_is_driven_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model = small_network()
        ts.start_warmup(model)
        model.train()
        small_network(drop_warmup=0.0).train()
        small_network().eval()


class Killed(Exception):
    pass


def train_as_timm(folder, resume='', kill_at=None, sched='cosine', sched_on_updates=False):
    """The order of timm's train.py: optimizer, resume, EMA, scheduler, and its counters; rates seen at each update."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = small_network()
    with helped(ScriptRun()):
        task = ClassificationTask(model, verbose=False)
        optimizer = timm.optim.create_optimizer_v2(model, opt='sgd', lr=0.01)
        start_epoch = resume_task_checkpoint(task, resume, optimizer, log_info=False) if resume else 0
        task.setup_ema(decay=0.9)
        if resume:
            load_task_ema_checkpoint(task, resume)
        saver = CheckpointSaver(
            model=model, optimizer=optimizer, checkpoint_dir=str(folder), recovery_dir=str(folder), task=task
        )
        scheduler, num_epochs = timm.scheduler.create_scheduler_v2(
            optimizer,
            sched=sched,
            num_epochs=NUM_EPOCHS,
            step_on_epochs=not sched_on_updates,
            updates_per_epoch=UPDATES_PER_EPOCH,
        )
    if start_epoch > 0:
        if sched_on_updates:
            scheduler.step_update(start_epoch * UPDATES_PER_EPOCH)
        else:
            scheduler.step(start_epoch)
    rates, ema_rates = {}, {}
    for epoch in range(start_epoch, num_epochs):
        num_updates = epoch * UPDATES_PER_EPOCH
        task.train()
        for _ in range(UPDATES_PER_EPOCH):
            if num_updates == kill_at:
                raise Killed
            rates[num_updates] = max(ts.drop_rates(model).values())
            task(torch.randn(4, 3, 32, 32), torch.randint(10, (4,)))['loss'].backward()
            optimizer.step()
            optimizer.zero_grad()
            num_updates += 1
            task.update_ema(step=num_updates)
            scheduler.step_update(num_updates=num_updates, metric=0.0)
        ema_rates[epoch] = max(ts.drop_rates(task.get_trainable_module(ema=True)).values())
        saver.save_checkpoint(epoch, metric=float(epoch))
        scheduler.step(epoch + 1, metric=0.0)
    return rates, ema_rates


@pytest.mark.parametrize('sched_on_updates', [False, True])
def test_each_epoch_is_told_its_rate_before_it_starts(tmp_path, caplog, sched_on_updates):
    caplog.set_level('INFO', 'timm_stochdepth')
    with pytest.raises(Killed):
        train_as_timm(tmp_path, kill_at=0, sched_on_updates=sched_on_updates)
    assert caplog.messages == ['Epoch 0: drop rate 0.0000 at its start']
    caplog.clear()
    with pytest.raises(Killed):
        train_as_timm(tmp_path, kill_at=2 * UPDATES_PER_EPOCH, sched_on_updates=sched_on_updates)
    expected = [f'Epoch {epoch}: drop rate {rate:.4f} at its start' for epoch, rate in enumerate([0.0, 0.2, 0.4, 0.4])]
    assert caplog.messages == expected[:3]
    caplog.clear()
    train_as_timm(tmp_path, resume=str(tmp_path / 'last.pth.tar'), sched_on_updates=sched_on_updates)
    assert caplog.messages == expected[2:]


@pytest.mark.parametrize('sched_on_updates', [False, True])
def test_a_resumed_run_has_the_rates_of_an_unbroken_one(tmp_path, sched_on_updates):
    rates, ema_rates = train_as_timm(tmp_path / 'unbroken', sched_on_updates=sched_on_updates)
    num_updates = NUM_EPOCHS * UPDATES_PER_EPOCH
    assert list(rates.values()) == pytest.approx([0.4 * min(2 * u / num_updates, 1) for u in range(num_updates)])
    assert list(ema_rates.values()) == pytest.approx([0.2, 0.4, 0.4, 0.4])

    with pytest.raises(Killed):
        train_as_timm(tmp_path / 'killed', kill_at=5, sched_on_updates=sched_on_updates)
    resumed, resumed_ema = train_as_timm(
        tmp_path / 'killed', resume=str(tmp_path / 'killed' / 'last.pth.tar'), sched_on_updates=sched_on_updates
    )
    assert resumed == {u: r for u, r in rates.items() if u >= UPDATES_PER_EPOCH}
    assert resumed_ema == {e: r for e, r in ema_rates.items() if e >= 1}


def test_a_warmup_without_a_scheduler_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sched must not be 'none' with drop_warmup"):
        train_as_timm(tmp_path, sched='none')


def test_a_model_without_a_warmup_is_not_touched():
    model = small_network(drop_warmup=0.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    create_optimizer = timm.optim.create_optimizer_v2
    with helped(ScriptRun()):
        optimizer = timm.optim.create_optimizer_v2(model, opt='sgd', lr=0.01)
        scheduler, _ = timm.scheduler.create_scheduler_v2(optimizer, num_epochs=2, updates_per_epoch=2)
    scheduler.step(1)
    assert max(ts.drop_rates(model).values()) == 0.4
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert timm.optim.create_optimizer_v2 is create_optimizer
