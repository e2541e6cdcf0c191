"""Regularized evolution: of a few of the living the best has a child with small changes, and the oldest dies.

Real, Aggarwal, Huang, Le, *Regularized Evolution for Image Classifier Architecture Search*, AAAI 2019 (arXiv
1802.01548, algorithm 1): a population of 100 drawn at random, samples of 25, and 20,000 models in all. A search of a
few dozen trials would end among the first: here a quarter of the trials makes the first population (ours), of which a
quarter is sampled, as 25 of 100 (``sample_share``). There a child differs from its parent by one mutation; NNI's
``RegularizedEvolution`` draws every dimension anew with a probability, here one over their number, so that one
changes on average. The dimensions are widths of channel groups and the presence of layers; a child is brought to the
budget, by which other widths move a little. A child that was tried before is not trained again, and has the score of
then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nasbench_grow.contract import Job, check_share
from nasbench_grow.growing.multi_trial import MultiTrial, MultiTrialSettings

if TYPE_CHECKING:
    from nni.nas.strategy import Strategy


@dataclass(frozen=True)
class EvolutionSettings(MultiTrialSettings):
    """How many live, and how many compete."""

    population_share: float = 0.25
    """Share of the trials that make the first population; as many live from then on."""
    sample_share: float = 0.25
    """Share of the population of which the best becomes a parent."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_share(self, "population_share", "sample_share")


class RegularizedEvolution(MultiTrial):
    """Evolves widths and layers."""

    name = "regularized_evolution"
    summary = "evolution of widths and layers in which the oldest die, the best trained from the start (NNI's)"
    citation = "Real et al., Regularized Evolution for Image Classifier Architecture Search, arXiv 1802.01548"
    Settings = EvolutionSettings

    def strategy(self, job: Job, dimensions: int, trials: int) -> Strategy:
        """NNI's evolution, of a population that fits the number of trials."""
        from nni.nas.strategy import RegularizedEvolution

        living = max(2, round(self.settings.population_share * trials))
        return RegularizedEvolution(
            population_size=living,
            sample_size=max(1, round(self.settings.sample_share * living)),
            mutation_prob=1 / dimensions,
            seed=job.seed,
        )
