"""The growing method with the ``default`` preset."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from torch import nn

from nasbench_grow.contract import settings as variants
from nasbench_grow.contract.method import Job, Method
from nasbench_grow.contract.task import Batch
from nasbench_grow.growing.grower import Grower
from nasbench_grow.growing.presets import Preset, as_preset


class Grow(Method):
    """Grows a network from one filter a layer to the budget while it trains."""

    name = "grow"
    summary = "grow filters and layers from a one-filter seed while training, at an exactly solved price"
    source = "Yuan, Savarese, Maire, arXiv 2007.15353, with the default preset of nasbench_grow.growing.presets"
    version = 3
    preset: ClassVar[str | Preset] = "default"
    granularity: ClassVar[int | None] = None
    """Widths are rounded to multiples of this; None: of what the set-up says."""

    def __init__(self, job: Job) -> None:
        self.grower = Grower(
            job.build(),
            job.example,
            budget=job.budget,
            epochs=job.epochs,
            steps_per_epoch=job.steps_per_epoch,
            loss=job.loss,
            optimizer=job.recipe.optimizer,
            learning_rate_at=lambda step: job.learning_rate(),
            preset=self.preset,
            granularity=self.granularity or job.granularity,
            seed=job.seed,
            meter=job.meter,
            clock=job.clock,
            timing=job.timing,
            accelerate=job.accelerate,
        )

    @classmethod
    def variant(cls, settings: Mapping[str, str]) -> type[Self]:
        """Other hyper-parameters: any field of :class:`nasbench_grow.growing.presets.Preset`, and ``granularity``."""
        preset = as_preset(cls.preset)
        kinds = {**variants.kinds(preset), "granularity": int}
        values = variants.read(cls.name, settings, kinds, examples={**vars(preset), "granularity": 8})
        granularity = values.get("granularity")
        if granularity is not None and granularity < 1:
            raise variants.refused(cls.name, "granularity", granularity, "a whole number from 1", 8)
        changes = {setting: value for setting, value in values.items() if setting != "granularity"}
        attributes = {
            "__module__": cls.__module__,
            "name": variants.spell(cls.name, values),
            "preset": dataclasses.replace(preset, **changes),
            "budget_of": changes.get("cost", preset.cost),
            "granularity": granularity,
        }
        return type(cls.__name__, (cls,), attributes)

    def train_epoch(self, batches: Iterable[Batch]) -> float:
        """One epoch of growing."""
        return self.grower.train(batches)

    def network(self) -> nn.Module:
        """The sampled network as it is now."""
        return self.grower.network()

    def in_training(self) -> nn.Module:
        """The sub-network without its gates."""
        return self.grower.next_network()

    def finish(self) -> nn.Module:
        """The hardened network."""
        return self.grower.finish()

    def log(self) -> dict[str, float]:
        """Scheduled and actual cost as shares of the dense MACs."""
        return self.grower.log()

    def state_dict(self) -> dict[str, Any]:
        """The grower's state."""
        return self.grower.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the epoch that ``state`` was taken at."""
        self.grower.load_state_dict(state)
