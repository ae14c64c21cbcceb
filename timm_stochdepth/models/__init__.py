from .resnet_sd import *
