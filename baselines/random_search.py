"""Random search: networks drawn at random are trained briefly, and the best of them is trained by the whole recipe.

Li and Talwalkar, *Random Search and Reproducibility for Neural Architecture Search*, UAI 2019 (arXiv 1902.07638): the
baseline that a search has to beat, as it was for hyper-parameters (Bergstra and Bengio, JMLR 2012). It has no knobs
but how many networks are drawn and how long each trains, which ``total`` and ``trial_share`` say (ours: three dense
trainings in all, a tenth of the run a trial). Their two variants stop early (see ``successive_halving``) or share
weights; this is the plain one. NNI's ``Random`` draws, and none trains twice: each width from eight evenly spaced
ones, each layer by a fair coin, then all widths scaled by one factor to the budget. The control ``random`` is the
same with one draw and no search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nasbench_grow.contract import Job
from nasbench_grow.growing.multi_trial import MultiTrial

if TYPE_CHECKING:
    from nni.nas.strategy import Strategy


class RandomSearch(MultiTrial):
    """Learns nothing from a trial but its score."""

    name = "random_search"
    summary = "networks drawn at random, each trained briefly, the best trained from the start (NNI's Random)"
    citation = "Li and Talwalkar, Random Search and Reproducibility for NAS, arXiv 1902.07638"

    def strategy(self, job: Job, dimensions: int, trials: int) -> Strategy:
        """NNI's random search."""
        from nni.nas.strategy import Random

        return Random(dedup=False, seed=job.seed)  # a network that was drawn before has its score already
