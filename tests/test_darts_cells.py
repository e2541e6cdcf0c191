"""DARTS on cells: the mixture and the discretisation by hand, what each step learns from, the bill, kills."""

from __future__ import annotations

import sys

import pytest
import torch
from test_baselines import equal
from test_netadapt import BATCH, Halves
from tiny_networks import EXAMPLE, Kept, Plain, small_job
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.darts_cells import (
    PUBLISHED_STEPS,
    DartsCells,
    Relaxed,
    Settings,
    alphas_of,
    discretise,
    network_of,
    supernet,
    weights_of,
)
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.harness import registry

pytest.importorskip("nni.nas.hub.pytorch")
TINY = {"cells": 3, "width": 2, "search_cells": 3, "search_width": 2}


def tiny_job(**changes):
    job = small_job(lambda: Plain(4), **{"epochs": 1, "batch_size": BATCH, **changes})
    job.train = Halves(3)
    return job


KNOWN: dict[tuple[int, ...], int] = {}


@pytest.fixture(autouse=True)
def counted_once(monkeypatch):
    """A supernet takes seconds to count: networks of as many parameters are counted once."""

    def counted(network, example):
        key = sum(parameter.numel() for parameter in network.parameters()), *example.shape
        if key not in KNOWN:
            KNOWN[key] = count_macs(network, example)
        return KNOWN[key]

    monkeypatch.setattr("nasbench_grow.structure.elastic.count_macs", counted)


@pytest.fixture(scope="module")
def mixed():
    return supernet(tiny_job(), Settings(**TINY))


def test_every_node_keeps_two_edges_by_their_strongest_operation_apart_from_none():
    def logits(*weights):
        return torch.tensor(weights).log()

    alphas = {
        "normal/2_0": logits(0.5, 0.2, 0.3),
        "normal/2_1": logits(0.1, 0.2, 0.7),
        # by weight 0.3, 0.6, 0.4; the alphas of the first edge are the largest by far
        "normal/3_0": 50 + logits(0.3, 0.1, 0.6),
        "normal/3_1": logits(0.3, 0.6, 0.1),
        "normal/3_2": logits(0.4, 0.1, 0.5),
    }
    assert discretise(alphas, ["pool", "conv"]) == {
        "normal/op_2_0": "pool",
        "normal/input_2_0": [0],
        "normal/op_2_1": "conv",
        "normal/input_2_1": [1],
        "normal/op_3_0": "conv",
        "normal/input_3_0": [1],
        "normal/op_3_1": "pool",
        "normal/input_3_1": [2],
    }


