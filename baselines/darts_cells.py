"""DARTS on cells, for reference: a network of cells that no dense backbone holds, in NNI's search space of that name.

Liu, Simonyan, Yang, *DARTS: Differentiable Architecture Search*, ICLR 2019 (arXiv 1806.09055). On every edge of a cell
all operations are mixed by the softmax of the edge's own alphas (equation 2), "none" among them. In turn, alphas take a
step on samples that weights do not learn from, and weights one on the others: first order (section 2.3, xi = 0), the
only one that NNI has. At the end every node keeps two edges from different nodes, those whose best operation but "none"
has the largest weight (section 2.4), and the network of such cells is trained anew. Space and mixed operations are
NNI's (``nni.nas.hub.pytorch.DARTS``), the training is the harness's own, so that it is counted and can be resumed; the
weights are compared as the paper says, where NNI's export compares alphas of different edges as they are.

Published: search with 8 cells of 16 channels for 50 epochs on one half of the samples, Adam for the alphas at 3e-4,
betas (0.5, 0.999), decay 1e-3, gradients of weights clipped at 5; training with 20 cells of 36 channels. Ours: a tenth
of the samples for the alphas, the recipe for both trainings (no cutout, auxiliary head or path dropout), the alphas'
learning rate times steps as in 19,500 published steps, as runs are shorter here. NNI's operations learn scales of their
normalisations in the search, and none follows pooling. The budget means nothing to it: its MACs stand beside others'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow import UserError
from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Run, Task, check_positive

PUBLISHED_STEPS = 50 * 25_000 // 64
"""Of the search on CIFAR-10."""
BETAS, DECAY, CLIP = (0.5, 0.999), 1e-3, 5.0
LARGE = 64
"""Images above this size are first brought to an eighth of it, as the space does for ImageNet."""

Sample = dict[str, Any]
"""What NNI calls the choices that make a network of a space."""


@dataclass(frozen=True)
class Settings:
    """Sizes of the two networks, and how the search trains."""

    cells: int = 20
    """Of the network that is returned."""
    width: int = 36
    """Channels of an operation in its first cells; they double twice."""
    search_cells: int = 8
    """Of the supernet."""
    search_width: int = 16
    """Channels of an operation in the supernet's first cells."""
    search_share: float = 1.0
    """Epochs of the search, as a share of the run's."""
    alpha_rate: float = 3e-4
    """Learning rate of the alphas in a search of the published length."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_positive(self, "search_share", "alpha_rate")
        for name in ("cells", "search_cells"):
            if getattr(self, name) < 3:
                raise UserError(
                    f"{name} {getattr(self, name)} is out of range: give 3 or more, one for each resolution"
                )
        for name in ("width", "search_width"):
            if getattr(self, name) < 2 or getattr(self, name) % 2:
                raise UserError(f"{name} {getattr(self, name)} is out of range: give an even number, 2 or more")


def space(job: Job, width: int, cells: int) -> Any:
    """NNI's space of the job's resolution, channels and classes; inside a ``model_context`` the network it says."""
    from nni.nas.hub.pytorch import DARTS

    with torch.no_grad():
        outputs = job.build().eval()(job.example).shape[1]
    shape = job.example.shape
    made = DARTS(width=width, num_cells=cells, dataset="imagenet" if shape[-1] > LARGE else "cifar")
    stem = made.stem0 if shape[-1] > LARGE else made.stem
    stem[0] = nn.Conv2d(shape[1], stem[0].out_channels, 3, stride=stem[0].stride, padding=1, bias=False)
    made.classifier = nn.Linear(made.classifier.in_features, outputs)
    return made


def supernet(job: Job, settings: Settings) -> nn.Module:
    """All cells with all operations, mixed."""
    from nni.nas.oneshot.pytorch.supermodule.operation import MixedBatchNorm2d, MixedConv2d
    from nni.nas.strategy import DARTS

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        mixed: nn.Module = DARTS().mutate_model(space(job, settings.search_width, settings.search_cells))
    # NNI's work out at each call which part of their weights the widths ask for, though none varies here: a third of
    # the time of a small supernet's forward pass, and half of that in which it is traced for its MACs.
    plain = {MixedConv2d: nn.Conv2d, MixedBatchNorm2d: nn.BatchNorm2d}
    for module in mixed.modules():
        if type(module) in plain:
            module.__class__ = plain[type(module)]
    return mixed.to(job.example.device)


def network_of(sample: Sample, job: Job, settings: Settings) -> nn.Module:
    """The network to train, all cells as the sample says."""
    from nni.nas.nn.pytorch import model_context

    with torch.random.fork_rng(devices=[]), model_context(sample):
        torch.manual_seed(job.seed)
        network: nn.Module = space(job, settings.width, settings.cells)
    return network.to(job.example.device)


def cells_of(network: nn.Module) -> list[Any]:
    """The mixed cells of a supernet, as NNI makes them."""
    return [module for module in network.modules() if hasattr(module, "op_names")]


def alphas_of(network: nn.Module) -> dict[str, nn.Parameter]:
    """The alphas of every edge, by cell and edge (``normal/3_1``: from node 1 to node 3), each shared by all cells of a
    kind; the last entry of each is "none"."""
    return {edge: alpha for cell in cells_of(network) for edge, alpha in cell._arch_alpha.items()}


def weights_of(network: nn.Module) -> nn.ParameterList:
    """All parameters of a supernet but the alphas."""
    alphas = {id(alpha) for alpha in alphas_of(network).values()}
    return nn.ParameterList(parameter for parameter in network.parameters() if id(parameter) not in alphas)


def discretise(alphas: Mapping[str, Tensor], operations: list[str]) -> Sample:
    """Of every node its two strongest edges, each with its strongest operation (section 2.4).

    Args:
        alphas: of every edge, shape (operations + 1,).
        operations: their names, without "none".
    """
    nodes: dict[str, list[tuple[float, int, str]]] = {}
    for edge, alpha in alphas.items():
        node, _, origin = edge.rpartition("_")
        weights = alpha.detach().softmax(0)[:-1]
        best = int(weights.argmax())
        nodes.setdefault(node, []).append((float(weights[best]), int(origin), operations[best]))
    sample: Sample = {}
    for name, edges in nodes.items():
        cell, _, number = name.rpartition("/")
        strongest = sorted(edges, key=lambda each: -each[0])[:2]
        for place, (_, source, operation) in enumerate(strongest):
            sample[f"{cell}/op_{number}_{place}"] = operation
            sample[f"{cell}/input_{number}_{place}"] = [source]
    return sample


class Relaxed(Callback):
    """Before each step of the weights one of the alphas, on samples that the search is judged on.

    Args:
        job: the cell.
        model: the supernet.
        rate: learning rate of the alphas.
    """

    def __init__(self, job: Job, model: ElasticModel, rate: float) -> None:
        self.job, self.steps = job, 0
        self.alphas, self.weights = list(alphas_of(model.network).values()), list(weights_of(model.network))
        self.optimizer = torch.optim.Adam(self.alphas, lr=rate, betas=BETAS, weight_decay=DECAY)
        self.batches = job.search_batches()

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """The step of the alphas; it is billed as one of the weights is."""
        inputs, targets = next(self.batches)
        with self.job.runtime.autocast():
            loss = self.job.loss(model.network(inputs), targets)
        gradients = torch.autograd.grad(loss, self.alphas)
        for alpha, gradient in zip(self.alphas, gradients, strict=True):
            alpha.grad = gradient
        self.optimizer.step()
        self.job.meter.step(model.macs, len(inputs))
        self.steps += 1

    def after_backward(self, model: ElasticModel) -> None:
        """Clips the gradients of the weights."""
        nn.utils.clip_grad_norm_(self.weights, CLIP)

    def log(self, model: ElasticModel) -> dict[str, float]:
        """How undecided the edges are: 1 where all operations weigh the same, 0 where one has all the weight."""
        entropies = [torch.distributions.Categorical(logits=alpha.detach()).entropy() for alpha in self.alphas]
        return {"undecided": float(torch.stack(entropies).mean() / torch.tensor(len(self.alphas[0])).log())}

    def state_dict(self) -> dict[str, Any]:
        """The alphas' optimizer and where the samples stand; the alphas are parameters of the supernet."""
        return {"steps": self.steps, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self.steps = state["steps"]
        self.batches = self.job.search_batches(first=self.steps)
        self.optimizer.load_state_dict(state["optimizer"])


class DartsCells(Method):
    """Searches cells by gradient, then trains the network of those cells."""

    name = "darts_cells"
    summary = "cells searched by gradient descent in NNI's DARTS space, for reference: no sub-network of the backbone"
    family = "search"
    citation = "Liu et al., DARTS: Differentiable Architecture Search, arXiv 1806.09055"
    Settings = Settings
    uses_budget = aims_at_budget = False

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """All but the classification of images; all where NNI is not installed."""
        if len(task.input_shape) != 3 or task.output_shape() != (task.num_classes,):
            return "its cells are for the classification of images"
        missing = [name for name in ("nni", "pytorch_lightning") if find_spec(name) is None]
        return f"its search space is NNI's, and {missing[0]} is not installed" if missing else None

    def run(self, job: Job) -> Run:
        """The search and the training of what it found."""
        settings: Settings = self.settings
        rest, _ = job.search_splits
        epochs = settings.search_share * job.epochs
        steps = max(1, round(epochs * rest.steps_per_epoch(job.recipe.batch_size)))
        mixed = supernet(job, settings)
        model = job.model(mixed, optimizer=lambda network: job.recipe.optimizer(weights_of(network)))
        relaxed = Relaxed(job, model, settings.alpha_rate * PUBLISHED_STEPS / steps)
        yield from job.fit(model, relaxed, epochs=epochs, searching=True)
        sample = discretise(alphas_of(mixed), cells_of(mixed)[0].op_names)
        model = job.model(network_of(sample, job, settings))
        yield from job.fit(model)
        return model.network
