"""Blocks whose branch ends in a module of one's own."""

import timm
import torch
from torch import nn

import timm_stochdepth as ts


class Block(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.fc, self.end, self.drop_path = nn.Linear(4, 4), end, timm.layers.DropPath(0.5)

    def forward(self, x):
        return x + self.drop_path(self.end(torch.relu(self.fc(x))))


class Own(nn.Module):
    """An end with parameters or buffers, that computes what a function of it and its input says."""

    names = ('scale', 'bias')

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        for name in self.names:
            self.add_tensor(name, torch.rand(4) + 0.5)

    def add_tensor(self, name, value):
        self.register_parameter(name, nn.Parameter(value))


def applied(end, block=Block):
    model = nn.Sequential(block(end)).eval()
    for p in model.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.5, 'uniform')
    return model
