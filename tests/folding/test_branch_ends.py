"""What a factor on a branch goes into: what the end of the branch is linear in, whatever class that is of."""

import pytest
import timm
import torch
from networks import assert_same_output
from own_ends import Block, Own, applied
from timm.models.hgnet import LearnableAffineBlock
from torch import nn

import timm_stochdepth as ts


class Affine(Own):
    def forward(self, x):
        return torch.addcmul(self.bias, self.scale, x)


class ScaledBias(Own):
    def forward(self, x):
        return self.scale * x + self.bias * self.scale


class AfterLayer(Own):
    def forward(self, x):
        x = self.fc(x) * self.scale
        x += self.bias
        return x


class BiasAlone(Own):
    names = ('bias',)

    def forward(self, x):
        return self.fc(x) + self.bias.view(1, -1)


class Quotient(Own):
    names = ('scale', 'bias', 'width')

    def forward(self, x):
        return (x * self.scale - self.bias) / self.width


class Linear(Own):
    names = ('scale', 'bias')

    def forward(self, x):
        return nn.functional.linear(x, self.scale.unsqueeze(1).expand(4, 4), bias=self.bias)


class FrozenNorm(Own):
    """As in detection networks: all of it is buffers, and its forward is written out."""

    names = ('weight', 'bias', 'running_mean', 'running_var')

    def add_tensor(self, name, value):
        self.register_buffer(name, value)

    def forward(self, x):
        scale = self.weight.reshape(1, -1) * (self.running_var.reshape(1, -1) + 1e-5).rsqrt()
        bias = self.bias.reshape(1, -1) - self.running_mean.reshape(1, -1) * scale
        return x * scale + bias


class CastingNorm(nn.LayerNorm):
    def __init__(self):
        super().__init__(4)

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class CastingGroupNorm(nn.GroupNorm):
    def __init__(self):
        super().__init__(2, 4)

    def forward(self, x):
        return super().forward(x.double().float()).type(x.dtype)


SCALED = {
    CastingNorm: {'weight', 'bias'},
    CastingGroupNorm: {'weight', 'bias'},
    Affine: {'scale', 'bias'},
    ScaledBias: {'scale'},
    AfterLayer: {'scale', 'bias'},
    BiasAlone: {'fc.weight', 'fc.bias', 'bias'},
    Quotient: {'scale', 'bias'},
    Linear: {'scale', 'bias'},
    FrozenNorm: {'weight', 'bias'},
}


@pytest.mark.filterwarnings('ignore:The network has been trained')
@pytest.mark.parametrize('end', [*SCALED, LearnableAffineBlock], ids=lambda end: end.__name__)
@torch.no_grad()
def test_a_factor_goes_into_what_the_end_is_linear_in(end):
    model = applied(end())
    x = torch.randn(3, 4)
    folded = ts.fold_stochastic_depth(model)
    assert_same_output(folded(x), model(x))
    before, after = model.state_dict(), folded.state_dict()
    scaled = {key.removeprefix('0.end.') for key in before if not torch.equal(before[key], after[key])}
    assert scaled == SCALED.get(end, {'scale', 'bias'})


class Shifted(Own):
    def forward(self, x):
        return x * self.scale + 1


class OneOfBoth(Own):
    def forward(self, x):
        return torch.relu(x * self.scale) + self.bias


class InBoth(Own):
    names = ('bias',)

    def forward(self, x):
        return self.fc(x * self.bias) + self.bias


class WrittenTo(Own):
    def forward(self, x):
        y = x * self.scale
        y.add_(self.bias)
        return y


class WrittenToAView(Own):
    def forward(self, x):
        y = x * self.scale
        y[:, 0].add_(1)
        return y


class WrittenToItems(Own):
    def forward(self, x):
        y = x * self.scale
        y[:, 0] = 1
        return y


class Ephemeral(Own):
    names = ('scale',)

    def add_tensor(self, name, value):
        self.register_buffer(name, value, persistent=False)

    def forward(self, x):
        return x * self.scale


class ShiftedNorm(nn.LayerNorm):
    def __init__(self):
        super().__init__(4)

    def forward(self, x):
        return super().forward(x) + 1


class ZeroCenteredNorm(ShiftedNorm):
    def forward(self, x):
        return nn.functional.layer_norm(x, self.normalized_shape, 1 + self.weight, self.bias, self.eps)


class ExponentialScale(timm.layers.LayerScale):
    def __init__(self):
        super().__init__(4)

    def forward(self, x):
        return x * self.gamma.exp()


class ResidualSequence(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 4))

    def forward(self, x):
        return x + super().forward(x)


class IdentityByName(nn.Sequential):
    class Sigmoid(nn.Identity):
        def forward(self, x):
            return x.sigmoid()

    def __init__(self):
        super().__init__(nn.Linear(4, 4), self.Sigmoid())


OF_KNOWN_CLASSES = [ShiftedNorm, ZeroCenteredNorm, ExponentialScale, ResidualSequence, IdentityByName]


@pytest.mark.filterwarnings('ignore:The network has been trained')
@pytest.mark.parametrize(
    'end',
    [*OF_KNOWN_CLASSES, Shifted, OneOfBoth, InBoth, WrittenTo, WrittenToAView, WrittenToItems, Ephemeral],
    ids=lambda end: end.__name__,
)
def test_where_no_tensors_carry_the_factor_the_end_is_refused(end):
    with pytest.raises(ValueError, match=r'0\.end.* to be (folded|scaled), but is '):
        ts.fold_stochastic_depth(applied(end()))


class WritesToView(Block):
    def forward(self, x):
        y = self.end(torch.relu(self.fc(x)))
        y[:, 0].add_(1)
        return x + self.drop_path(y)


class WritesToItems(Block):
    def forward(self, x):
        y = self.end(torch.relu(self.fc(x)))
        y[:, 0] = 1
        return x + self.drop_path(y)


@pytest.mark.filterwarnings('ignore:The network has been trained')
@pytest.mark.parametrize('block', [WritesToView, WritesToItems])
def test_an_end_that_the_block_itself_writes_to_is_refused(block):
    with pytest.raises(ValueError, match='^0 must .* to be folded, but is a WritesTo'):
        ts.fold_stochastic_depth(applied(nn.Linear(4, 4), block))


def test_a_forward_that_cannot_be_traced_is_named_as_the_reason():
    class Decides(Block):
        def forward(self, x):
            y = self.fc(x)
            if x.shape[0] > 1:
                y = self.end(y)
            return x + self.drop_path(y)

    with pytest.raises(ValueError, match='but is a Decides, and its forward cannot be traced: .* control flow'):
        ts.fold_stochastic_depth(applied(nn.Linear(4, 4), Decides))


@pytest.mark.parametrize('name', ['swin_tiny_patch4_window7_224', 'swinv2_tiny_window8_256'])
def test_what_a_branch_writes_to_on_its_way_is_no_hindrance(name):
    """Networks for images of any size fill in the mask of their windows in each pass."""
    kwargs = dict(img_size=64, embed_dim=24, depths=(2, 2), num_heads=(1, 2), num_classes=5, strict_img_size=False)
    model = timm.create_model(name, **kwargs).eval()
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.4, 'uniform')
    plain = timm.create_model(name, **kwargs).eval()
    plain.load_state_dict(ts.fold_stochastic_depth(model).state_dict())
    x = torch.randn(2, 3, 96, 64)
    assert_same_output(plain(x), model(x))
