"""What networks that 0.4 pickled as a whole name `timm_stochdepth.blocks`; gone with 0.6."""
from .layers.block import _new_block as _new_block
