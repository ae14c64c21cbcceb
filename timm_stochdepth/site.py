"""What networks that 0.4 pickled as a whole name `timm_stochdepth.site`; gone with 0.6."""
from .layers.drop_path import StochasticDropPath as StochasticDropPath
