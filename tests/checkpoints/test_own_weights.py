"""Weights without metadata: a network's own while it trains are taken without a word, others are told of once."""

import copy
import pickle
import warnings

import pytest
import timm
import torch
from networks import LAYERS, Holder
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.optim.swa_utils import AveragedModel

import timm_stochdepth as ts
from timm_stochdepth.layers.metadata import _warn_of_no_metadata

SIZES = dict(num_classes=4, **LAYERS)


def create(method='block', **kwargs):
    return timm.create_model(f'resnet50_sd_{method}', **{**SIZES, 'drop_path_rate': 0.3, **kwargs})


def train(model, network=None):
    optimizer = torch.optim.SGD((network or model).parameters(), lr=0.01)
    for _ in range(2):
        model(torch.randn(4, 3, 32, 32)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()  # no gradient is left to tell by
    return model


def bare(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def told(load, *args):
    """What is said of the weights, with no filter that would say it once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        load(*args)
    return [str(w.message) for w in caught if 'loaded as they are' in str(w.message)]


@pytest.mark.parametrize('settings', [{}, dict(skip_dropped=True)])
def test_a_network_that_trains_is_told_nothing_of_its_own_weights(settings):
    model = create('sample', **settings)
    averaged, copied = AveragedModel(model), copy.deepcopy(model)
    train(model)
    for network in (model, averaged, copied):  # the copies have not trained themselves
        assert told(network.load_state_dict, bare(network)) == []


@pytest.mark.parametrize('method', ['sample', 'block'])
def test_a_compiled_network_that_trains_is_told_nothing(method):
    model = create(method)
    compiled = torch.compile(model, backend='aot_eager', fullgraph=method == 'sample')
    train(compiled)
    assert told(model.load_state_dict, bare(model)) == []


def test_blocks_that_only_mask_know_that_they_train():
    model = timm.create_model('test_nfnet', num_classes=4, drop_path_rate=0.3)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', None, scale_by_keep=False)
    assert len(told(model.load_state_dict, bare(model))) == 1
    train(model)
    _warn_of_no_metadata.cache_clear()
    assert told(model.load_state_dict, bare(model)) == []


def test_torchs_distributed_checkpoints_hand_own_weights_on():
    model = train(create())
    assert told(set_model_state_dict, model, get_model_state_dict(model)) == []


def test_networks_that_have_not_trained_are_told_once():
    another, weights = train(create()), bare(create())
    model = create()
    model(torch.randn(2, 3, 32, 32))  # a look at its output
    [message] = told(model.load_state_dict, weights)
    assert 'right for a run that goes on' in message and 'of a plain network' in message
    assert told(model.load_state_dict, weights) == told(create().load_state_dict, weights) == []
    assert told(another.load_state_dict, weights) == []


def test_a_network_with_gradients_trains_before_its_first_step():
    model = create()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert told(model.load_state_dict, bare(model)) == []


def test_a_network_of_another_process_has_not_trained_here():
    model = pickle.loads(pickle.dumps(train(create())))
    assert len(told(model.load_state_dict, bare(model))) == 1


@pytest.mark.parametrize('other', [dict(drop_path_rate=0.2), dict(scale_by_keep=True), None])
def test_what_metadata_says_against_it_is_always_told(other):
    model = train(create())
    source = timm.create_model('resnet50', **SIZES) if other is None else create(**other)
    for network in (model, create()):
        messages = told(network.load_state_dict, source.state_dict())
        assert messages and all(('of a plain network' in m) == (other is None) for m in messages)


class LosesMetadata(Holder):
    """As transformers' TimmWrapper and other trainers' modules do."""

    def state_dict(self, *args, **kwargs):
        return dict(self.net.state_dict(*args, **kwargs))

    def load_state_dict(self, state_dict, *args, **kwargs):
        return self.net.load_state_dict(state_dict, *args, **kwargs)


@pytest.mark.parametrize('scale', [ts.fold_stochastic_depth, ts.start_warmup])
def test_what_scales_the_weights_itself_says_nothing(scale):
    model = LosesMetadata(create(drop_warmup=0.5)).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        results = []
        assert told(lambda: results.append(scale(model))) == []
        torch.testing.assert_close((results[0] or model)(x), before)
