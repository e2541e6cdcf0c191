"""Filter pruning via the geometric median: the filters that the others of their layer can best replace are zeroed.

He, Liu, Wang, Hu, Yang, *Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration*, CVPR
2019 (arXiv 1811.00250): of each layer, the filters with the smallest sum of Euclidean distances to the others are
zeroed after every epoch, as in :mod:`nasbench_grow.baselines.soft_filter`, whose settings these are too.
``fpgm[norm_share=0.75]`` is their mix: three quarters of what is removed go by norm (30 % of a layer's filters of the
40 % in their scripts), the rest by the distances among the filters that are left.

Coupled filters are compared by their weights in all layers that write them. The paper zeroes filters and trains all of
them on, which is done here; the authors' code also masks the gradients of zeroed filters, so that from random weights
the first selection, made before training, would stand.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nasbench_grow import UserError
from nasbench_grow.baselines.soft_filter import SoftFilter, SoftSettings


@dataclass(frozen=True)
class FpgmSettings(SoftSettings):
    """Those of soft filter pruning, and the mix with norms."""

    norm_share: float = 0.0
    """Share of the removed filters that are chosen by the smallest norm."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        if not 0 <= self.norm_share < 1:
            raise UserError(f"norm_share {self.norm_share:g} is out of range: it is a share, 0 <= norm_share < 1")


class FPGM(SoftFilter):
    """Filters nearest to the geometric median of their layer are zeroed every epoch."""

    name = "fpgm"
    summary = "zero the filters nearest to their layer's geometric median every epoch, remove them at the end"
    citation = "He et al., Filter Pruning via Geometric Median for Deep CNNs Acceleration, arXiv 1811.00250"
    Settings = FpgmSettings

    def worth(self, filters: Tensor, removed: int) -> Tensor:
        """The sums of distances to the other filters; where norms have a share, those below it are worth nothing."""
        by_norm = torch.argsort(filters.norm(dim=1), stable=True)
        small = round(self.settings.norm_share * removed)
        large = by_norm[small:]
        worth = filters.new_zeros(len(filters))
        worth[by_norm[:small]] = -1 / (1 + torch.arange(small, device=filters.device))  # the smallest first
        worth[large] = torch.cdist(filters[large], filters[large]).sum(1)
        return worth
