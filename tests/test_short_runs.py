"""A run whose search is too short to learn from returns what uniform width would, and says so."""

import warnings

import pytest
import torch
from tiny_networks import EXAMPLE, Residual, seeded, small_job

from nasbench_grow import SamplingSettings, grow, select, uniform_keys
from nasbench_grow.base.errors import UserError
from nasbench_grow.growing import sampling
from nasbench_grow.harness import registry

STEPS = 40


def run_of(settings: SamplingSettings, seed: int = 0):
    """The masks of a run of 40 steps at its end, and in how many steps gradients were asked for."""
    job = small_job(Residual, epochs=STEPS, steps=1, seed=seed)
    model, growing = sampling.begin(job, settings)
    weighed = 0
    for _ in growing.run(job, model):
        weighed += growing.masks.weighs
    return growing.masks, weighed


@pytest.mark.parametrize("seed", range(3))
def test_it_ends_with_the_same_share_of_every_width_and_all_layers(seed: int) -> None:
    masks, weighed = run_of(SamplingSettings(), seed)
    space = masks.space
    even = select(space, uniform_keys(space), 0.5 * space.macs(space.full()), 1)
    assert torch.equal(masks.present, even) and masks.present[space.filters :].all()
    assert weighed == 0 and masks.committed


def test_its_filters_begin_with_their_initial_weights() -> None:
    job = small_job(Residual, epochs=STEPS, steps=1)
    assert sampling.begin(job, SamplingSettings())[1].newborn == "initial"
    assert sampling.begin(job, SamplingSettings(least_search=0))[1].newborn == "quiet"


def test_it_learns_where_the_search_is_long_enough() -> None:
    settings = SamplingSettings(search=0.5, least_search=20)
    masks, weighed = run_of(settings)
    assert weighed > 10 and masks.logits[: len(masks.space.groups)].abs().max() > 0
    assert run_of(SamplingSettings(search=0.5, least_search=21))[1] == 0


def test_whoever_grows_a_model_is_told() -> None:
    batches = [(torch.randn(8, *EXAMPLE.shape[1:]), torch.randint(10, (8,)))] * 4
    options = {"epochs": 10, "granularity": 1, "progress": False}
    with pytest.warns(UserWarning, match="a run of 40 steps has fewer than least_search, 200, and learns nothing"):
        grow(seeded(Residual), EXAMPLE, batches, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*least_search")
        grow(seeded(Residual), EXAMPLE, batches, settings=SamplingSettings(least_search=0), **options)


def test_fewer_steps_than_none_are_refused() -> None:
    with pytest.raises(UserError, match="least_search -1 is out of range: give 0 or more"):
        registry.method("grow[least_search=-1]")
