"""What networks that 0.4 pickled as a whole name `timm_stochdepth.progress`; gone with 0.6."""
from .layers.progress import TrainingProgress as TrainingProgress
