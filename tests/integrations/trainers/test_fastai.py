"""fastai's Learner, against plain loops."""

import loops
import pytest
import timm
import torch
from torch.nn.functional import cross_entropy

import timm_stochdepth
from timm_stochdepth import apply_stochastic_depth, drop_rates, set_training_progress, start_warmup

pytest.importorskip('fastai')
from fastai.callback.core import Callback  # noqa: E402
from fastai.callback.schedule import LRFinder  # noqa: E402
from fastai.callback.tracker import SaveModelCallback  # noqa: E402
from fastai.data.core import DataLoaders, Datasets  # noqa: E402
from fastai.learner import Learner, load_learner  # noqa: E402
from fastai.optimizer import SGD  # noqa: E402
from fastai.torch_core import TensorImage  # noqa: E402
from fastai.vision.learner import create_timm_model  # noqa: E402

pytestmark = loops.TRAINERS


class WarmUp(Callback):
    """As in docs/trainers.md."""

    run_valid = False

    def before_train(self):
        set_training_progress(self.model, self.pct_train)

    def after_batch(self):
        set_training_progress(self.model, min(1.0, self.pct_train))


def create_learner(model, path, cbs=(WarmUp,)):
    loaders = DataLoaders(loops.batches(), loops.batches(), device='cpu')
    callbacks = [callback() for callback in cbs]
    learner = Learner(loaders, model, cross_entropy, opt_func=SGD, lr=loops.LR, wd=0.0, cbs=callbacks, path=path)
    learner.logger = lambda row: None
    return learner


def create_network(method):
    model = loops.network(method)
    start_warmup(model)
    return model


@pytest.mark.parametrize('method', ['sample', 'block'])
def test_training_is_that_of_a_plain_loop(method, tmp_path):
    learner = create_learner(create_network(method), tmp_path)
    rates = loops.watch(learner.model)
    learner.fit(loops.NUM_EPOCHS)
    assert rates == pytest.approx(loops.RATES)
    assert max(drop_rates(learner.model).values()) == loops.RATE
    loops.assert_same_state(learner.model, loops.trained(method))


def test_images_of_its_own_tensor_class():
    model = timm.create_model('test_vit', num_classes=4, drop_path_rate=0.5, img_size=32, patch_size=8)
    plain = timm.create_model('test_vit', num_classes=4, drop_path_rate=0.5, img_size=32, patch_size=8)
    plain.load_state_dict(model.state_dict())
    apply_stochastic_depth(model, 'sample', 'DropPath', None, scale_by_keep=True, skip_dropped=True)
    images = loops.samples().tensors[0]
    losses = []
    for net, x in ((plain, images), (model, TensorImage(images))):
        torch.manual_seed(0)
        loss = net.train()(x).square().sum()
        loss.backward()
        losses.append(torch.Tensor(loss.detach()))
    torch.testing.assert_close(losses[1].as_subclass(torch.Tensor), losses[0])
    for p, q in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(p.grad.as_subclass(torch.Tensor), q.grad, atol=1e-4, rtol=1e-4)


def test_lr_find_leaves_the_weights(tmp_path):
    learner = create_learner(create_network('block'), tmp_path)
    before = loops.logits(learner.model)
    learner.fit(2, cbs=LRFinder(num_it=6))  # what learner.lr_find() runs, and then plots
    set_training_progress(learner.model, 0.0)  # docs/trainers.md: the progress is not the finder's to restore
    torch.testing.assert_close(loops.logits(learner.model), before)


def test_weights_of_the_warmup_are_for_the_rate_of_their_moment(tmp_path):
    learner = create_learner(create_network('block'), tmp_path)
    outputs = []

    class Keep(Callback):
        def after_epoch(self):
            outputs.append(loops.logits(self.model))

    learner.fit(4, cbs=[SaveModelCallback(every_epoch=True), Keep()])
    learner.load('model_0')
    assert max(drop_rates(learner.model).values()) == loops.RATE  # it does not come with them
    set_training_progress(learner.model, 0.25)
    torch.testing.assert_close(loops.logits(learner.model), outputs[0])


def image(i):
    return loops.samples().tensors[0][i]


def target(i):
    return loops.samples().tensors[1][i]


def test_export(tmp_path):
    loaders = Datasets(range(8), [[image], [target]]).dataloaders(bs=4, device='cpu')
    learner = Learner(loaders, create_network('block'), cross_entropy, path=tmp_path)
    set_training_progress(learner.model, 0.25)
    y = loops.logits(learner.model)
    learner.export('learner.pkl')
    loaded = load_learner(tmp_path / 'learner.pkl')
    torch.testing.assert_close(loops.logits(loaded.model.eval()), y)


def test_a_body_without_head_drops_and_folds():
    torch.manual_seed(0)
    model, _ = create_timm_model('resnet50_sd_block', 4, pretrained=False, drop_path_rate=0.5)
    assert max(drop_rates(model).values()) == 0.5
    model.eval()
    plain = timm_stochdepth.fold_stochastic_depth(model)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(plain(images), model(images))
