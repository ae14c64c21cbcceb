"""The launcher, on CPU ranks: timm's train.py gives DDP the device ids of a GPU, which DDP refuses on the CPU."""

import sys

import torch.nn.parallel

from timm_stochdepth.cli.main import main


class CpuDistributedDataParallel(torch.nn.parallel.DistributedDataParallel):
    def __init__(self, module, device_ids=None, **kwargs):
        super().__init__(module, **kwargs)


if __name__ == '__main__':
    torch.nn.parallel.DistributedDataParallel = CpuDistributedDataParallel
    sys.exit(main(['run', *sys.argv[1:]]))
