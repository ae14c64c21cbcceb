"""What is in a folder, and a file of each kind that the package writes."""

import os

import torch
from safetensors.torch import save

SAFETENSORS = save({'weight': torch.ones(2)})


def snapshot(folder):
    """Everything below a folder: content of files, targets of links."""
    found = {}
    for path in sorted(folder.rglob('*')):
        is_link = path.is_symlink()
        found[str(path.relative_to(folder))] = os.readlink(path) if is_link else path.is_file() and path.read_bytes()
    return found


def torch_file(path, **kwargs):
    torch.save({'weight': torch.ones(2)}, path, **kwargs)


KINDS = {
    'a.safetensors': lambda path: path.write_bytes(SAFETENSORS),
    'a.pth': torch_file,
    'a.pt': torch_file,
    'a.bin': torch_file,
    'a.pth.tar': lambda path: torch_file(path, _use_new_zipfile_serialization=False),
    'a.png': lambda path: path.write_bytes(b'\x89PNG\r\n\x1a\n...'),
    'a.pdf': lambda path: path.write_bytes(b'%PDF-1.4'),
    'a.svg': lambda path: path.write_text('<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>'),
    'a.json': lambda path: path.write_text('{}'),
}
