"""The registered models: ResNet-50 and ResNet-101 with stochastic depth, for `timm.create_model`."""
from . import saved_config as saved_config
from .resnet_sd import *
