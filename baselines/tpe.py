"""TPE: draws where the good trials so far lie dense and the bad ones thin.

Bergstra, Bardenet, Bengio, Kegl, *Algorithms for Hyper-Parameter Optimization*, NeurIPS 2011 (no arXiv number),
section 4: each dimension has one density of the better trials, l(x), and one of the rest, g(x); of a number of draws
from the first the one with the greatest l(x) / g(x) is tried next. NNI's ``TPE`` does this over widths and layers,
each dimension by itself, with its own knobs, which it has from the authors' Hyperopt: 24 draws, of n trials 0.25
sqrt(n) are good, a prior of one trial. It is told that the values have an order, which its strategy for architectures
leaves out and without which it is worse than random. Its first 20 trials are drawn at random; of a few dozen that is
much, so here they are a share (``startup_share``, ours) and 20 at most. It learns from the sample as it was drawn,
before that is brought to the budget. A network that was tried before is not trained again, and has the score of then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nasbench_grow.contract import Job, check_share
from nasbench_grow.growing.multi_trial import MultiTrial, MultiTrialSettings

if TYPE_CHECKING:
    from nni.nas.strategy import Strategy

STARTUP = 20
"""Trials that NNI's TPE draws at random first."""


@dataclass(frozen=True)
class TpeSettings(MultiTrialSettings):
    """How many trials are drawn at random."""

    startup_share: float = 0.25
    """Share of the trials that are drawn at random before any is learnt from; 20 trials at most."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_share(self, "startup_share")


class Tpe(MultiTrial):
    """Learns which width of each group, and which layers, the better networks have."""

    name = "tpe"
    summary = "tree-structured Parzen estimator over widths and layers, the best trained from the start (NNI's TPE)"
    citation = "Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011"
    Settings = TpeSettings

    def strategy(self, job: Job, dimensions: int, trials: int) -> Strategy:
        """NNI's TPE, told that higher is better: NNI's own default is the opposite."""
        from nasbench_grow.growing.nni_draws import OrderedTPE

        startup = max(1, min(STARTUP, round(self.settings.startup_share * trials)))
        return OrderedTPE("maximize", seed=job.seed, tpe_args={"n_startup_jobs": startup})
