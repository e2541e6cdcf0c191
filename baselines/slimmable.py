"""AutoSlim: a network that runs at all widths, slimmed where that costs the least accuracy, trained from scratch.

Yu and Huang, *AutoSlim: Towards One-Shot Architecture Search for Channel Numbers* (arXiv 1903.11728), on a universally
slimmable network (arXiv 1903.05134), after slimmable networks (Yu et al., ICLR 2019, arXiv 1812.08928). Every step of
its training follows the sandwich rule: the widest network learns from the labels, the narrowest and two random ones,
each layer of a width of its own, from the answers of the widest (in-place distillation). Then, round after round, each
group is tried narrower by a tenth of its filters on samples held out, normalisations recalibrated, and the one is
slimmed whose narrowing costs the least; at the budget the network found is trained from scratch by the whole recipe.
Published: widths from a tenth of the widest on (0.15 to 1.5 times the usual), four networks a step (the code of
1903.05134), for 10 to 20 % of the epochs of a full training; one group of channels is slimmed at a time. The code of
the greedy search was not published, and a tenth of the filters as such a group is ours.

Ours: removable layers are slimmed like groups, a whole one at a time; of equal scores the one that saves more MACs goes
first; where the run does not afford the rounds that this takes, a round slims several that cost the least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow import SharedWeights, Space, extract
from nasbench_grow.baselines.single_path_one_shot import affordable, at_cost, shared_score
from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Run, check_positive, check_share

STEP = 0.1
"""Share of a group's filters by which it is slimmed."""


@dataclass
class Widths:
    """A slimmed network: the first filters of every group, and the removable layers that are there."""

    space: Space
    filters: list[int]
    """Of each group."""
    layers: list[bool]

    def present(self) -> Tensor:
        """Its structures, shape (structures,), bool."""
        present = torch.zeros(len(self.space), dtype=torch.bool)
        for group, width in zip(self.space.groups, self.filters, strict=True):
            present[group.start : group.start + width] = True
        present[self.space.filters :] = torch.tensor(self.layers, dtype=torch.bool)
        return present

    def macs(self) -> int:
        """Forward MACs of one input."""
        return self.space.macs_of(self.filters, self.layers)

    def slimmed(self, place: int) -> Widths:
        """The same with one group a step narrower; places after those of the groups: without a layer."""
        filters, layers = self.filters.copy(), self.layers.copy()
        if place < len(filters):
            filters[place] -= max(1, round(STEP * self.space.groups[place].size))
        else:
            layers[place - len(filters)] = False
        return Widths(self.space, filters, layers)

    def places(self, narrowest: list[int]) -> list[int]:
        """What can be slimmed: groups that are there and stay as wide as ``narrowest``, layers that are there."""
        groups = [
            place
            for place, group in enumerate(self.space.groups)
            if (group.layer is None or self.layers[group.layer])
            and self.slimmed(place).filters[place] >= narrowest[place]
        ]
        return groups + [len(self.filters) + layer for layer, there in enumerate(self.layers) if there]


def widest(space: Space) -> Widths:
    """The dense network."""
    return Widths(space, [group.size for group in space.groups], [True] * len(space.layers))


def least(space: Space, narrowest: float) -> list[int]:
    """The lowest width of each group."""
    return [max(1, round(narrowest * group.size)) for group in space.groups]


