"""The registered models of networks to which timm gives no drop paths: its own, with linear rates over their blocks."""

import pytest
import timm
import torch
from networks import assert_same_output, randomize
from residual_networks import NETWORKS

import timm_stochdepth as ts
from timm_stochdepth.settings import depth_shares
from timm_stochdepth.zoo.exceptions import can_scale_at_inference
from timm_stochdepth.zoo.without_drop_paths import RESIDUAL_MODULES

QUICK = ['hrnet', 'senet', 'shvit']
MODULES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.families) for name in NETWORKS]


def shapes(model):
    return [(key, value.shape) for key, value in model.state_dict().items()]


@pytest.mark.parametrize('method', ['sample', 'block'])
@pytest.mark.parametrize('module', MODULES)
@pytest.mark.filterwarnings('ignore:drop_rate')
def test_a_model_is_timms_network_at_rates_over_its_blocks(module, method):
    plain_name = NETWORKS[module][0]
    name = f'{plain_name}_sd_{method}'
    with torch.device('meta'):
        plain = timm.create_model(plain_name, num_classes=5)
        model = timm.create_model(name, num_classes=5, drop_path_rate=0.3)
        later = timm.create_model(name, num_classes=5, drop_path_rate=0.0)
        linear = timm.create_model(name, num_classes=5, drop_path_rate=0.3, drop_distribution='linear')
    assert shapes(model) == shapes(plain) and type(model) is type(plain)
    args = ts.stochastic_depth_args(model)
    assert (args['drop_path_rate'], args['drop_distribution']) == (0.3, RESIDUAL_MODULES[module])
    assert args['scale_by_keep'] and not args['skip_dropped']  # a norm in each of them looks at the batch
    rates = list(ts.drop_rates(model).values())
    assert rates == pytest.approx([0.3 * share for share in depth_shares(len(rates), RESIDUAL_MODULES[module])])
    assert list(ts.drop_rates(linear).values()) == pytest.approx([0.3 * s for s in depth_shares(len(rates), 'linear')])
    assert max(ts.drop_rates(later).values()) == 0
    ts.set_drop_rate(later, 0.3)
    assert ts.drop_rates(later) == ts.drop_rates(model)
    folded = ts.fold_stochastic_depth(model)
    assert shapes(folded) == shapes(plain) and folded.pretrained_cfg['architecture'] == plain_name
    assert [type(m) for m in folded.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.parametrize('module', MODULES)
def test_plain_weights_give_the_plain_logits(module, tmp_path):
    plain_name, size = NETWORKS[module]
    torch.manual_seed(0)
    plain = randomize(timm.create_model(plain_name, num_classes=5)).double().eval()
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    overlay = dict(file=str(tmp_path / 'plain.pth'), num_classes=5)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    kwargs = dict(num_classes=5, drop_path_rate=0.6, pretrained_cfg_overlay=overlay, pretrained=True)
    for scale_by_keep in (True, False):
        if not scale_by_keep and not can_scale_at_inference(plain_name, f'timm.models.{module}'):
            with pytest.raises(ValueError, match=f'scale_by_keep must be True for {plain_name}_sd_block'):
                timm.create_model(f'{plain_name}_sd_block', scale_by_keep=False, **kwargs)
            continue
        model = timm.create_model(f'{plain_name}_sd_block', scale_by_keep=scale_by_keep, **kwargs)
        assert max(ts.drop_rates(model).values()) == (0.6 if module != 'lcnetv2' or scale_by_keep else 0.0)
        with torch.no_grad():
            assert_same_output(model.double().eval()(x), plain(x))
