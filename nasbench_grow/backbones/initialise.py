"""Initial weights of the suite's convolutional backbones."""

import torch
from torch import nn


def initialise(network: nn.Module) -> None:
    """He initialisation (fan-out, for ReLU) of every convolution; other layers keep what PyTorch gave them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            with torch.no_grad():
                module.weight.mul_(module.groups**0.5)  # PyTorch takes an input to reach the filters of all groups
