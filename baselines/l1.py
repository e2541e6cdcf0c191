"""L1-norm filter pruning: train the dense network, remove the filters with the smallest weights, go on training.

Li, Kadav, Durdanovic, Samet, Graf, *Pruning Filters for Efficient ConvNets*, ICLR 2017 (arXiv 1608.08710): the filters
of a layer are ranked by the sum of their absolute weights (section 3.1) and pruned once, or in rounds with training
between (section 3.4: ``l1[rounds=5]``), in all layers by the same share (their stage-wise ratios are hand-picked).
Filters that are coupled by a residual stream are ranked by the sum over the layers that write to it. Theirs retrains
at a hundredth of the first learning rate, for a quarter of the epochs on top of a full training; here the recipe's one
schedule goes on after pruning, within the epochs that every method has, or on top (``l1[start=trained]``).
"""

from __future__ import annotations

from nasbench_grow import share_keys
from nasbench_grow.contract import ElasticModel, Job, PruneAndTune, cut


class L1(PruneAndTune):
    """Train, prune by L1 norm, fine-tune."""

    name = "l1"
    summary = "train dense for half the epochs, prune by L1 norm, fine-tune for the other half"
    citation = "Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710"
    version = 3  # also runs of one epoch, in the middle of which it prunes

    def prune(self, job: Job, model: ElasticModel, limit: float) -> None:
        """Keeps the same share of every group, those with the largest norms."""
        norms = model.filter_sums(lambda weight: weight.detach().abs())
        cut(model, share_keys(model.space, norms), limit, job.granularity)
