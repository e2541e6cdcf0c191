"""A budget in milliseconds: what share it is of the time of the dense network's training step on this device."""

from __future__ import annotations

from nasbench_grow.base.errors import UserError
from nasbench_grow.harness import registry
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.step_time import StepTime, Timing, share_of_dense


def share_of_cell(
    budget_ms: float, *, method: str, task: str, backbone: str, setup: str, train_samples: int | None = None
) -> float:
    """The budget of a cell that may take so many milliseconds a step, as the share that its record keeps.

    A step is one of the batch that the cell trains on, which few training samples make smaller.

    Raises:
        UserError: an unknown name, a method whose budget is no time, or a time out of range.
    """
    found = registry.method(method)
    if found.budget_of != "time":
        raise UserError(
            f"budget {budget_ms:g}ms is a time, but that of method {str(found)!r} is a share of the dense network's "
            "MACs; give a share, or the method 'grow[cost=time]'"
        )
    chosen, data = registry.usable_setup(setup), registry.task(task)()
    chosen.activate()  # the layers are timed as the run will compute them
    network = chosen.place(registry.build_backbone(backbone, data))
    example = chosen.place(data.example())
    timing = Timing(data.recipe.for_samples(train_samples).batch_size, chosen.precision, chosen.autocast)
    return share_of_dense(budget_ms, StepTime(discover(network, example), network, example, timing).dense_ms)
