"""timm's networks without drop paths, by the module that registers them: what in them can be dropped."""
from typing import Dict

__all__ = ['RESIDUAL_MODULES', 'UNFIT_MODULES']

# whose branches are found at the target layer 'ResidualBlock', and how a rate is spread over them by default
RESIDUAL_MODULES: Dict[str, str] = {
    'convmixer': 'linear',
    'dla': 'linear',
    'efficientvit_mit': 'linear',
    'efficientvit_msra': 'linear',
    'ghostnet': 'linear',
    'hrnet': 'linear',
    'inception_resnet_v2': 'linear',
    'lcnetv2': 'uniform',  # one block of it has a shortcut, and the first block's linear rate is 0
    'repghost': 'linear',
    'repvit': 'linear',
    'senet': 'linear',
    'shvit': 'linear',
    'xception': 'linear',
}

# why nothing of the others is dropped
UNFIT_MODULES: Dict[str, str] = {
    'densenet': 'its layers are concatenated to their input, and added to nothing',
    'dpn': 'a part of what its branches compute is added, and the rest is concatenated',
    'inception_v3': 'it has no shortcuts',
    'inception_v4': 'it has no shortcuts',
    'nasnet': 'its cells add operations to one another, and concatenate the sums',
    'pnasnet': 'its cells add operations to one another, and concatenate the sums',
    'selecsls': 'its layers are concatenated, and added to nothing',
    'vgg': 'it has no shortcuts',
}
