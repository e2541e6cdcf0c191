"""One NNI trial of a search over widths and layers: brings the architecture that it is given to the budget, trains it.

Without NNI, ``python sweeps/architecture_trial.py`` trains the dense network's proportions at the budget.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

import nni
import torch

from nasbench_grow.base import randomness
from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import Job
from nasbench_grow.growing.nni_space import BUDGET, GrowableSpace
from nasbench_grow.harness import registry

HYPERBAND = "TRIAL_BUDGET"
"""What NNI's Hyperband calls the length of a trial, here in epochs."""


def main() -> int:
    """Train the architecture and report how good it is on samples that it did not train on; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--backbone", default="cifar_resnet20")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--epochs", type=float, default=3, help="of a trial; NNI's Hyperband says it itself")
    parser.add_argument("--train-samples", type=int)
    parser.add_argument("--seed", type=int, default=0)
    try:
        score = run(nni.get_next_parameter() or {}, **vars(parser.parse_args()))
    except UserError as error:
        print(f"architecture_trial: error: {error}", file=sys.stderr)
        return 2
    nni.report_final_result(score)
    return 0


def run(
    chosen: Mapping[str, Any],
    *,
    task: str,
    backbone: str,
    budget: float,
    epochs: float,
    seed: int,
    train_samples: int | None = None,
) -> float:
    """The score of a trial, higher is better, on a tenth of the training samples; NNI is told the loss of its epochs.

    Args:
        chosen: width of each channel group and presence of each layer; what is missing is as in the dense network.
        task, backbone, budget, epochs, seed, train_samples: as of a cell.

    Raises:
        UserError: an unknown name, or a budget that cannot be had.
    """
    data = registry.task(task)()
    splits = data.load(torch.device("cpu"), train_samples)
    randomness.seed_all(seed)
    space = GrowableSpace(registry.build_backbone(backbone, data), data.example(), budget)
    dense = space.sample_of(space.structures.full())
    unknown = sorted(chosen.keys() - dense.keys() - {HYPERBAND})
    if unknown:
        raise UserError(f"{backbone} has no {unknown[0]!r}; give the search space of this backbone")
    widths = {name: value if isinstance(value, bool) else int(value) for name, value in chosen.items()}
    length = float(widths.pop(HYPERBAND, epochs))
    network = space.freeze({**dense, **widths, BUDGET: budget})
    job = Job(
        budget=budget,
        seed=seed,
        epochs=max(1, round(length)),
        granularity=space.granularity,
        example=data.example(),
        recipe=data.recipe.for_samples(train_samples),
        loss=data.loss,
        build=lambda: space.dense,
        train=splits.train,
        score=lambda judged, split: data.score(data.evaluate(judged, split)),
    )
    stages = job.trial(job.model(network), epochs=length)
    while True:
        try:
            nni.report_intermediate_result(-next(stages).loss)
        except StopIteration as end:
            return end.value


if __name__ == "__main__":
    sys.exit(main())
