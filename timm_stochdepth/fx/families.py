"""What a trace of a block's forward cannot tell: tables of other people's names and classes."""
from typing import Dict, Optional, Tuple, Type

import timm.layers
import torchvision.models.resnet as tv_resnet
from timm.models.metaformer import Scale
from torch import nn

__all__ = ['BATCH_DIMENSIONS', 'BRANCH_ENDS', 'GATE_INPUT_LAYERS', 'SCALING_LAYERS']

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
SCALING_LAYERS: Tuple[Type[nn.Module], ...] = (timm.layers.LayerScale, timm.layers.LayerScale2d, Scale, nn.Identity)

# residual blocks without a drop path, and the child after which one would stand
BRANCH_ENDS: Dict[Type[nn.Module], str] = {
    tv_resnet.BasicBlock: 'bn2',
    tv_resnet.Bottleneck: 'bn3',
}

# attention layers that multiply their input with a gate, and the first layer of that gate, linear in the input
GATE_INPUT_LAYERS: Dict[Type[nn.Module], str] = {
    timm.layers.SEModule: 'fc1',
    timm.layers.EffectiveSEModule: 'fc',
    timm.layers.EcaModule: 'conv',
    timm.layers.CecaModule: 'conv',
}
