"""What a method may change about training: the moments of the one training loop at which it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from nasbench_grow.base.calling import call
from nasbench_grow.structure.elastic import ElasticModel

Loss = Callable[[Any, Any], Tensor]


class Callback:
    """Plain training; a subclass changes what it must.

    The moments of a step, in order: :meth:`before_step`, :meth:`loss` (which calls :meth:`forward`), :meth:`penalty`,
    the backward pass, :meth:`after_backward`, the optimizer's step, :meth:`after_step`. After an epoch:
    :meth:`after_epoch`.

    Whatever changes here while training belongs into :meth:`state_dict`: it is what a killed run is resumed from.
    """

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """Called before a batch is drawn; any restructuring is due now, and gradients that are left are dropped.
        ``step`` of ``steps`` of the schedule are done."""

    def forward(self, model: ElasticModel, network: nn.Module, inputs: Any) -> Any:
        """The output that is trained. ``network`` computes what ``model.network`` does, perhaps faster."""
        return call(network, inputs)

    def loss(self, model: ElasticModel, network: nn.Module, inputs: Any, targets: Any, loss: Loss) -> Tensor:
        """The training loss of a batch, a scalar; ``loss`` is the task's."""
        return loss(self.forward(model, network, inputs), targets)

    def penalty(self, model: ElasticModel) -> Tensor | None:
        """What the objective adds to the loss (a scalar); None: nothing. It does not show in the reported loss."""
        return None

    def after_backward(self, model: ElasticModel) -> None:
        """Called when every parameter has its gradient and before the optimizer moves it."""

    def after_step(self, model: ElasticModel) -> None:
        """Called when the optimizer has moved the parameters: to project, clamp or zero them."""

    def step_macs(self, model: ElasticModel) -> int:
        """Forward MACs of one input in this step, which are counted three times (forward and backward pass)."""
        return model.macs

    def after_epoch(self, model: ElasticModel) -> None:
        """Called after the last step of an epoch."""

    def evaluated(self, model: ElasticModel) -> nn.Module:
        """The network as it stands, to be judged: an ordinary module."""
        return model.network

    def log(self, model: ElasticModel) -> dict[str, float]:
        """Figures to keep with the epoch, e.g. the scheduled cost as a share of the dense one."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What changes while training: tensors, numbers, strings, lists and dicts of them only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave, in a fresh instance."""
