"""What networks that 0.4 pickled as a whole name `timm_stochdepth.shared_draws`; gone with 0.6."""
from .draws.shared import SharedDraws as SharedDraws
