"""Networks to which timm gives no drop paths, by the module of timm that they are from."""
from typing import Dict

__all__ = ['RESIDUAL_MODULES', 'UNFIT_MODULES', 'default_distribution', 'target_layer_of']

# whose residual blocks are in `cut.tables` all the same, and how a rate is spread over them by default
RESIDUAL_MODULES: Dict[str, str] = {
    'convmixer': 'linear',
    'dla': 'linear',
    'efficientvit_mit': 'linear',
    'efficientvit_msra': 'linear',
    'ghostnet': 'linear',
    'hrnet': 'linear',
    'inception_resnet_v2': 'linear',
    'lcnetv2': 'uniform',  # one block of it has a shortcut, and the linear rate of the first block is 0
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


def target_layer_of(module: str) -> str:
    """The target layer at which networks of a module of timm are given stochastic depth."""
    return 'ResidualBlock' if module.rpartition('.')[2] in RESIDUAL_MODULES else 'DropPath'


def default_distribution(module: str) -> str:
    """How a rate is spread over the blocks of networks of a module of timm, if nothing is asked for."""
    return RESIDUAL_MODULES.get(module.rpartition('.')[2], 'linear')
