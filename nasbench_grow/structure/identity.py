"""Removable layers that start as the identity, so that a network hardly notices whether they are there."""

from __future__ import annotations

import torch
from torch import nn

from nasbench_grow.structure.space import Space

RECTIFIED = (0.3989, 0.5838)
"""Mean and standard deviation of a standard normal variable, rectified: of what a plain layer takes in after a
normalisation and a ReLU."""


@torch.no_grad()
def start_as_identity(space: Space, dense: nn.Module) -> None:
    """Sets the weights of a dense model's removable layers so that each passes on what it takes in.

    A block adds nothing: the norm or convolution that ends its branch is zero (Goyal et al., arXiv 1706.02677, section
    5.1). A plain layer's convolution copies its input, and the norm that follows is set to undo its own normalising, up
    to what the statistics of a batch leave (after Chen et al., Net2Net, arXiv 1511.05641).
    """
    parameters = dict(dense.named_parameters())
    for layer in space.layers:
        if layer.bypass is None:
            for name in layer.terminal:
                parameters[name].zero_()
            continue
        for path in layer.paths:
            module = dense.get_submodule(path)
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1:
                nn.init.dirac_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.bias.fill_(RECTIFIED[0])
                module.weight.fill_(RECTIFIED[1])
