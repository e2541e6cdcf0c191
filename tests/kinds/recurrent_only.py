"""A method whose idea has no meaning for most networks."""

from __future__ import annotations

from torch import nn

from nasbench_grow.contract import FixedNetwork, Job, Task


class RecurrentOnly(FixedNetwork):
    name, summary, family = "kind-recurrent-only", "for recurrent networks", "pruning"

    def skip(self, task: Task, network: nn.Module) -> str | None:
        recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
        return None if recurrent else "the backbone has no recurrent layer"

    def choose(self, job: Job) -> nn.Module:
        return job.build()
