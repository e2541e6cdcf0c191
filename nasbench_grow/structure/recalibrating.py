"""Running statistics of batch normalisations for weights that were trained in other networks (arXiv 1903.05134)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nasbench_grow.base.calling import call
from nasbench_grow.base.errors import UserError
from nasbench_grow.base.given import check_model


def recalibrate(network: nn.Module, batches: Iterable[Any]) -> None:
    """Gives every batch normalisation the running statistics of ``batches``: the mean over them of each batch's.

    All else is in evaluation mode meanwhile (no dropout), as where the statistics will be used. Modes are left as they
    were, and a network without running statistics altogether.

    Args:
        network: any module; its running means and variances are replaced.
        batches: at least one of its inputs, better a few thousand samples.

    Raises:
        UserError: there is no batch.
    """
    check_model(network)
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return
    modes = [(module, module.training) for module in network.modules()]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the average over all batches
        norm.training = True
    empty = True
    try:
        with torch.no_grad():
            for inputs in batches:
                call(network, inputs)
                empty = False
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if empty:
        raise UserError("no batch to recalibrate batch normalisations with; give at least one")
