"""`python -m timm_stochdepth.run SCRIPT ...`, and `torchrun -m timm_stochdepth.run SCRIPT ...` on several processes."""
import sys

from .training.launcher import run_script

if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit('usage: python -m timm_stochdepth.run SCRIPT ...')
    run_script(sys.argv[1], sys.argv[2:])
