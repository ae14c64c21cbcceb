"""A small network of each module of timm whose networks have residual blocks and no drop paths."""

# name and size of its images
NETWORKS = {
    'convmixer': ('convmixer_768_32', 32),
    'dla': ('dla46x_c', 64),
    'efficientvit_mit': ('efficientvit_b0', 64),
    'efficientvit_msra': ('efficientvit_m0', 224),
    'ghostnet': ('ghostnetv3_050', 64),
    'hrnet': ('hrnet_w18_small', 64),
    'inception_resnet_v2': ('inception_resnet_v2', 96),
    'lcnetv2': ('lcnetv2_small', 64),
    'repghost': ('repghostnet_050', 64),
    'repvit': ('repvit_m0_9', 64),
    'senet': ('legacy_seresnet18', 64),
    'shvit': ('shvit_s1', 128),
    'xception': ('legacy_xception', 64),
}
