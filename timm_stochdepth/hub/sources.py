"""Names that scripts for 0.4 import from `timm_stochdepth.hub.sources`; gone with 0.6."""
from .load import load_model as load_model
from .record import TrainingRecord as TrainingRecord
