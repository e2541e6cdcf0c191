"""ThiNet: a filter goes where the next layer's output misses it least; layer by layer, with fine-tuning between.

Luo, Wu, Lin, *ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression*, ICCV 2017 (arXiv 1707.06342):
of training images, some entries of the next layer's output are drawn, each a sum of what the input channels contribute
(10 images a class and 10 entries an image; here ``images`` in all). Channels whose contributions add up to the least
squared sum are removed greedily, those left are rescaled by least squares, and the network is fine-tuned for an epoch
or two before the next layer, longer after the last. Here the layers share ``pruning_share`` of the run's epochs, in the
one schedule, at its learning rate.

Every layer keeps the same share. As in the paper the outputs of residual blocks stay whole, down to 30 % of the filters
inside (its ThiNet-30); where the budget asks for less, outputs keep the same share as all others. Ours: channels with
several consumers go by the sum of the errors, each relative to the squared output without a filter gone, and are
rescaled for each consumer apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow import select, uniform_keys
from nasbench_grow.contract import (
    Callback,
    ElasticModel,
    Job,
    Pruning,
    PruningSettings,
    Run,
    Task,
    check_positive,
    check_share,
    check_within_run,
)

INSIDE = 0.3
"""Share of their filters that the insides of blocks keep at least, before the blocks' outputs are pruned too."""


@dataclass(frozen=True)
class ThiNetSettings(PruningSettings):
    """When layers are pruned, and from how much data."""

    pruning_share: float = 0.25
    """Share of the epochs over which the layers are pruned, with fine-tuning between."""
    images: int = 512
    """Training images that each layer is pruned by."""
    entries: int = 10
    """Entries of the output that are drawn from each image."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_share(self, "pruning_share")
        check_positive(self, "images", "entries")
        check_within_run(self, "dense_share", "pruning_share")


def least_missed(gram: Tensor, removed: int) -> list[int]:
    """Which channels to remove: greedily those whose contributions, added up, have the least squared sum.

    Args:
        gram: inner products of the channels' contributions, shape (channels, channels).
        removed: how many.
    """
    gone: list[int] = []
    cross, own = torch.zeros(len(gram), dtype=gram.dtype), gram.diagonal().clone()
    for _ in range(removed):
        # |s + x|^2 = |s|^2 + 2 s.x + |x|^2, where s is the sum of what is gone
        worst = int((2 * cross + own).argmin())
        gone.append(worst)
        cross += gram[worst]
        own[worst] = torch.inf
    return gone


def rescaling(gram: Tensor, kept: Tensor) -> Tensor:
    """The factors on the kept channels' contributions whose sum is nearest to the sum of all, shape (kept,)."""
    return torch.linalg.pinv(gram[kept][:, kept], hermitian=True) @ gram[kept].sum(1)


def widths_to_keep(model: ElasticModel, job: Job) -> Tensor:
    """Structures of the budget's size, of which only the widths count: the same share of every group, but all of the
    channels that several layers add up to, where the others can then keep :data:`INSIDE`."""
    space, keys, limit = model.space, uniform_keys(model.space), job.budget * job.dense_macs
    inner = torch.ones(space.filters, dtype=torch.bool)
    for group in space.groups:
        inner[group.structures] = writers(model, group.structures) <= 1
    whole = torch.cat([~inner, torch.zeros(len(space.layers), dtype=torch.bool)])
    present = select(space, keys.masked_fill(whole, torch.inf), limit, job.granularity)
    if space.macs(present) <= limit and present[: space.filters][inner].float().mean() >= INSIDE:
        return present
    return select(space, keys, limit, job.granularity)


def writers(model: ElasticModel, structures: slice) -> int:
    """How many layers of the dense network bring the channels of a group about; a depthwise one only passes them on."""
    found, consumers = set(), set(model.space.consumers)
    for (name, dim), owner in model.space.owners.items():
        module = model.dense.get_submodule(name.rpartition(".")[0])
        creates = len(model.space.shapes[name]) > 1 and (name, dim) not in consumers
        inside = (owner >= structures.start) & (owner < structures.stop)
        if creates and getattr(module, "groups", 1) == 1 and inside.any():
            found.add(name)
    return len(found)


