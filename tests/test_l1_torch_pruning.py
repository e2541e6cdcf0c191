"""L1 pruning by Torch-Pruning: where nothing but the norms of filters differs, it keeps what ``l1`` keeps."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import Plain, seeded, small_job
from torch import nn

from nasbench_grow import count_macs, share_keys
from nasbench_grow.baselines.l1_torch_pruning import nearest, pruned
from nasbench_grow.contract import cut


def with_clear_norms() -> nn.Module:
    """A network in which a filter that is larger in one of its weights is larger in all of them."""
    network = seeded(lambda: Plain(16))
    with torch.no_grad():
        for conv, norm in ((network.conv1, network.bn1), (network.conv2, network.bn2), (network.conv3, network.bn3)):
            sizes = 0.5 + torch.rand(16, generator=torch.Generator().manual_seed(conv.in_channels))
            norm.weight.copy_(sizes)
            conv.weight.sign_().mul_(sizes.view(16, 1, 1, 1))
    return network


def test_half_of_every_layer_goes_and_it_is_the_half_that_l1_removes():
    job = small_job(with_clear_norms)
    theirs = pruned(job, with_clear_norms(), ["fc"], 0.5)
    model = job.model()
    norms = model.filter_sums(lambda weight: weight.detach().abs())
    cut(model, share_keys(model.space, norms), count_macs(theirs, job.example), 1)
    for name, weights in theirs.state_dict().items():
        assert torch.equal(weights, model.network.state_dict()[name]), name
    assert [theirs.get_submodule(name).out_channels for name in ("conv1", "conv2", "conv3")] == [8, 8, 8]


@pytest.mark.parametrize("budget", [0.2, 0.5, 0.8])
def test_the_budget_is_met_as_nearly_as_whole_filters_allow(budget):
    job = small_job(lambda: Plain(64), budget=budget)
    network = nearest(job, job.build(), ["fc"])
    assert count_macs(network, job.example) / job.dense_macs == pytest.approx(budget, abs=0.02)