def test_operations_of_fixed_widths_are_pytorchs_own(mixed):
    convolutions = [module for module in mixed.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    assert len(convolutions) > 500
    assert {type(module) for module in convolutions} == {nn.Conv2d, nn.BatchNorm2d}, "NNI's are slow"


def test_alphas_of_a_kind_of_cell_are_shared_and_no_weights(mixed):
    alphas = alphas_of(mixed)
    assert len(alphas) == 2 * (2 + 3 + 4 + 5), "edges of four nodes, in normal and in reduction cells"
    assert all(len(alpha) == 8 for alpha in alphas.values()), "seven operations and none"
    assert {id(alpha) for alpha in alphas.values()}.isdisjoint(map(id, weights_of(mixed)))
    assert len(list(weights_of(mixed))) + len(alphas) == len(list(mixed.parameters()))


def test_the_supernet_of_one_choice_on_every_edge_adds_up_the_network_it_stands_for(mixed):
    """With all the weight on skip connections the mixed first cell is that of skip connections alone."""
    cell = mixed.stages[0].blocks[0].eval()
    before = {edge: alpha.detach().clone() for edge, alpha in alphas_of(mixed).items()}
    try:
        with torch.no_grad():
            for alpha in alphas_of(mixed).values():
                alpha.fill_(-1e4)[cell.op_names.index("skip_connect")] = 0
            states = [torch.randn(2, 6, 8, 8), torch.randn(2, 6, 8, 8)]
            one, other = cell.preprocessor(states)
            nodes = [one + other]
            for _ in range(3):
                nodes.append(one + other + sum(nodes))
            assert torch.allclose(cell(states)[1], torch.cat(nodes, 1), atol=1e-5)
    finally:
        with torch.no_grad():
            for edge, alpha in alphas_of(mixed).items():
                alpha.copy_(before[edge])


def test_a_step_of_the_alphas_moves_them_alone_on_samples_that_weights_never_see(mixed):
    job = tiny_job()
    model = job.model(mixed, optimizer=lambda network: job.recipe.optimizer(weights_of(network)))
    relaxed, macs = Relaxed(job, model, rate=0.01), model.macs
    weights = [weight.detach().clone() for weight in weights_of(mixed)]
    alphas = [alpha.detach().clone() for alpha in alphas_of(mixed).values()]
    held = [inputs for inputs, _ in job.search_splits[1].batches(BATCH)]
    seen = []
    hook = mixed.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    relaxed.before_step(model, 0, 4)
    hook.remove()
    assert len(seen) == 1 and torch.equal(seen[0], held[0])
    assert all(torch.equal(now, before) for now, before in zip(weights_of(mixed), weights, strict=True))
    assert all(not torch.equal(now, before) for now, before in zip(alphas_of(mixed).values(), alphas, strict=True))
    assert job.meter.total == 3 * BATCH * macs
    assert 0.9 < relaxed.log(model)["undecided"] <= 1


def trained(job, stop=None):
    """The network that the method returns and the purposes of its stages; None if it is stopped before."""
    stages, purposes = DartsCells(Settings(**TINY)).run(job), []
    while len(purposes) != stop:
        try:
            purposes.append(next(stages).purpose)
        except StopIteration as end:
            return end.value, purposes
    stages.close()
    return None, purposes


def test_search_and_training_are_billed_and_killed_anywhere_it_ends_with_the_same_bits(mixed):
    job = tiny_job(epochs=2)
    network, purposes = trained(job)
    assert purposes == 2 * ["search"] + 2 * ["training"]
    steps_of_both = 2 * 2 * 2  # two steps in each of two epochs, of alphas and of weights
    assert job.meter.spent["search"] == steps_of_both * 3 * BATCH * tiny_job().model(mixed).macs
    assert job.meter.spent["training"] == 2 * 3 * 3 * BATCH * count_macs(network, EXAMPLE)
    assert network.eval()(torch.randn(3, 1, 8, 8)).shape == (3, 10) and not alphas_of(network)
    storage = Kept()
    for stop in (2, 2):  # the first epoch of the search is kept, then that and the first of the training
        trained(tiny_job(epochs=2, storage=storage), stop)
    resumed = tiny_job(epochs=2, storage=storage)
    again, _ = trained(resumed)
    assert equal(network, again) and resumed.meter.spent == job.meter.spent


def test_the_published_learning_rate_is_that_of_a_search_of_the_published_length():
    assert PUBLISHED_STEPS == 19_531
    assert Settings().alpha_rate == 3e-4


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 3), (96, 3)])
def test_networks_are_of_the_tasks_channels_classes_and_resolution(size, channels):
    class Any5(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, 5, 1)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    job = small_job(Any5, example=torch.zeros(1, channels, size, size))
    edges = {f"{cell}/{node}_{origin}": torch.zeros(3) for cell in ("normal", "reduce") for node in range(2, 6)
             for origin in range(node)}  # fmt: skip
    sample = discretise(edges, ["skip_connect", "sep_conv_3x3"])
    one, again = (network_of(sample, job, Settings(**TINY)) for _ in range(2))
    assert equal(one, again), "weights from the seed"
    assert one.eval()(torch.zeros(2, channels, size, size)).shape == (2, 5)


def test_it_is_skipped_where_cells_make_no_sense_and_where_nni_is_missing(monkeypatch):
    network = Plain()
    for name in ("landcover", "ptb_small"):
        assert DartsCells().skip(registry.task(name)(), network) == "its cells are for the classification of images"
    assert DartsCells().skip(registry.task("digits")(), network) is None
    monkeypatch.setitem(sys.modules, "nni", None)
    monkeypatch.setattr("nasbench_grow.baselines.darts_cells.find_spec", lambda name: None)
    assert (
        DartsCells().skip(registry.task("digits")(), network) == "its search space is NNI's, and nni is not installed"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cells": 2}, "cells 2 is out of range: give 3 or more, one for each resolution"),
        ({"width": 5}, "width 5 is out of range: give an even number, 2 or more"),
        ({"alpha_rate": 0.0}, "alpha_rate 0 is out of range: give a number above 0"),
    ],
)
def test_settings_outside_their_range_are_refused(changes, said):
    with pytest.raises(UserError) as caught:
        Settings(**changes)
    assert str(caught.value) == said