def contributions(module: nn.Module, inputs: Tensor, entries: int, draws: torch.Generator) -> Tensor:
    """What each input channel of a convolution or linear layer contributes to some entries of its output.

    Args:
        inputs: shape (batch, channels, height, width), or (..., channels) for a linear layer.
        entries: how many to draw per sample of the batch.
        draws: of the entries.

    Returns:
        shape (batch x entries, channels): what adds up, with the bias, to the entries that were drawn.
    """

    def drawn(below: int) -> Tensor:
        return torch.randint(below, (len(inputs) * entries,), generator=draws).to(inputs.device)

    assert isinstance(module, (nn.Conv2d, nn.Linear))
    filters = module.weight[drawn(len(module.weight))]
    if isinstance(module, nn.Linear):
        rows = inputs.flatten(0, -2)
        return rows[drawn(len(rows))] * filters
    assert not isinstance(module.padding, str)
    (height, width), (down, right) = module.padding, module.stride
    padded = F.pad(inputs, (width, width, height, height))
    reach = [(size - 1) * step for size, step in zip(module.kernel_size, module.dilation, strict=True)]
    tops = down * drawn((padded.shape[2] - reach[0] - 1) // down + 1)
    lefts = right * drawn((padded.shape[3] - reach[1] - 1) // right + 1)
    rows = tops[:, None] + torch.arange(0, reach[0] + 1, module.dilation[0], device=inputs.device)
    columns = lefts[:, None] + torch.arange(0, reach[1] + 1, module.dilation[1], device=inputs.device)
    samples = torch.arange(len(inputs), device=inputs.device).repeat_interleave(entries)
    patches = padded[samples[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (entries, ., ., channels)
    return (patches.permute(0, 3, 1, 2) * filters).sum((2, 3))


class Thinning(Callback):
    """Prunes one group of channels after the other, evenly over a part of the schedule.

    Args:
        job: the cell.
        model: the dense model, trained.
        settings: of the method.
    """

    def __init__(self, job: Job, model: ElasticModel, settings: ThiNetSettings) -> None:
        self.job, self.settings, self.done = job, settings, 0
        target = widths_to_keep(model, job)
        self.removed = {
            number: removed
            for number, group in enumerate(model.space.groups)
            if (removed := group.size - int(target[group.structures].sum()))
        }

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """Prunes the groups that are due."""
        progress = step / steps
        if self.settings.start == "trained":  # the schedule's own steps are those after the dense share
            progress = self.settings.dense_share + (1 - self.settings.dense_share) * progress
        self.prune(model, (progress - self.settings.dense_share) / self.settings.pruning_share)

    def prune(self, model: ElasticModel, progress: float) -> None:
        """Prunes the groups that are due when this share of the pruning is over."""
        while self.done < len(self.removed) and self.done <= progress * len(self.removed):
            number = list(self.removed)[self.done]
            self.thin(model, number)
            self.done += 1

    def thin(self, model: ElasticModel, number: int) -> None:
        """Removes channels of a group that is still whole, and rescales the others in each consumer."""
        group, grams = model.space.groups[number], self.grams(model, number)
        errors = [gram / gram.sum().clamp(min=1e-12) for gram in grams.values()]  # the sum is |y|^2
        total = torch.stack(errors).sum(0) if errors else torch.zeros(group.size, group.size, dtype=torch.float64)
        gone = torch.zeros(group.size, dtype=torch.bool)
        gone[least_missed(total, self.removed[number])] = True
        kept = torch.nonzero(~gone).flatten()
        for name, gram in grams.items():
            weight = model.network.get_parameter(name)
            factors = torch.zeros(group.size, dtype=gram.dtype)
            factors[kept] = rescaling(gram, kept)
            inside, channels = inputs_of(model, group.structures, name)
            with torch.no_grad():
                scaled = factors[channels].to(weight).view(-1, *[1] * (weight.ndim - 2))
                weight[:, inside.to(weight.device)] *= scaled
        present = model.structures.clone()
        present[group.start + torch.nonzero(gone).flatten()] = False
        model.resize(present)

    def grams(self, model: ElasticModel, number: int) -> dict[str, Tensor]:
        """For each weight that takes in the group: the inner products of what its channels contribute to entries of the
        output, shape (channels, channels), from calibration images."""
        group, space = model.space.groups[number], model.space
        draws = torch.Generator().manual_seed(self.job.seed + number)
        found: dict[str, Tensor] = {}
        present = dict(model.network.named_parameters())
        consumers = {
            name: inputs_of(model, group.structures, name)
            for name, dim in space.consumers
            if dim == 1 and name in present
        }
        hooks = []

        def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            inside, channels = consumers[name]
            parts = contributions(module, inputs[0], self.settings.entries, draws)[:, inside.to(inputs[0].device)]
            sums = parts.new_zeros(len(parts), group.size).index_add_(1, channels.to(parts.device), parts).double()
            found[name] = found.get(name, 0) + (sums.T @ sums).cpu()

        for name, (inside, _) in consumers.items():
            if len(inside):
                module = model.network.get_submodule(name.rpartition(".")[0])
                hooks.append(module.register_forward_hook(partial(note, name)))
        model.network.eval()
        with torch.no_grad():
            for inputs, _ in self.job.calibrate(model.network, self.settings.images):
                model.network(inputs)
        model.network.train()
        for hook in hooks:
            hook.remove()
        return found

    def state_dict(self) -> dict[str, Any]:
        """How many groups are pruned."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it up."""
        self.done = state["done"]


def inputs_of(model: ElasticModel, structures: slice, name: str) -> tuple[Tensor, Tensor]:
    """Which input channels of a weight of the network belong to a group, and of which of its filters each is."""
    owner = model.space.owners[name, 1]
    kept = model.space.kept(model.structures, (name, 1))
    numbers = owner if kept is None else owner[kept]
    inside = torch.nonzero((numbers >= structures.start) & (numbers < structures.stop)).flatten()
    return inside, numbers[inside] - structures.start


class ThiNet(Pruning):
    """Prunes layer by layer what the next layer misses least."""

    name = "thinet"
    summary = "remove layer by layer the filters that the next layer's output misses least, fine-tune between and after"
    citation = "Luo et al., ThiNet: A Filter Level Pruning Method, arXiv 1707.06342"
    Settings = ThiNetSettings

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Consumers must be convolutions or linear layers whose inputs can be seen."""
        for module in network.modules():
            if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
                return "what recurrent and attention weights take in is not the input of a layer that could be sampled"
            if isinstance(module, nn.modules.conv._ConvNd) and not _is_plain(module):
                return "the next layer's output is sampled of plain and depthwise 2-d convolutions only"
        return None

    def run(self, job: Job) -> Run:
        """Dense training, or what another cell trained; then pruning and training in turn."""
        model = yield from self.dense(job)
        thinning = Thinning(job, model, self.settings)
        yield from self.tune(job, model, thinning, since=self.settings.dense_share)
        thinning.prune(model, 1.0)  # those for which no step was left
        return model.network


def _is_plain(module: nn.modules.conv._ConvNd) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.groups in (1, module.in_channels)
        and not isinstance(module.padding, str)
        and module.padding_mode == "zeros"
    )
