"""A small network of timm for each class of its blocks that holds a drop path, by timm 1.0.31, and an image size."""

import timm
import torch
from torch import nn

import timm_stochdepth as ts

VIT = dict(img_size=32, depth=3, embed_dim=48, num_heads=3)

FAMILIES = {
    '_efficientnet_blocks.CondConvResidual': ('efficientnet_cc_b0_4e', {}, 32),
    '_efficientnet_blocks.ConvBnAct': ('tf_efficientnetv2_b1', {}, 32),
    '_efficientnet_blocks.DepthwiseSeparableConv': ('mnasnet_small', {}, 224),
    '_efficientnet_blocks.EdgeResidual': ('mobilenet_edgetpu_100', {}, 32),
    '_efficientnet_blocks.InvertedResidual': ('mobilenetv3_small_050', {}, 32),
    '_efficientnet_blocks.MobileAttention': ('mobilenetv4_hybrid_medium_075', {}, 32),
    '_efficientnet_blocks.UniversalInvertedResidual': ('mobilenetv4_conv_small_035', {}, 32),
    'beit.Block': ('beit_base_patch16_224', VIT, 32),
    'byobnet.BasicBlock': ('test_byobnet', {}, 32),
    'byobnet.BottleneckBlock': ('test_byobnet', {}, 32),
    'byobnet.DarkBlock': ('test_byobnet', {}, 32),
    'byobnet.EdgeBlock': ('test_byobnet', {}, 160),
    'byobnet.MobileOneBlock': ('mobileone_s1', {}, 32),
    'byobnet.RepVggBlock': ('repvgg_a0', {}, 32),
    'byobnet.SelfAttnBlock': ('botnet26t_256', dict(img_size=32), 32),
    'cait.LayerScaleBlock': ('cait_xxs24_224', VIT, 32),
    'cait.LayerScaleBlockClassAttn': ('cait_xxs24_224', {}, 224),
    'coat.ParallelBlock': ('coat_tiny', dict(img_size=32), 32),
    'coat.SerialBlock': ('coat_tiny', dict(img_size=32), 32),
    'container.Sequential': ('vit_small_patch16_18x2_224', VIT, 32),
    'convit.Block': ('convit_tiny', VIT, 32),
    'convnext.ConvNeXtBlock': ('test_convnext', {}, 32),
    'cpubone.ResidualBlock': ('cpubone_nano', {}, 32),
    'crossvit.CrossAttentionBlock': ('crossvit_tiny_240', {}, 32),
    'csatv2.Block': ('csatv2', {}, 64),
    'csatv2.TransformerBlock': ('csatv2', {}, 512),
    'cspnet.BottleneckBlock': ('cspresnext50', {}, 32),
    'cspnet.DarkBlock': ('cs3darknet_focus_s', {}, 32),
    'cspnet.EdgeBlock': ('cs3edgenet_x', {}, 32),
    'cspnext.CspNextBlock': ('cspnext_tiny', {}, 32),
    'davit.ChannelBlock': ('davit_tiny', {}, 32),
    'davit.SpatialBlock': ('davit_tiny', {}, 32),
    'deepseek_vit.DeepseekVitBlock': ('deepseek_vit_412m', dict(depth=3, embed_dim=48, num_heads=3), 84),
    'edgenext.ConvBlock': ('edgenext_xx_small', {}, 32),
    'edgenext.SplitTransposeBlock': ('edgenext_xx_small', {}, 32),
    'efficientformer.MetaBlock1d': ('efficientformer_l1', {}, 224),
    'efficientformer.MetaBlock2d': ('efficientformer_l1', {}, 224),
    'efficientformer_v2.EfficientFormerV2Block': ('efficientformerv2_s0', dict(img_size=32), 32),
    'efficientvim.EfficientViMBlock': ('efficientvim_m1', {}, 32),
    'eva.EvaBlock': ('vit_tiny_patch16_dinov3_qkvb', VIT, 32),
    'eva.EvaBlockPostNorm': (
        'eva02_enormous_patch14_clip_224',
        dict(img_size=28, depth=3, embed_dim=48, num_heads=3),
        28,
    ),
    'fasternet.MLPBlock': ('fasternet_t0', {}, 32),
    'fastvit.AttentionBlock': ('fastvit_mci0', {}, 32),
    'fastvit.RepMixerBlock': ('fastvit_t8', {}, 32),
    'focalnet.FocalNetBlock': ('focalnet_tiny_srf', {}, 32),
    'gcvit.GlobalContextVitBlock': ('gcvit_xxtiny', dict(img_size=32), 32),
    'gemma4_vit.Gemma4Block': (
        'gemma4_vit_167m',
        dict(depth=3, embed_dim=96, num_heads=3, num_kv_heads=3, head_dim=32),
        96,
    ),
    'hgnet.HighPerfGpuBlock': ('hgnetv2_b0', {}, 32),
    'hiera.HieraBlock': ('hiera_tiny_224', dict(embed_dim=24, stages=(1, 2, 1, 1)), 224),
    'hieradet_sam2.MultiScaleBlock': ('sam2_hiera_tiny', {}, 32),
    'iformer.Residual': ('iformer_t', {}, 32),
    'inception_next.MetaNeXtBlock': ('inception_next_atto', {}, 32),
    'levit.LevitBlock': ('levit_128s', dict(img_size=128), 128),
    'levit.LevitDownsample': ('levit_128s', dict(img_size=128), 128),
    'lowformer.ResidualBlock': ('lowformer_b0', {}, 32),
    'mambaout.GatedConvBlock': ('test_mambaout', {}, 32),
    'maxxvit.ConvNeXtBlock': ('coatnext_nano_rw_224', dict(img_size=32), 32),
    'maxxvit.MbConvBlock': ('test_coatnet', dict(img_size=32), 32),
    'maxxvit.ParallelPartitionAttention': ('maxvit_tiny_pm_256', dict(img_size=32), 32),
    'maxxvit.PartitionAttentionCl': ('test_maxvit', dict(img_size=32), 32),
    'maxxvit.TransformerBlock2d': ('test_coatnet', dict(img_size=32), 32),
    'metaformer.MetaFormerBlock': ('poolformerv2_s12', {}, 32),
    'mlp_mixer.MixerBlock': ('gmixer_12_224', dict(img_size=32), 32),
    'mlp_mixer.ResBlock': ('resmlp_12_224', dict(img_size=32), 32),
    'mlp_mixer.SpatialGatingBlock': ('gmlp_ti16_224', dict(img_size=32), 32),
    'mobilevit.LinearTransformerBlock': ('mobilevitv2_050', {}, 32),
    'mvitv2.MultiScaleBlock': ('mvitv2_tiny', {}, 32),
    'nest.TransformerLayer': ('nest_tiny', dict(img_size=32), 32),
    'nextvit.NextConvBlock': ('nextvit_small', {}, 32),
    'nextvit.NextTransformerBlock': ('nextvit_small', {}, 32),
    'nfnet.NormFreeBlock': ('test_nfnet', {}, 32),
    'pvt_v2.Block': ('pvt_v2_b0', {}, 32),
    'rdnet.DenseBlock': ('rdnet_tiny', {}, 32),
    'regnet.Bottleneck': ('regnetx_002', {}, 32),
    'regnet.PreBottleneck': ('regnetv_040', {}, 32),
    'res2net.Bottle2neck': ('res2next50', {}, 32),
    'resnest.ResNestBottleneck': ('resnest14d', {}, 32),
    'resnet.BasicBlock': ('test_resnet', {}, 32),
    'resnet.Bottleneck': ('test_resnet', {}, 32),
    'resnetv2.Bottleneck': ('vit_small_r26_s32_224', {}, 224),
    'resnetv2.PreActBasic': ('resnetv2_18', {}, 32),
    'resnetv2.PreActBottleneck': ('resnetv2_50', dict(layers=(1, 1, 2, 1), channels=(32, 48, 64, 96)), 64),
    'rexnet.LinearBottleneck': ('rexnet_100', {}, 32),
    'sequencer.Sequencer2dBlock': ('sequencer2d_s', {}, 32),
    'sknet.SelectiveKernelBasic': ('skresnet18', {}, 32),
    'sknet.SelectiveKernelBottleneck': ('skresnet50', {}, 32),
    'starnet.Block': ('starnet_s050', {}, 32),
    'swiftformer.Block': ('swiftformer_xs', {}, 32),
    'swiftformer.ConvEncoder': ('swiftformer_xs', {}, 32),
    'swiftformer.LocalRepresentation': ('swiftformer_xs', {}, 224),
    'swin_transformer.SwinTransformerBlock': (
        'swin_tiny_patch4_window7_224',
        dict(img_size=56, embed_dim=24, depths=(2, 2), num_heads=(1, 2)),
        56,
    ),
    'swin_transformer_v2.SwinTransformerV2Block': (
        'swinv2_tiny_window8_256',
        dict(img_size=64, embed_dim=24, depths=(2, 2), num_heads=(1, 2)),
        64,
    ),
    'swin_transformer_v2_cr.SwinTransformerV2CrBlock': (
        'swinv2_cr_tiny_224',
        dict(img_size=56, embed_dim=24, depths=(2, 2), num_heads=(1, 2)),
        56,
    ),
    'tiny_vit.MBConv': ('tiny_vit_5m_224', {}, 32),
    'tiny_vit.TinyVitBlock': ('tiny_vit_5m_224', {}, 32),
    'tnt.Block': ('tnt_s_legacy_patch16_224', dict(global_pool='avg', img_size=32), 32),
    'tresnet.BasicBlock': ('tresnet_m', {}, 32),
    'tresnet.Bottleneck': ('tresnet_m', {}, 32),
    'twins.Block': ('twins_svt_small', {}, 32),
    'visformer.Block': ('visformer_tiny', VIT, 32),
    'vision_transformer.Block': ('vit_tiny_patch16_224', VIT, 32),
    'vision_transformer.DiffParallelScalingBlock': (
        'vit_dpwee_patch16_reg1_gap_256',
        dict(img_size=32, depth=3, embed_dim=64, num_heads=2),
        32,
    ),
    'vision_transformer.ParallelScalingBlock': ('vit_pwee_patch16_reg1_gap_256', VIT, 32),
    'vision_transformer.ResPostBlock': ('vit_base_patch16_rpn_224', VIT, 32),
    'vision_transformer_relpos.RelPosBlock': ('test_vit_relpos', VIT, 32),
    'vision_transformer_relpos.ResPostRelPosBlock': ('vit_relpos_small_patch16_rpn_224', VIT, 32),
    'vision_transformer_sam.Block': (
        'samvit_base_patch16_224',
        dict(img_size=64, depth=3, embed_dim=48, num_heads=3),
        64,
    ),
    'vitamin.MbConvLNBlock': ('vitamin_small_224', {}, 224),
    'volo.ClassBlock': ('volo_d1_224', {}, 224),
    'volo.Outlooker': ('volo_d1_224', {}, 224),
    'volo.Transformer': ('volo_d1_224', dict(img_size=32), 32),
    'vovnet.OsaBlock': ('ese_vovnet19b_slim_dw', {}, 32),
    'xception_aligned.PreXceptionModule': ('xception41p', {}, 32),
    'xception_aligned.XceptionModule': ('xception41', {}, 32),
    'xcit.ClassAttentionBlock': ('xcit_nano_12_p8_224', {}, 224),
    'xcit.XCABlock': ('xcit_nano_12_p8_224', VIT, 32),
}

# those that most people train: tested always, the others with `-m families`
FIRST = [
    '_efficientnet_blocks.InvertedResidual',
    '_efficientnet_blocks.UniversalInvertedResidual',
    'beit.Block',
    'convnext.ConvNeXtBlock',
    'eva.EvaBlock',
    'hiera.HieraBlock',
    'maxxvit.MbConvBlock',
    'maxxvit.PartitionAttentionCl',
    'metaformer.MetaFormerBlock',
    'regnet.Bottleneck',
    'resnetv2.PreActBottleneck',
    'swin_transformer.SwinTransformerBlock',
    'swin_transformer_v2.SwinTransformerV2Block',
    'vision_transformer.Block',
]


def create_family(family, method='sample', rate=0.5, **settings):
    """The network of a family, every parameter of which matters, with stochastic depth at one rate."""
    name, kwargs, _ = FAMILIES[family]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs)
    for p in model.parameters():
        if p.ndim <= 1:
            nn.init.uniform_(p, 0.1, 0.5)
    ts.apply_stochastic_depth(model, method, 'DropPath', rate, 'uniform', **settings)
    return model


def family_images(family, batch_size=4):
    size = FAMILIES[family][2]
    return torch.randn(batch_size, 3, size, size)
