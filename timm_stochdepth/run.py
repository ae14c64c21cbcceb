"""`python -m timm_stochdepth.run SCRIPT ...`, and `torchrun -m timm_stochdepth.run SCRIPT ...` on several processes."""
import sys

from .cli.main import main

if __name__ == '__main__':
    sys.exit(main(['run', *sys.argv[1:]]))
