"""The whole backbone, trained no longer than the multiply-accumulates last that ``grow`` trained with.

Whoever saves training saves it against this, too: the recipe's schedule, warm-up and decay included, compressed into
fewer steps.
"""

from __future__ import annotations

from nasbench_grow import UserError
from nasbench_grow.contract import Job, Method, Run


class DenseShort(Method):
    """Trains the full network by a shorter schedule."""

    name = "dense_short"
    summary = "the whole network, stopped at the training MACs that grow used"
    family = "control"
    aims_at_budget = False

    @property
    def source(self) -> str:
        """The cell whose training MACs are matched; nothing else is taken of it, so nothing is billed."""
        return "grow"

    def run(self, job: Job) -> Run:
        """Plain training."""
        model = job.model()
        grown = job.source.record
        steps = grown["train_macs"] * job.total_steps // grown["dense_train_macs"]
        if steps < 1:
            raise UserError("dense_short has not one step: grow used fewer training MACs; train for more epochs")
        yield from job.fit(model, epochs=steps / job.steps_per_epoch, span=(0.0, 1.0))
        return model.network
