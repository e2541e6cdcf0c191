"""Profiles: which cells ``nasbench-grow reproduce`` runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """The product of methods, tasks, backbones, budgets and seeds, all trained equally long."""

    tasks: tuple[str, ...]
    backbones: tuple[str, ...]
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    epochs: int
    train_samples: int | None = None
    """How many training samples to keep; None = all."""
    methods: tuple[str, ...] | None = None
    """None = every registered method."""
    setup: str = "cpu"


@dataclass(frozen=True)
class Profile:
    """A named list of grids."""

    name: str
    summary: str
    grids: tuple[Grid, ...]


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "smoke",
            "every method for two epochs on digits: does everything work? (3 minutes on two cores)",
            (Grid(("digits",), ("cifar_resnet20",), budgets=(0.5,), seeds=(0,), epochs=2, train_samples=512),),
        ),
        Profile(
            "laptop",
            "every method on part of CIFAR-10, 2 budgets (grow: 3), 3 seeds (30 minutes on two cores)",
            (
                Grid(("cifar10",), ("cifar_resnet20",), (0.25, 0.5), (0, 1, 2), epochs=5, train_samples=2048),
                Grid(
                    ("cifar10",),
                    ("cifar_resnet20",),
                    (0.75,),
                    (0, 1, 2),
                    epochs=5,
                    train_samples=2048,
                    methods=("grow",),
                ),
            ),
        ),
        Profile(
            "lengths",
            "grow on digits for 10, 40 and 160 epochs, 3 budgets, 3 seeds: is it scale-free? (10 minutes on two cores)",
            tuple(
                Grid(
                    ("digits",),
                    ("cifar_resnet20",),
                    (0.25, 0.5, 0.75),
                    (0, 1, 2),
                    epochs=epochs,
                    train_samples=256,
                    methods=("grow",),
                )
                for epochs in (10, 40, 160)
            ),
        ),
        Profile(
            "paper",
            "the full recipes on CIFAR-10: 3 backbones, 3 budgets, 3 seeds (wants a GPU, or weeks)",
            (
                Grid(("cifar10",), ("cifar_resnet20",), (0.25, 0.5, 0.75), (0, 1, 2), epochs=160),
                Grid(("cifar10",), ("cifar_vgg16_bn",), (0.25, 0.5, 0.75), (0, 1, 2), epochs=160),
                Grid(("cifar10",), ("cifar_wrn28_10",), (0.25, 0.5, 0.75), (0, 1, 2), epochs=200),
            ),
        ),
    )
}
