"""Differentiable search of widths and depth: logits of a relaxed network learn on samples that its weights do not see.

Liu, Simonyan, Yang, *DARTS*, ICLR 2019 (arXiv 1806.09055), first order, on the space of Dong and Yang, *Network Pruning
via Transformable Architecture Search*, NeurIPS 2019 (TAS, arXiv 1905.09717): each group has a logit for each of eight
widths, 0.3 to 1 of its filters, each removable layer one to stay and one to go. The widths share one convolution whose
channels are scaled by the sum of the masks times the probabilities (FBNetV2, arXiv 2004.05565). Every step
moves the logits (Adam) by the task's loss on samples held out and TAS's price, 2 times the logarithm of the expected
MACs, paid while the likeliest network costs more than the budget and earned while it costs 0.05 of the dense one less;
then the weights by the next batch. The likeliest network trains from scratch by the whole recipe. ``softmax`` is
DARTS's relaxation, ``gumbel`` that of TAS and FBNetV2, its temperature falling from 5 to 0.1 (TAS's code).

Ours: the logits' rate is set by how far it moves them in a whole search, published 3e-4 in 19,500 steps (DARTS); plain
layers are mixed with their input; all widths found are multiplied by one factor that meets the budget. NNI's one-shot
classes do not serve: their mixed operations need a network written in NNI's own modules with one label for each group
of coupled channels, and know no recurrent layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nasbench_grow import GatedNetwork, Space, UserError, extract
from nasbench_grow.baselines.single_path_one_shot import at_cost
from nasbench_grow.contract import (
    Callback,
    ElasticModel,
    Job,
    Method,
    Run,
    check_choices,
    check_positive,
    check_share,
)

Relaxation = Literal["softmax", "gumbel"]

SHARES = torch.arange(3, 11) / 10
"""Widths of a group to choose from."""
TOLERANCE = 0.05
"""Share of the dense MACs that the likeliest network may leave of the budget."""
HOTTEST, COLDEST = 5.0, 0.1
"""Temperatures of the Gumbel softmax, at the beginning and at the end."""


class RelaxedMacs:
    """MACs of a network as a differentiable function of widths that are no whole numbers and of layers half there.

    Args:
        space: the configuration space.
        device: where it computes.
    """

    def __init__(self, space: Space, device: torch.device) -> None:
        self.bypasses = [(index, *layer.bypass) for index, layer in enumerate(space.layers) if layer.bypass]
        self.constant = space.constant_macs
        groups = len(space.groups)
        none = kept_lengths(space, [0.0] * groups)
        one = [kept_lengths(space, [float(other == group) for other in range(groups)]) for group in range(groups)]
        self.lengths = none.to(device)
        self.entries = torch.stack([each - none for each in one]).to(device)  # that a filter of each group adds
        self.rates = torch.tensor([cost.rate for cost in space.costs], device=device)
        owners = [len(space.layers) if cost.layer is None else cost.layer for cost in space.costs]
        self.owners = torch.tensor(owners, device=device)
        self.inside = torch.zeros(len(owners), groups, dtype=torch.bool, device=device)  # groups a cost's layer makes
        for index, _, got in self.bypasses:
            self.inside[:, got] = self.owners == index

    def __call__(self, widths: Tensor, layers: Tensor) -> Tensor:
        """Forward MACs of one input, a scalar, for the groups' widths in filters and the layers' shares in [0, 1]."""
        passed = list(widths)
        for index, given, got in self.bypasses:  # what a plain layer that is not there passes on
            passed[got] = layers[index] * passed[got] + (1 - layers[index]) * passed[given]
        counts = torch.where(self.inside, widths, torch.stack(passed))
        lengths = self.lengths + torch.einsum("cg,gac->ac", counts, self.entries)
        there = torch.cat([layers, layers.new_ones(1)])[self.owners]
        return self.constant + (self.rates * there * lengths.prod(0)).sum()


def kept_lengths(space: Space, counts: list[float]) -> Tensor:
    """Lengths of every cost's axes for so many filters in each group, shape (axes, costs); 1 where it has fewer."""
    lengths = [torch.tensor(each) for _, each in space.kept_costs(counts, [True] * len(space.layers))]
    return nn.utils.rnn.pad_sequence(lengths, padding_value=1.0)


