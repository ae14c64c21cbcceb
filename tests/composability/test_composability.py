"""What a model with stochastic depth is put through, beyond a plain training loop."""

import copy
import io
import pickle

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision.models.feature_extraction as tv_features
from networks import assert_same_output, images, of_seed, small_resnet
from timm.layers import create_feature_extractor
from timm.utils import ModelEmaV3
from torch import fx

import timm_stochdepth as ts

NAMES = ['resnet50_sd_sample', 'resnet50_sd_block']


def create(name, **kwargs):
    return small_resnet(name, num_classes=10, **{'drop_path_rate': 0.5, **kwargs}).train()


@pytest.fixture(params=NAMES)
def model(request):
    return create(request.param)


def outputs_of_one_seed(*models, x):
    return [of_seed(lambda m=m: m(x)) for m in models]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name, settings', [(NAMES[0], {}), (NAMES[0], dict(skip_dropped=True)), (NAMES[1], {})])
def test_autocast(name, settings, dtype, training):
    model = create(name, **settings).train(training)
    with torch.autocast('cpu', dtype):
        y = model(images(4))
    assert y.dtype == dtype and torch.isfinite(y).all()
    if training:
        y.float().square().mean().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_autocast_is_close_to_float32(model):
    model.eval()
    x = images(2)
    with torch.no_grad():
        y = model(x)
        with torch.autocast('cpu', torch.bfloat16):
            y_bf16 = model(x)
    # bfloat16 keeps 8 bits: a relative error of 2**-8 a layer, that adds up as a random walk over about 40 layers
    assert (y_bf16 - y).abs().max() <= 40**0.5 * 2**-8 * y.abs().max()


@pytest.mark.parametrize('training', [True, False])
def test_channels_last_gives_the_same(model, training):
    model.train(training)
    model.double()  # where the order of additions is no matter
    model_channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = images(4).double()
    layouts = []
    for m in model_channels_last.modules():
        if isinstance(m, ts.StochasticBlock):
            m.register_forward_hook(
                lambda m, args, y: layouts.append(y.is_contiguous(memory_format=torch.channels_last))
            )
    torch.manual_seed(3)
    y = model(x)
    torch.manual_seed(3)
    y_channels_last = model_channels_last(x.to(memory_format=torch.channels_last))
    assert_same_output(y_channels_last, y)
    assert all(layouts)


@pytest.mark.parametrize('training', [True, False])
def test_deepcopy_pickle_and_save(model, training):
    model.train(training)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    y, *others = outputs_of_one_seed(model, *copies, x=images(2))
    assert all(torch.equal(y, other) for other in others)
    assert all(ts.drop_rates(m) == ts.drop_rates(model) for m in copies)


def test_ema_evaluates_as_the_model(model):
    ema = ModelEmaV3(model, decay=0.5)
    model(images(2)).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    for _ in range(60):
        ema.update(model)
    x = images(2)
    assert_same_output(ema.module.eval()(x), model.eval()(x))


@pytest.mark.parametrize('training', [True, False])
def test_torchscript(model, training):
    scripted = torch.jit.script(model).train(training)
    x = images(2)
    for seed in range(4):
        torch.manual_seed(seed)
        y = model.train(training)(x)
        torch.manual_seed(seed)
        assert_same_output(scripted(x), y)


@pytest.mark.parametrize('scale_by_keep', [True, False])
def test_torchscript_drops_as_it_trains(scale_by_keep):
    for name in NAMES:
        model = create(name, drop_path_rate=0.9, scale_by_keep=scale_by_keep)
        y, y_scripted = outputs_of_one_seed(model, torch.jit.script(model), x=images(2))
        assert_same_output(y_scripted, y)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    'trace',
    [
        fx.symbolic_trace,
        lambda m: create_feature_extractor(m, {'fc': 'y'}),
        lambda m: tv_features.create_feature_extractor(m, {'fc': 'y'}),
    ],
    ids=['torch', 'timm', 'torchvision'],
)
def test_no_decision_is_frozen_into_a_traced_graph(model, training, trace):
    model.train(training)
    traced = trace(model).train(training)
    x = images(2)
    for seed in range(3):
        torch.manual_seed(seed)
        y = model(x)
        torch.manual_seed(seed)
        y_traced = traced(x)
        assert_same_output(y_traced['y'] if isinstance(y_traced, dict) else y_traced, y)
    if training:
        assert len({model(x).sum().item() for _ in range(8)}) > 1


def test_torch_export(model):
    model.eval()
    x = images(2)
    exported = torch.export.export(model, (x,)).module()
    assert_same_output(exported(x), model(x))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.filterwarnings('ignore')
def test_onnx(name, tmp_path):
    model = create(name).eval()
    x = images(2)
    torch.onnx.export(model, (x,), str(tmp_path / 'model.onnx'), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / 'model.onnx'))
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, model(x).detach().numpy(), atol=1e-4 * np.abs(y).max())


def test_half_precision_weights(model):
    model.eval().to(torch.bfloat16)
    assert model(images(2).to(torch.bfloat16)).dtype == torch.bfloat16
    assert ts.fold_stochastic_depth(model)(images(2).to(torch.bfloat16)).dtype == torch.bfloat16


def test_printing_shows_method_and_rate(model):
    text = repr(model)
    method = model.layer1[0].drop_path.settings.stochastic_method
    assert 'drop_prob=0.500' in text and f'stochastic_method={method!r}' in text
