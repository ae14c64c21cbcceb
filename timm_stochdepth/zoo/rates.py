"""Default drop rates of the registered models, with the source of each, and their convention of scaling."""
from fnmatch import fnmatchcase
from typing import NamedTuple, Sequence, Tuple

from .names import split_stochastic_name, stochastic_name

__all__ = ['DEFAULT_RATES', 'DefaultRate', 'default_rate', 'scales_by_keep_by_default']


class DefaultRate(NamedTuple):
    """A drop rate, and where it is from."""
    rate: float
    source: str


_OTHERS = DefaultRate(0.1, 'no published recipe is known here')

_COMPOSER = 'https://github.com/mosaicml/composer/tree/main/composer/algorithms/stochastic_depth'
_CONVNEXT = 'https://github.com/facebookresearch/ConvNeXt TRAINING.md'
_SWIN = 'https://github.com/microsoft/Swin-Transformer configs'
_DEIT3 = 'https://github.com/facebookresearch/deit README_revenge.md, https://arxiv.org/abs/2204.07118'
_MAXVIT = 'https://github.com/google-research/maxvit maxvit/models/hp/vision_i1k.py'
_POOLFORMER = 'https://github.com/sail-sg/poolformer README.md, https://github.com/sail-sg/metaformer scripts'
_METAFORMER = 'https://github.com/sail-sg/metaformer scripts'
_VOLO = 'https://github.com/sail-sg/volo README.md'
_DAVIT = 'https://arxiv.org/abs/2204.03645'
_MVITV2 = 'https://github.com/facebookresearch/mvit configs'
_PVT = 'https://github.com/whai362/PVT classification/configs/pvt_v2'
_FOCALNET = 'https://github.com/microsoft/FocalNet configs'
_MAMBAOUT = 'https://github.com/yuweihao/MambaOut scripts'
_FASTVIT = 'https://github.com/apple/ml-fastvit README.md'
_INCEPTION_NEXT = 'https://github.com/sail-sg/inceptionnext README.md'
_COAT = 'https://github.com/mlpc-ucsd/CoaT README.md'
_TIMM = "timm's own default"

