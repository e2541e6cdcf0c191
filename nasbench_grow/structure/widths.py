"""How wide the layers of a network are."""

from __future__ import annotations

from torch import nn


def output_channels(network: nn.Module) -> dict[str, int]:
    """Output channels of every convolution, linear layer, embedding and recurrent layer, by module name."""
    widths = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            widths[name] = module.out_channels
        elif isinstance(module, nn.Linear):
            widths[name] = module.out_features
        elif isinstance(module, nn.Embedding):
            widths[name] = module.embedding_dim
        elif isinstance(module, nn.RNNBase):
            widths[name] = module.hidden_size
    return widths
