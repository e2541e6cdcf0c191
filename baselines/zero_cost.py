"""Zero-cost proxies: many random networks of the budget are ranked before any training, and the best one is trained.

Abdelfattah, Mehrotra, Dudziak, Lane, *Zero-Cost Proxies for Lightweight NAS* (arXiv 2101.08134). Two scores:
``synflow`` (Tanaka, Kunin, Yamins, Ganguli, arXiv 2006.05467; summed over all weights as in 2101.08134, section 3.2):
all weights are replaced by their absolute values and R is the sum of the outputs for an input of ones; the score is the
sum of |dR/dw * w| over the weights of convolutions and linear layers. In double precision, without batch
normalisations, as in the code of Abdelfattah et al. Ours: bounded activations (ReLU6) are left out as well, because
such sums reach their bounds, beyond which no gradient flows; ReLU is the identity there anyway.
``naswot`` (Mellor, Turner, Storkey, Crowley, arXiv 2006.04647): log |det K|, where K counts for each two samples of a
batch, over all ReLUs, on how many of them both are active or both are not. Batch of 128, network in training mode, as
in their code. Ours: every ReLU of the forward pass counts, also one that is no module of its own.

Published (NASWOT): 10 to 1,000 networks drawn; here ``candidates`` are drawn as ``random`` draws its one. Both scores
rise with the number of weights and of units, and networks of the same MACs do differ in those.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nasbench_grow import Space, UserError, discover, extract
from nasbench_grow.baselines.random import first_that_fits, random_keys
from nasbench_grow.contract import FixedNetwork, Job, Task, check_choices, check_positive

Score = Literal["synflow", "naswot"]

LEFT_OUT = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.Hardtanh)
"""Of synaptic flow: normalisations and bounded activations; ReLU6 is a hardtanh."""
RELUS = {torch.ops.aten.relu, torch.ops.aten.relu_, torch.ops.aten.hardtanh, torch.ops.aten.hardtanh_}
"""As PyTorch carries them out: hardtanh is what ReLU6 comes to."""


@dataclass(frozen=True)
class Settings:
    """How networks are ranked, and how many."""

    score: Score = "synflow"
    """What a network is worth before it is trained."""
    candidates: int = 100
    """Random networks that are ranked."""
    samples: int = 128
    """Training samples that ``naswot`` compares; ``synflow`` needs none."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_choices(self, score=Score)
        check_positive(self, "candidates")
        if self.samples < 2:
            raise UserError(f"samples {self.samples} is out of range: they are compared, so give 2 or more")


def synflow(network: nn.Module, example: Tensor) -> float:
    """Synaptic flow through all weights of convolutions and linear layers; the network stays as it is.

    Args:
        network: any network whose activations pass on what is positive.
        example: one input; only its shape counts.
    """
    linear = copy.deepcopy(network).double().eval()
    for name, module in list(linear.named_modules()):
        if isinstance(module, LEFT_OUT):
            linear.set_submodule(name, nn.Identity())
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.abs_()
    linear(torch.ones_like(example, dtype=torch.float64)).sum().backward()
    weights = [module.weight for module in linear.modules() if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))]
    return float(sum((weight.detach() * weight.grad).abs().sum() for weight in weights if weight.grad is not None))


class Agreement(TorchDispatchMode):
    """Counts, for every two samples of the batches that pass inside, the ReLUs on whose side of zero they agree.

    Attributes:
        kernel: shape (batch, batch), float64; None: there was no ReLU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernel: Tensor | None = None

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        """Looks at what a ReLU takes in, before it may be overwritten."""
        if function.overloadpacket in RELUS:
            active = (arguments[0].flatten(1) > 0).float()
            agreed = active @ active.T + (1 - active) @ (1 - active).T
            self.kernel = agreed.double() if self.kernel is None else self.kernel + agreed
        return function(*arguments, **(named or {}))


def naswot(network: nn.Module, inputs: Tensor) -> float:
    """Logarithm of the kernel's determinant: how differently the samples pass through the ReLUs.

    Args:
        network: put into training mode; its running statistics move.
        inputs: a batch of data.
    """
    with torch.no_grad(), Agreement() as agreement:
        network.train()(inputs)
    assert agreement.kernel is not None
    return float(torch.linalg.slogdet(agreement.kernel).logabsdet)


class ZeroCost(FixedNetwork):
    """Trains the random network that looks best untrained."""

    name = "zero_cost"
    summary = "the best of 100 random networks by a score at initialisation, trained from the start"
    family = "search"
    citation = "Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, arXiv 2101.08134"
    Settings = Settings

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Networks with recurrent layers, and without a ReLU."""
        if any(isinstance(module, nn.RNNBase) for module in network.modules()):
            return "the backbone is recurrent, and the scores are of networks with rectified activations"
        modes = [(module, module.training) for module in network.modules()]
        with torch.no_grad(), Agreement() as agreement:
            network.eval()(task.example().to(next(network.parameters()).device))
        for module, mode in modes:
            module.training = mode
        return None if agreement.kernel is not None else "the backbone has no rectified activation to be scored by"

    def choose(self, job: Job) -> nn.Module:
        """The candidate of the highest score, with its initial weights."""
        dense = job.build()
        space = discover(dense, job.example)
        best = max(self.candidates(job, space), key=lambda present: self.score(job, space, dense, present))
        return extract(space, dense, best)

    def candidates(self, job: Job, space: Space) -> Iterator[Tensor]:
        """Random networks of the budget, other ones for each seed; the first of seed 0 is the one that ``random``
        trains."""
        limit = job.budget * space.macs(space.full())
        for number in range(self.settings.candidates):
            keys = random_keys(space, job.seed * self.settings.candidates + number)
            yield first_that_fits(job, space, keys, limit, "network")

    def score(self, job: Job, space: Space, dense: nn.Module, present: Tensor) -> float:
        """What a candidate is worth with the dense network's initial weights; billed."""
        network = extract(space, dense, present)
        if self.settings.score == "naswot":
            batches = job.calibrate(network, self.settings.samples)
            return naswot(network, torch.cat([inputs for inputs, _ in batches]))
        with job.meter.spending_on("search"):
            job.meter.add(3 * space.macs(present))  # one sample, forward and backward
        return synflow(network, job.example)
