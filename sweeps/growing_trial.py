"""One NNI trial of ``growing.yml``: grows a network with the hyper-parameters that it is given.

Without NNI, ``python sweeps/growing_trial.py`` does the same with the default preset.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import nni
import torch

from nasbench_grow.growing.grower import Grower
from nasbench_grow.growing.presets import PRESETS, Preset
from nasbench_grow.harness import registry


def main() -> None:
    """Grow, and report the validation metric after every epoch and of the network that is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--backbone", default="cifar_resnet20")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-samples", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chosen = replace(PRESETS["default"], **(nni.get_next_parameter() or {}))
    nni.report_final_result(grow(chosen, **vars(arguments)))


def grow(
    preset: Preset, *, task: str, backbone: str, budget: float, epochs: int, train_samples: int | None, seed: int
) -> float:
    """The validation metric of the network grown with ``preset``; reports that of every epoch to NNI."""
    torch.manual_seed(seed)
    problem = registry.task(task)()
    recipe = problem.recipe.for_samples(train_samples)
    splits = problem.load(torch.device("cpu"), train_samples)
    steps = splits.train.steps_per_epoch(recipe.batch_size)
    grower = Grower(
        registry.build_backbone(backbone, problem),
        problem.example(),
        budget=budget,
        epochs=epochs,
        steps_per_epoch=steps,
        loss=problem.loss,
        optimizer=recipe.optimizer,
        learning_rate_at=lambda step: recipe.learning_rate_at((step + 1) / (epochs * steps)),
        preset=preset,
        granularity=registry.setup("cpu").granularity,
        seed=seed,
    )
    for epoch in range(1, epochs + 1):
        grower.train(splits.train.epoch(epoch, recipe.batch_size, seed))
        nni.report_intermediate_result(problem.evaluate(grower.network(), splits.val))
    return problem.evaluate(grower.finish(), splits.val)


if __name__ == "__main__":
    main()