class Sandwich(Callback):
    """The sandwich rule with in-place distillation (arXiv 1903.05134).

    Args:
        job: the cell.
        model: the dense network, which becomes slimmable.
        narrowest: width of the narrowest network, as a share.
        sampled: how many networks of random widths train in each step.
    """

    def __init__(self, job: Job, model: ElasticModel, narrowest: float, sampled: int) -> None:
        self.space, self.least = model.space, least(model.space, narrowest)
        self.draws = torch.Generator().manual_seed(job.seed)
        # Of a recurrent network each one goes on from where its own place in the sandwich was a batch ago.
        self.shared = [SharedWeights(model.space, model.dense) for _ in range(2 + sampled)]

    def drawn(self) -> Widths:
        """Random widths; as many layers as a fair draw from none to all says."""
        filters = [
            int(torch.randint(low, group.size + 1, (), generator=self.draws))
            for low, group in zip(self.least, self.space.groups, strict=True)
        ]
        number = int(torch.randint(len(self.space.layers) + 1, (), generator=self.draws))
        chosen = set(torch.randperm(len(self.space.layers), generator=self.draws)[:number].tolist())
        return Widths(self.space, filters, [layer in chosen for layer in range(len(self.space.layers))])

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """The networks of the step: the widest, the narrowest, random ones."""
        narrowest = Widths(self.space, self.least, [False] * len(self.space.layers))
        self.sandwich = [widest(self.space), narrowest, *(self.drawn() for _ in self.shared[2:])]

    def loss(self, model: ElasticModel, network: nn.Module, inputs: Any, targets: Any, loss: Any) -> Tensor:
        """The task's loss of the widest network, and how far the others are from its answers."""
        outputs = [shared(widths.present(), inputs) for shared, widths in zip(self.shared, self.sandwich, strict=True)]
        total: Tensor = loss(outputs[0], targets)
        for output in outputs[1:]:
            total = total + distance(output, outputs[0].detach(), targets)
        return total

    def step_macs(self, model: ElasticModel) -> int:
        """MACs of all of them."""
        return sum(widths.macs() for widths in self.sandwich)

    def state_dict(self) -> dict[str, Any]:
        """Where the draws stand."""
        return {"draws": self.draws.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on drawing."""
        self.draws.set_state(state["draws"])


def distance(output: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits to the probabilities that other logits stand for, a scalar.

    Of images (B, classes) or (B, classes, H, W) the mean over all labels; of texts (B, T, words) the mean over
    sequences of the sum over words, as in that task's loss.
    """
    classes = -1 if output.shape[:-1] == targets.shape else 1  # the axis of the logits
    each = -(answers.softmax(classes) * output.log_softmax(classes)).sum(classes)
    return each.sum() / len(each) if classes == -1 else each.mean()


@dataclass(frozen=True)
class SlimmableSettings:
    """How the slimmable network is trained and slimmed."""

    slimmable_share: float = 0.15
    """Epochs of the slimmable network, as a share of those that the network found trains for."""
    narrowest: float = 0.1
    """Width of the narrowest network, as a share of each group's filters."""
    sampled: int = 2
    """Networks of random widths in each step, beside the widest and the narrowest."""
    search_share: float = 0.25
    """What judging slimmer networks may cost, as a share of the training of the one found; one round is due."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_share(self, "slimmable_share", "narrowest")
        check_positive(self, "search_share", "sampled")


class Slimmable(Method):
    """Trains a slimmable network, slims it greedily, trains the result from scratch."""

    name = "slimmable"
    summary = "one slimmable network, slimmed greedily where it costs the least accuracy, trained from scratch"
    family = "search"
    citation = "Yu and Huang, AutoSlim: Towards One-Shot Architecture Search for Channel Numbers, arXiv 1903.11728"
    Settings = SlimmableSettings

    def run(self, job: Job) -> Run:
        """The slimmable network, the greedy search, the training of what it found."""
        settings, model = self.settings, job.model()
        sandwich = Sandwich(job, model, settings.narrowest, settings.sampled)
        yield from job.fit(model, sandwich, epochs=settings.slimmable_share * job.epochs, searching=True)
        found = self.slimmed(job, model)
        space, limit = model.space, job.budget * job.dense_macs
        shares = torch.tensor([width / group.size for width, group in zip(found.filters, space.groups, strict=True)])
        present = at_cost(space, shares, torch.tensor(found.layers, dtype=torch.bool), limit, job.granularity)
        model = job.model(extract(space, job.build(), present))
        yield from job.fit(model)
        return model.network

    def slimmed(self, job: Job, model: ElasticModel) -> Widths:
        """The widths at which the greedy search falls below the budget, or can go no further."""
        widths, lowest = widest(model.space), least(model.space, self.settings.narrowest)
        mean = (1 + job.budget) / 2 * job.dense_macs
        rounds = affordable(job, self.settings.search_share, mean) // len(widths.places(lowest)) or 1
        done = 0
        while widths.macs() > job.budget * job.dense_macs and widths.places(lowest):
            done += 1
            target = max(job.budget, 1 - (1 - job.budget) * done / rounds) * job.dense_macs
            ranked = []
            for place in widths.places(lowest):
                slimmer = widths.slimmed(place)
                ranked.append((shared_score(job, model, slimmer.present()), -slimmer.macs(), -place))
            for _, _, place in sorted(ranked, reverse=True):
                if -place in widths.places(lowest):  # a layer may be gone, and the groups inside it
                    widths = widths.slimmed(-place)
                if widths.macs() <= target:
                    break
        return widths
