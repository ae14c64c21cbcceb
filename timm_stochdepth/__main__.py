"""`python -m timm_stochdepth`: the command `timm-stochdepth` of this very interpreter."""
import sys

from .cli.main import main

sys.exit(main())
