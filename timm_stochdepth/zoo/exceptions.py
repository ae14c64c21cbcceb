"""Networks of timm that cannot have every method or setting, by the modules of timm that they are from.

No network is built to know them; a test (`-m families`) compares these tables with all of timm's networks.
"""
from fnmatch import fnmatchcase
from typing import Dict, Tuple

from ..messages import shown
from ..settings import METHODS, Settings
from .names import split_stochastic_name, stochastic_name, timm_modules
from .without_drop_paths import UNFIT_MODULES

__all__ = [
    'ONLY_MASKED',
    'WITHOUT_BRANCHES',
    'WITHOUT_SCALES',
    'can_scale_at_inference',
    'methods_of',
    'refuse_settings',
    'why_not_registered',
    'why_only_masked',
    'why_without_method',
]

# patterns of names by module
WITHOUT_BRANCHES: Dict[str, str] = {
    **dict.fromkeys(UNFIT_MODULES, '*'),
    'efficientnet': 'mobilenetv1_* test_efficientnet*',
    'mobilenetv3': 'lcnet_*',
}

_NOT_ADDED = 'the result of self.drop_path is not added to anything'
# why some branches of networks cannot be left out, by patterns of names, by module
ONLY_MASKED: Dict[str, Dict[str, str]] = {
    'byoanet': {'haloregnetz_*': _NOT_ADDED},
    'byobnet': {
        'mobileone_*': 'the result of self.drop_path is added to no tensor of the batch',
        'regnetz_*': _NOT_ADDED,
    },
    'coat': {'coat_tiny coat_mini coat_small': 'nothing is computed for self.drop_path alone'},
    'edgenext': {'*': 'the branch of self.drop_path holds another residual branch'},
    'efficientvim': {'*': 'nothing is computed for self.drop_path alone'},
    'mobilevit': {'*': _NOT_ADDED},
    'mvitv2': {'*': 'nothing is computed for self.drop_path1 alone'},
    **dict.fromkeys(('rdnet', 'resnest', 'rexnet', 'vovnet'), {'*': _NOT_ADDED}),
    'vision_transformer': {'*_18x2_*': 'its forward calls its drop path as one of its children'},
    'vision_transformer_sam': {'*': 'the result of self.drop_path1 is not added to anything'},
}

# patterns by module of those of which a branch ends in nothing that can be scaled, beside all that are only masked
WITHOUT_SCALES: Dict[str, str] = {
    **dict.fromkeys((
        'convit', 'cpubone', 'csatv2', 'cspnext', 'efficientvit_mit', 'efficientvit_msra', 'ghostnet', 'lcnetv2',
        'tiny_vit', 'twins', 'xception', 'xcit'), '*'),
    'cspnet': 'cs3*_l cs3*_x cs3darknet_* cspdarknet53 darknet* sedarknet*',
    'efficientnet': 'efficientnetv2_[!r]* *efficientnetv2_rw_t tf_efficientnetv2_[!b]* tf_efficientnetv2_b[!0]',
    'hgnet': 'hgnet_* hgnetv2_b[456]',
    'levit': 'levit_[0-9]*',
    'lowformer': 'lowformer_b* lowformer_e3',
    'maxxvit': 'maxvit_tiny_pm_*',
    'metaformer': 'poolformerv2_*',
    'nfnet': 'eca_nfnet_* nf_* nfnet_* test_nfnet',
    'resnetv2': '*_bit',
    'senet': 'legacy_seresnet18 legacy_seresnet34',
}


def _fits(plain_name: str, patterns: str) -> bool:
    return any(fnmatchcase(plain_name, pattern) for pattern in patterns.split())


def why_only_masked(plain_name: str, module: str) -> str:
    """Why some branches of a network cannot be left out; empty if all can."""
    reasons = ONLY_MASKED.get(module.rpartition('.')[2], {})
    return next((reason for patterns, reason in reasons.items() if _fits(plain_name, patterns)), '')


def methods_of(plain_name: str, module: str) -> Tuple[str, ...]:
    """The methods that a network of a module of timm can have: none without branches, or both, or sample alone."""
    if _fits(plain_name, WITHOUT_BRANCHES.get(module.rpartition('.')[2], '')):
        return ()
    return ('sample',) if why_only_masked(plain_name, module) else ('sample', 'block')


def can_scale_at_inference(plain_name: str, module: str) -> bool:
    """Whether all branches of a network end in weights that a rate can go into, so that it can be folded."""
    without_scales = _fits(plain_name, WITHOUT_SCALES.get(module.rpartition('.')[2], ''))
    return not without_scales and not why_only_masked(plain_name, module)


def refuse_settings(plain_name: str, module: str, settings: Settings) -> None:
    """Refuse settings that a network cannot have, before it is built.

    Args:
        plain_name: Its name in timm.
        module: The module of timm that it is from.
        settings: Those asked for.

    Raises:
        ValueError: Branches are to be left out that can only be masked, or weights to be scaled that are not there.
    """
    name, reason = stochastic_name(plain_name, settings.stochastic_method), why_only_masked(plain_name, module)
    if reason and settings.skip_dropped:
        raise ValueError(f'skip_dropped must be False for {name}, whose branches cannot all be left out: {reason}.')
    if not settings.scale_by_keep and not can_scale_at_inference(plain_name, module):
        raise ValueError(
            f'scale_by_keep must be True for {name}, whose branches do not all end in weights that a rate could go into'
            f' to be scaled at inference, but got {shown(settings.scale_by_keep)}.')


def why_not_registered(name: str) -> str:
    """Why there is no model of a name that is one of timm's with a method; empty if that is not what it is."""
    plain_name, method = split_stochastic_name(name)
    module = timm_modules().get(plain_name)
    if module is None or method not in METHODS or method in methods_of(plain_name, module):
        return ''
    return why_without_method(plain_name, module)


def why_without_method(plain_name: str, module: str) -> str:
    """Why a network of a module of timm lacks one of the methods, or both."""
    reason = why_only_masked(plain_name, module)
    if reason:
        masks = stochastic_name(plain_name, 'sample')
        return f'branches of {plain_name} cannot all be left out, as {reason}; {masks} masks them'
    why = UNFIT_MODULES.get(module.rpartition('.')[2], 'its blocks have no shortcuts')
    return f'{plain_name} has no branches that could be dropped: {why}'