class Relaxed(nn.Module):
    """The dense network with every filter and layer scaled by the probability that it is there.

    Args:
        space: the configuration space.
        dense: the network, whose parameters train.
    """

    def __init__(self, space: Space, dense: nn.Module) -> None:
        super().__init__()
        self.gated = GatedNetwork(space, space.full(), dense)
        self.plain = [  # layers of which no weight scales with their presence
            (number, dense.get_submodule(layer.paths[0]), dense.get_submodule(layer.paths[-1]))
            for number, layer in enumerate(space.layers, space.filters)
            if layer.bypass
        ]

    def forward(self, inputs: Any, gates: Tensor) -> Any:
        """Output under gates, shape (structures,)."""
        hooks = [hook for number, first, last in self.plain for hook in mix(first, last, gates[number])]
        try:
            return self.gated(inputs, gates)
        finally:
            for hook in hooks:
                hook.remove()


def mix(first: nn.Module, last: nn.Module, there: Tensor) -> tuple[RemovableHandle, RemovableHandle]:
    """Lets a plain layer, from its first to its last module, give ``m * g(x) + (1 - m) * x``, with m in ``there``."""
    taken: list[Tensor] = []
    return (
        first.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0])),
        last.register_forward_hook(lambda _, __, output: there * output + (1 - there) * taken.pop()),
    )


