"""Multi-trial architecture search: networks of the budget are drawn, each trains briefly and is judged, and the best is
trained by the whole recipe.

Who draws them is a strategy of NNI's, from the one space of all networks of the budget
(:class:`nasbench_grow.growing.nni_space.GrowableSpace`): the width of every channel group and the presence of every
removable layer. The search may spend a fixed total of MACs. All of it is billed, and it ends when the next trial does
not fit. NNI is imported when a search runs; without it these methods skip.
"""

from __future__ import annotations

import importlib.util
import warnings
from abc import abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import DivergedError, Job, Method, Run, Stage, Task, check_positive, check_share
from nasbench_grow.structure.subnetwork import extract

if TYPE_CHECKING:
    from nni.nas.strategy import Strategy

    from nasbench_grow.growing.nni_space import GrowableSpace


@dataclass(frozen=True)
class MultiTrialSettings:
    """What a search may spend, and on what."""

    total: float = 3.0
    """MACs that the search may spend, in multiples of one dense training by the whole recipe."""
    trial_share: float = 0.1
    """Share of the run's epochs that a trial trains, by a whole schedule of its own."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_share(self, "trial_share")
        check_positive(self, "total")


class NniSearch(Method):
    """A method that draws networks from NNI's space of all that have the budget."""

    family: ClassVar[Literal["search"]] = "search"

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Where NNI is not installed."""
        return None if importlib.util.find_spec("nni") else "NNI is not installed"

    def space(self, job: Job) -> GrowableSpace:
        """The space of a job, around a fresh dense backbone.

        Raises:
            UserError: nothing in it can be taken away, or the budget is out of reach.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NNI's, of classes that it does not know
            from nasbench_grow.growing.nni_space import GrowableSpace
        return GrowableSpace(job.build(), job.example, job.budget, job.granularity)

    def train(self, job: Job, space: GrowableSpace, chosen: Tensor) -> Run:
        """Plain training of the network that was chosen, shape (structures,), from the dense backbone's weights."""
        model = job.model(extract(space.structures, job.build(), chosen))
        yield from job.fit(model)
        return model.network


class MultiTrial(NniSearch):
    """Draws by a strategy of NNI's; a subclass says by which."""

    Settings: ClassVar[type[Any]] = MultiTrialSettings

    @abstractmethod
    def strategy(self, job: Job, dimensions: int, trials: int) -> Strategy:
        """A fresh strategy, which higher scores are better for and which draws by ``job.seed`` alone.

        Args:
            job: the job.
            dimensions: how many widths and layers a sample names.
            trials: how many trials of networks of the full budget the total allows.
        """

    def run(self, job: Job) -> Run:
        """Trials while they fit, then the best of them from the start."""
        space = self.space(job)
        epochs = self.settings.trial_share * job.epochs
        left = self.settings.total * job.dense_train_macs
        trials = int(left / job.trial_macs(round(job.budget * job.dense_macs), epochs))
        if trials < 1:
            raise UserError(
                f"total {self.settings.total:g} does not allow one trial of trial_share {self.settings.trial_share:g}; "
                "give a larger total or a smaller trial_share"
            )
        from nasbench_grow.growing.nni_draws import Draws

        dimensions = len(space.structures.groups) + len(space.structures.layers)
        tried: dict[Tried, float | None] = {}
        chosen: tuple[float, Tensor] | None = None
        with Draws(lambda: self.strategy(job, dimensions, trials), space) as draws:
            for network, sample in draws.untried(tried, lambda drawn: which(space, space.present(drawn))):
                present = space.present(sample)
                left -= job.trial_macs(space.structures.macs(present), epochs)
                if left < 0:
                    break
                score = yield from trial(job, extract(space.structures, space.dense, present), epochs)
                tried[network] = score
                if score is not None and (chosen is None or score > chosen[0]):
                    chosen = score, present
        if chosen is None:
            raise DivergedError(f"the training loss of all {len(tried)} trials became infinite or NaN")
        return (yield from self.train(job, space, chosen[1]))


Tried = tuple[bool, ...]
"""Stands for a network, whatever widths a sample names inside layers that are not there."""


def which(space: GrowableSpace, present: Tensor) -> Tried:
    """Which network the structures ``present`` are."""
    return tuple(space.structures.effective(present).tolist())


def trial(job: Job, network: nn.Module, epochs: float) -> Generator[Stage, None, float | None]:
    """The score of a network after a trial; None: its training diverged."""
    try:
        return (yield from job.trial(job.model(network), epochs=epochs))
    except DivergedError:
        return None
