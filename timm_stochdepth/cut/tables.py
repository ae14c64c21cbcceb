"""Tables of what the source of a block's forward cannot tell, to be extended with classes of your own."""
import sys
from typing import Dict, List, Optional, Type

import timm.layers
import torchvision.models.resnet as tv_resnet
import torchvision.ops
from timm.models import senet
from timm.models.metaformer import Scale
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['BATCH_DIMENSIONS', 'BRANCH_ENDS', 'GATE_INPUT_LAYERS', 'NORM_LAYERS', 'SCALING_LAYERS',
           'TRUSTED_BLOCKS']

# arguments of a block's forward, beside the first: the number of dimensions from which on the first one is the batch
# (None: all samples share it)
BATCH_DIMENSIONS: Dict[str, Optional[int]] = {
    'attn_mask': 4,
    'feat_size': None,
    'output_attentions': None,  # flags of transformers' networks, which hand them on
    'output_hidden_states': None,
    'q_global': 1,
    'resolution': None,  # of the images, in transformers' BEiT
    'rope': 4,  # after patch dropout, which timm calls with an axis for the heads
    'rope_cos': 3,
    'rope_sin': 3,
    'shared_rel_pos': None,
    'shared_rel_pos_bias': None,
    'size': None,
    'x_cls': 1,
    'x_prev': 1,
}

# layers that multiply their input with parameters: they may stand between a drop path and the addition
SCALING_LAYERS: List[Type[nn.Module]] = [timm.layers.LayerScale, timm.layers.LayerScale2d, Scale, nn.Identity]

# timm's residual blocks without a drop path, by module and class, and the child whose result one would be called on
_OF_TIMM = {
    'convmixer.Residual': 'fn',
    'dla.DlaBasic': 'bn2',
    'dla.DlaBottle2neck': 'bn3',
    'dla.DlaBottleneck': 'bn3',
    'efficientvit_mit.ResidualBlock': 'main',
    'efficientvit_msra.ResidualDrop': 'm',
    'ghostnet.GhostBottleneck': 'ghost2',
    'ghostnet.GhostBottleneckV3': 'ghost2',
    'inception_resnet_v2.Block17': 'conv2d',
    'inception_resnet_v2.Block35': 'conv2d',
    'inception_resnet_v2.Block8': 'conv2d',
    'lcnetv2.RepDepthwiseSeparable': 'pw_conv',
    'repghost.RepGhostBottleneck': 'ghost2',
    'repvit.RepViTBlock': 'channel_mixer',
    'repvit.RepVitDownsample': 'ffn',
    'senet.SEBottleneck': 'se_module',
    'senet.SEResNetBlock': 'se_module',
    'senet.SEResNetBottleneck': 'se_module',
    'senet.SEResNeXtBottleneck': 'se_module',
    'shvit.Residual': 'm',
    'xception.Block': 'rep',
}


def _in_timm(ends: Dict[str, str]) -> Dict[Type[nn.Module], str]:
    """The classes of these names that the timm which is installed has."""
    found = {}
    for name, end in ends.items():
        module, _, class_name = name.partition('.')
        cls = getattr(sys.modules.get(f'timm.models.{module}'), class_name, None)
        if cls is not None:
            found[cls] = end
    return found


# residual blocks without a drop path, and the child whose result one would be called on
BRANCH_ENDS: Dict[Type[nn.Module], str] = {
    **_in_timm(_OF_TIMM),
    tv_resnet.BasicBlock: 'bn2',
    tv_resnet.Bottleneck: 'bn3',
}

# norms that multiply their result with a weight, and add a bias: what folding scales at the end of a branch
NORM_LAYERS: List[Type[nn.Module]] = [
    _BatchNorm, nn.GroupNorm, nn.LayerNorm, timm.layers.LayerNorm2d, timm.layers.RmsNorm, timm.layers.RmsNorm2d,
    timm.layers.SimpleNorm, timm.layers.SimpleNorm2d, timm.layers.FrozenBatchNormAct2d,
    torchvision.ops.FrozenBatchNorm2d]

# attention layers that multiply their input with a gate, and the first layer of that gate, linear in the input
GATE_INPUT_LAYERS: Dict[Type[nn.Module], str] = {
    timm.layers.SEModule: 'fc1',
    timm.layers.EffectiveSEModule: 'fc',
    timm.layers.EcaModule: 'conv',
    timm.layers.CecaModule: 'conv',
    senet.SEModule: 'fc1',
}

# residual blocks of your own whose branches are left out without a comparison with the plain forward at the first time,
# and masked by the cut forward, too
TRUSTED_BLOCKS: List[Type[nn.Module]] = []