# the first row counts that has a name of timm, or a pattern of names, or the whole name of a model; rates are those of
# training from the start on ImageNet-1k, where there is more than one
DEFAULT_RATES: Sequence[Tuple[float, str, str]] = (
    (0.1, 'resnet50_sd_sample resnet101_sd_sample', _COMPOSER),
    (0.2, 'resnet50_sd_block', _COMPOSER),
    (0.4, 'resnet101_sd_block', _COMPOSER),
    (0.1, 'convnext_tiny', _CONVNEXT),
    (0.4, 'convnext_small', _CONVNEXT),
    (0.5, 'convnext_base convnext_large', _CONVNEXT),
    (0.2, 'convnext_xlarge', f'{_CONVNEXT}, on ImageNet-22K'),
    (0.2, 'convnextv2_tiny', 'https://github.com/facebookresearch/ConvNeXt-V2 TRAINING.md'),
    (0.1, 'convnextv2_atto convnextv2_base', 'https://github.com/facebookresearch/ConvNeXt-V2 TRAINING.md'),
    (0.2, 'swin_tiny_* swinv2_tiny_*', _SWIN),
    (0.3, 'swin_small_* swinv2_small_*', _SWIN),
    (0.2, 'swinv2_base_window12* swin_large_* swinv2_large_*', f'{_SWIN}, on ImageNet-22K'),
    (0.5, 'swin_base_* swinv2_base_*', _SWIN),
    (0.1, 'deit_*', 'https://github.com/facebookresearch/deit main.py, https://arxiv.org/abs/2012.12877'),
    (0.05, 'deit3_small_*', _DEIT3),
    (0.2, 'deit3_medium_* deit3_base_*', _DEIT3),
    (0.45, 'deit3_large_*', _DEIT3),
    (0.6, 'deit3_huge_*', _DEIT3),
    (0.2, 'efficientnet_* tf_efficientnet_*', 'https://arxiv.org/abs/1905.11946'),
    (0.2, 'efficientnetv2_* tf_efficientnetv2_* gc_efficientnetv2_*', 'https://arxiv.org/abs/2104.00298'),
    (0.2, 'maxvit_tiny_tf_*', _MAXVIT),
    (0.3, 'maxvit_small_tf_*', _MAXVIT),
    (0.4, 'maxvit_base_tf_*', _MAXVIT),
    (0.6, 'maxvit_large_tf_*', _MAXVIT),
    (0.1, 'poolformer*_s12 poolformer*_s24', _POOLFORMER),
    (0.2, 'poolformer*_s36', _POOLFORMER),
    (0.3, 'poolformer*_m36', _POOLFORMER),
    (0.4, 'poolformer*_m48', _POOLFORMER),
    (0.15, 'caformer_s18', _METAFORMER),
    (0.2, 'convformer_s18', _METAFORMER),
    (0.3, 'caformer_s36 convformer_s36', _METAFORMER),
    (0.4, 'caformer_m36 convformer_m36', _METAFORMER),
    (0.6, 'caformer_b36 convformer_b36', _METAFORMER),
    (0.1, 'volo_d1_*', _VOLO),
    (0.2, 'volo_d2_*', _VOLO),
    (0.5, 'volo_d3_*', _VOLO),
    (0.1, 'davit_tiny', _DAVIT),
    (0.2, 'davit_small', _DAVIT),
    (0.4, 'davit_base', _DAVIT),
    (0.1, 'mvitv2_tiny mvitv2_small', _MVITV2),
    (0.3, 'mvitv2_base', _MVITV2),
    (0.5, 'mvitv2_large', _MVITV2),
    (0.3, 'twins_svt_base', 'https://github.com/Meituan-AutoML/Twins README.md'),
    (0.1, 'pvt_v2_b0 pvt_v2_b1 pvt_v2_b2*', _PVT),
    (0.3, 'pvt_v2_b3 pvt_v2_b4 pvt_v2_b5', _PVT),
    (0.2, 'focalnet_tiny_*', _FOCALNET),
    (0.3, 'focalnet_small_*', _FOCALNET),
    (0.5, 'focalnet_base_* focalnet_large_* focalnet_xlarge_* focalnet_huge_*', _FOCALNET),
    (0.025, 'mambaout_femto mambaout_kobe', _MAMBAOUT),
    (0.2, 'mambaout_tiny', _MAMBAOUT),
    (0.4, 'mambaout_small', _MAMBAOUT),
    (0.6, 'mambaout_base', _MAMBAOUT),
    (0.1, 'fastvit_sa12 fastvit_sa24', _FASTVIT),
    (0.2, 'fastvit_sa36', _FASTVIT),
    (0.35, 'fastvit_ma36', _FASTVIT),
    (0.1, 'inception_next_tiny', _INCEPTION_NEXT),
    (0.3, 'inception_next_small', _INCEPTION_NEXT),
    (0.4, 'inception_next_base', _INCEPTION_NEXT),
    (0.2, 'coat_small', _COAT),
    (0.3, 'coat_lite_medium', _COAT),
    (0.05, 'xcit_small_12_p16_*', 'https://github.com/facebookresearch/xcit README.md'),
    (0.1, 'edgenext_small', 'https://github.com/mmaaz60/EdgeNeXt README.md'),
    (0.15, 'rdnet_tiny', 'https://github.com/naver-ai/rdnet train_configs/rdnet.yaml'),
    (0.02, 'efficientformerv2_s2 fasternet_t1', _TIMM),
    (0.05, 'fasternet_t2', _TIMM),
    (0.2, 'fasternet_m nextvit_base nextvit_large tiny_vit_21m_224', _TIMM),
    (0.1, 'cpubone_b2_bfrobust efficientformerv2_l fasternet_s nextvit_small swin_*', _TIMM),
    (0.1, 'tiny_vit_11m_* tiny_vit_21m_*', _TIMM),
    (0.3, 'fasternet_l', _TIMM),
    (0.5, 'nest_*', _TIMM),
)


def default_rate(plain_name: str, method: str) -> DefaultRate:
    """The drop rate of a model that is given none: a published recipe's, timm's own, or the one of all others."""
    names = plain_name, stochastic_name(plain_name, method)
    for rate, patterns, source in DEFAULT_RATES:
        if any(fnmatchcase(name, pattern) for name in names for pattern in patterns.split()):
            return DefaultRate(rate, source)
    return _OTHERS


def scales_by_keep_by_default(name: str) -> bool:
    """Whether a model divides by the keep probability in training, as timm's DropPath does, where nothing else is said.

    timm's ResNets have the paper's convention, which scales at inference: they are what the paper is about. Published
    rates of the others are for timm's, and many of them have no weights to take a rate up.
    """
    from timm.models import get_arch_name, model_entrypoint  # not for the rates alone, which a command lists

    plain_name, _ = split_stochastic_name(get_arch_name(name))
    return model_entrypoint(plain_name).__module__ != 'timm.models.resnet'
