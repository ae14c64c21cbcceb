"""While a CUDA graph is recorded: what the host decides is refused. tests/residual/test_gpu.py records one."""

import pytest
import timm
import torch
from networks import images

import timm_stochdepth as ts
from timm_stochdepth.draws.fixed import FixedDraws
from timm_stochdepth.inspection import drop_paths


@pytest.fixture
def recorded(monkeypatch):
    """What PyTorch says on a GPU meanwhile, and a generator that does not say its state."""

    def no_generator(draws, device):
        raise RuntimeError('Cannot call CUDAGeneratorImpl::current_seed during CUDA graph capture.')

    def record():
        monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
        monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
        monkeypatch.setattr(FixedDraws, 'generator', no_generator)

    return record


def train(method, name='test_vit', **settings):
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=3, drop_path_rate=0.5)
    ts.apply_stochastic_depth(model, method, 'DropPath', 0.5, 'uniform', **settings)

    def step():
        model(images(6, 160).to('meta')).sum().backward()

    for _ in range(3):
        step()
    return model.train(), step


@pytest.mark.parametrize('method, settings, message', [
    ('block', {}, "stochastic_method='block'"),
    ('sample', dict(skip_dropped=True), 'skip_dropped=True'),
])  # fmt: skip
def test_decisions_are_refused(method, settings, message, recorded):
    model, step = train(method, **settings)
    recorded()
    with pytest.raises(
        RuntimeError, match=f"{message} decides on the CPU .* or with skip_dropped=True and draw='fixed'"
    ):
        step()
    with ts.no_drop(model):
        step()
    ts.set_drop_rate(model, 0.0)
    step()


def test_a_block_that_is_not_cut_refuses_them_too(recorded):
    drop_path = next(d for _, d in drop_paths(train('block')[0]))
    recorded()
    with pytest.raises(RuntimeError, match="stochastic_method='block' decides on the CPU"):
        drop_path(torch.ones(2, 3))


@pytest.mark.parametrize('settings', [{}, dict(draw='fixed'), dict(skip_dropped=True, draw='fixed')])
def test_what_is_drawn_on_the_device_is_recorded(settings, recorded):
    _, step = train('sample', **settings)
    recorded()
    for _ in range(2):
        step()
