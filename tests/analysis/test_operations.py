import pytest
import timm
import torch

import timm_stochdepth as ts
from timm_stochdepth.analysis.flops import block_drop_limit, branch_shares


def conv_operations(conv, out_size):
    return conv.weight.numel() * out_size**2


@pytest.mark.parametrize('name', ['resnet50_sd_block', 'resnet101_sd_sample'])
def test_shares_equal_a_count_by_hand(name):
    with torch.device('meta'):
        model = timm.create_model(name)
    sizes = {'layer1': 56, 'layer2': 28, 'layer3': 14, 'layer4': 7}
    branches, rest = {}, model.conv1.weight.numel() * 112**2 + model.fc.weight.numel()
    for layer, size in sizes.items():
        for i, block in enumerate(getattr(model, layer)):
            # the first convolution of a stage still sees the size of the stage before
            first_size = sizes[f'layer{int(layer[-1]) - 1}'] if i == 0 and layer != 'layer1' else size
            branches[f'{layer}.{i}'] = conv_operations(block.conv1, first_size) + sum(
                conv_operations(conv, size) for conv in (block.conv2, block.conv3)
            )
            if block.downsample is not None:
                rest += conv_operations(block.downsample[0], size)
    total = rest + sum(branches.values())
    shares = branch_shares(model)
    assert shares == pytest.approx({name: count / total for name, count in branches.items()})
    rates = ts.drop_rates(model)
    expected_left = (rest + sum((1 - rates[n]) * branches[n] for n in branches)) / total
    assert block_drop_limit(rates, shares) == pytest.approx(expected_left)