class Searching(Callback):
    """Learns the logits beside the weights.

    Args:
        job: the cell.
        model: the dense network.
        settings: of the method.
    """

    def __init__(self, job: Job, model: ElasticModel, settings: DartsWidthSettings) -> None:
        self.job, self.settings, self.space = job, settings, model.space
        device = next(model.network.parameters()).device
        self.relaxed, self.macs = Relaxed(model.space, model.network), RelaxedMacs(model.space, device)
        sizes = torch.tensor([[float(group.size)] for group in self.space.groups])
        self.widths = (sizes * SHARES).round().clamp(min=1).to(device)  # shape (groups, choices)
        self.group = torch.repeat_interleave(sizes.flatten().long()).to(device)  # of each filter
        place = torch.cat([torch.arange(group.size) for group in self.space.groups]).to(device)
        self.masks = (place[:, None] < self.widths[self.group]).float()  # shape (filters, choices)
        self.width_logits = torch.zeros_like(self.widths, requires_grad=True)
        self.layer_logits = torch.zeros(len(self.space.layers), 2, device=device, requires_grad=True)
        logits = [self.width_logits, self.layer_logits]
        self.optimizer = torch.optim.Adam(logits, betas=(0.5, 0.999), weight_decay=settings.weight_decay)
        self.draws = torch.Generator().manual_seed(job.seed)
        self.steps, self.batches = 0, job.search_batches()
        # What a recurrent network carries from batch to batch is another thing for each of the two streams of batches.
        kept = model.network.state_dict()
        self.carried = {name: each for name, each in model.network.named_buffers() if name not in kept}

    def probabilities(self, temperature: float | None) -> tuple[Tensor, Tensor]:
        """Of each group's widths, shape (groups, choices), and of each layer's presence, shape (layers,).

        Args:
            temperature: of a Gumbel softmax, which is drawn; None: the softmax of the logits.
        """
        found = []
        for logits in (self.width_logits, self.layer_logits):
            if temperature is not None:
                noise = torch.empty(logits.shape).exponential_(generator=self.draws).clamp(min=1e-20).log()
                logits = (logits.log_softmax(1) - noise.to(logits.device)) / temperature
            found.append(logits.softmax(1))
        return found[0], found[1][:, 0]

    def gates_of(self, step: int, steps: int) -> Tensor:
        """The gates of a step, shape (structures,)."""
        temperature = HOTTEST + (COLDEST - HOTTEST) * step / steps
        widths, layers = self.probabilities(temperature if self.settings.relaxation == "gumbel" else None)
        return torch.cat([(self.masks * widths[self.group]).sum(1), layers])

    def likeliest(self) -> tuple[Tensor, Tensor]:
        """The widths, shape (groups,), in filters, and the layers, shape (layers,), bool, of the largest logits."""
        widths = self.widths.gather(1, self.width_logits.argmax(1, keepdim=True)).flatten()
        return widths, self.layer_logits[:, 0] >= self.layer_logits[:, 1]

    def price(self) -> Tensor:
        """The logarithm of the expected MACs, to be paid, earned or neither; a scalar."""
        widths, layers = self.probabilities(None)
        expected = self.macs((widths * self.widths).sum(1), layers)
        chosen, there = self.likeliest()
        cost, target = self.macs(chosen, there.float()).detach(), self.job.budget * self.job.dense_macs
        sign = (cost > target).float() - (cost < target - TOLERANCE * self.job.dense_macs).float()
        return self.settings.price * sign * expected.log()

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """A step of the logits; then the gates under which the weights learn."""
        inputs, targets = next(self.batches)
        self.exchange(model.network)
        with self.job.runtime.autocast():
            loss = self.job.loss(self.relaxed(inputs, self.gates_of(step, steps)), targets) + self.price()
        self.exchange(model.network)
        logits = [self.width_logits, self.layer_logits]
        for each, gradient in zip(logits, torch.autograd.grad(loss, logits, allow_unused=True), strict=True):
            each.grad = gradient
        self.optimizer.param_groups[0]["lr"] = self.settings.reach / steps
        self.optimizer.step()
        self.job.meter.step(model.macs, len(inputs))
        self.steps += 1
        self.gates = self.gates_of(step, steps).detach()

    def exchange(self, network: nn.Module) -> None:
        """Puts what the other stream of batches carries in the place of what this one does."""
        for name, other in self.carried.items():
            path, _, key = name.rpartition(".")
            buffers = network.get_submodule(path)._buffers
            now = buffers[key]
            assert now is not None
            buffers[key], self.carried[name] = other, now

    def forward(self, model: ElasticModel, network: nn.Module, inputs: Any) -> Any:
        """Output of the relaxed network."""
        return self.relaxed(inputs, self.gates)

    def log(self, model: ElasticModel) -> dict[str, float]:
        """What the likeliest network costs, as a share of the dense one."""
        widths, layers = self.likeliest()
        return {"likeliest_macs": float(self.macs(widths, layers.float())) / self.job.dense_macs}

    def state_dict(self) -> dict[str, Any]:
        """The logits, their optimizer, and where draws and batches stand."""
        return {
            "logits": [self.width_logits.detach(), self.layer_logits.detach()],
            "optimizer": self.optimizer.state_dict(),
            "draws": self.draws.get_state(),
            "steps": self.steps,
            "carried": self.carried,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        with torch.no_grad():
            for logits, kept in zip([self.width_logits, self.layer_logits], state["logits"], strict=True):
                logits.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        self.draws.set_state(state["draws"])
        self.steps, self.batches = state["steps"], self.job.search_batches(first=state["steps"])
        self.carried = {name: each.to(self.width_logits.device) for name, each in state["carried"].items()}


@dataclass(frozen=True)
class DartsWidthSettings:
    """How the relaxed network is searched."""

    relaxation: Relaxation = "softmax"
    """How choices are mixed: by the ``softmax`` of their logits, or by a ``gumbel`` softmax that is drawn each step."""
    search_share: float = 0.5
    """Epochs of the search, as a share of those that the network found trains for."""
    reach: float = 6.0
    """How far the logits' rate, one for all steps, adds up in a whole search."""
    price: float = 2.0
    """Weight of the logarithm of the expected MACs."""
    weight_decay: float = 1e-3
    """Of the logits."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_choices(self, relaxation=Relaxation)
        check_share(self, "search_share")
        check_positive(self, "reach", "price")
        if self.weight_decay < 0:
            raise UserError(f"weight_decay {self.weight_decay:g} is out of range: give 0 or more")


class DartsWidth(Method):
    """Relaxes widths and depth, learns them by gradients, trains the likeliest network from scratch."""

    name = "darts_width"
    summary = "widths and layers relaxed and learnt by gradients on held-out samples, the likeliest network trained"
    family = "search"
    citation = "Liu et al., DARTS: Differentiable Architecture Search, arXiv 1806.09055; widths as in TAS, 1905.09717"
    Settings = DartsWidthSettings

    def run(self, job: Job) -> Run:
        """The search, the training of what it found."""
        model = job.model()
        space, searching = model.space, Searching(job, model, self.settings)
        yield from job.fit(model, searching, epochs=self.settings.search_share * job.epochs, searching=True)
        widths, layers = (each.detach().cpu() for each in searching.likeliest())
        sizes = torch.tensor([group.size for group in space.groups])
        present = at_cost(space, widths / sizes, layers, job.budget * job.dense_macs, job.granularity)
        model = job.model(extract(space, job.build(), present))
        yield from job.fit(model)
        return model.network
