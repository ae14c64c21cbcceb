"""Stochastic depth for timm and torchvision. Importing the package registers its models with timm."""
from . import models as models
from .blocks import STOCHASTIC_LAYER_MAPPING as STOCHASTIC_LAYER_MAPPING
from .blocks import StochasticBlock as StochasticBlock
from .fold import fold_stochastic_depth as fold_stochastic_depth
from .fold import start_warmup as start_warmup
from .hub.push import push_to_hub as push_to_hub
from .surgery import apply_stochastic_depth as apply_stochastic_depth
from .surgery import drop_rates as drop_rates
from .surgery import set_drop_rate as set_drop_rate
from .surgery import set_training_progress as set_training_progress
from .surgery import stochastic_depth_args as stochastic_depth_args
from .training.algorithm import StochasticDepth as StochasticDepth
from .version import __version__ as __version__
