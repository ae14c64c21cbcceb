"""What networks that 0.4 pickled as a whole, and scripts for it, name `timm_stochdepth.blocks`; gone with 0.6."""
from .layers.block import StochasticBlock as StochasticBlock
from .layers.block_class import _CLASSES as _CLASSES
from .layers.block_class import _new_block as _new_block
from .layers.block_class import cuts_of as cuts_of
