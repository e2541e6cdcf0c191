"""Profiles: which cells ``nasbench-grow reproduce`` runs."""

from __future__ import annotations

from nasbench_grow.harness.grids import Grid, Profile

__all__ = ["PROFILES", "Grid", "Profile"]

_FEW = ("dense", "uniform", "grow")
_TABLE = ("dense", "grow", "uniform", "random", "l1")

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "smoke",
            "every method on digits, grow on each kind of task: does everything work? (3 minutes on two cores)",
            (
                Grid(("digits",), ("cifar_resnet20",), (0.5,), (0,), epochs=2, train_samples=512),
                Grid(("cifar10",), ("cifar_resnet20",), (0.5,), (0,), 1, 512, ("dense", "grow")),
                Grid(("landcover",), ("deeplabv3plus_thin",), (0.5,), (0,), 1, 60, ("dense", "grow")),
                Grid(("ptb_small",), ("lstm_200",), (0.5,), (0,), 1, 1400, ("dense", "grow")),
            ),
        ),
        Profile(
            "laptop",
            "half the MACs on CIFAR-10, land cover, Penn Treebank; short runs, 3 seeds (20 minutes on two cores)",
            (
                Grid(("cifar10",), ("cifar_resnet20",), (0.5,), (0, 1, 2), 5, 2048, (*_FEW, "random", "l1")),
                Grid(("landcover",), ("deeplabv3plus_thin",), (0.5,), (0, 1, 2), 10, methods=_FEW),
                Grid(("ptb_small",), ("lstm_200",), (0.5,), (0, 1, 2), 4, 2450, _FEW),
            ),
        ),
        Profile(
            "methods",
            "every method on part of CIFAR-10, 2 budgets (grow: 3), 3 seeds (40 minutes on two cores)",
            (
                Grid(("cifar10",), ("cifar_resnet20",), (0.25, 0.5), (0, 1, 2), epochs=5, train_samples=2048),
                Grid(("cifar10",), ("cifar_resnet20",), (0.75,), (0, 1, 2), 5, 2048, ("grow",)),
            ),
        ),
        Profile(
            "lengths",
            "grow on digits, 3 networks, 3 budgets, 1 or 3 seeds, 10 and 40 epochs (160 once): is it scale-free?",
            tuple(
                Grid(("digits",), backbones, budgets, seeds, epochs, samples, ("grow",))
                for backbones, budgets, seeds, epochs, samples in (
                    (("cifar_resnet20",), (0.25, 0.5, 0.75), (0, 1, 2), 10, 256),
                    (("cifar_resnet20",), (0.25, 0.5, 0.75), (0, 1, 2), 40, 256),
                    (("cifar_resnet20",), (0.5,), (0,), 160, 256),
                    (("cifar_vgg16_bn", "cifar_mobilenetv2"), (0.25, 0.5, 0.75), (0, 1, 2), 10, 128),
                    (("cifar_vgg16_bn", "cifar_mobilenetv2"), (0.25, 0.5, 0.75), (0,), 40, 128),
                )
            ),
        ),
        Profile(
            "families",
            "segmentation and language models at half the MACs, 3 seeds (2 hours on two cores)",
            (
                Grid(
                    ("landcover",),
                    ("deeplabv3plus_thin",),
                    (0.5,),
                    (0, 1, 2),
                    epochs=10,
                    methods=(*_FEW, "random"),
                ),
                Grid(
                    ("ptb_small",),
                    ("lstm_200",),
                    (0.5,),
                    (0, 1, 2),
                    epochs=8,
                    train_samples=11_550,
                    methods=(*_FEW, "random", "grow[cost_aware=true,peak=1.8,settle=0.35]"),
                ),
            ),
        ),
        Profile(
            "price",
            "grow priced by MACs and by step time on part of CIFAR-10, 2 budgets, 3 seeds (15 minutes on two cores)",
            (
                Grid(
                    ("cifar10",),
                    ("cifar_resnet20",),
                    (0.25, 0.5),
                    (0, 1, 2),
                    epochs=5,
                    train_samples=2048,
                    methods=("dense", "grow", "grow[cost=time]"),
                ),
            ),
        ),
        Profile(
            "table",
            "the paper's tables near its budgets, full recipes: CIFAR-10 on 3 networks, Penn Treebank (wants a GPU)",
            (
                Grid(("cifar10",), ("cifar_resnet20",), (0.5,), (0, 1, 2), epochs=160, methods=_TABLE),
                Grid(("cifar10",), ("cifar_vgg16_bn",), (0.14,), (0, 1, 2), epochs=160, methods=_TABLE),
                Grid(("cifar10",), ("cifar_wrn28_10",), (0.28,), (0, 1, 2), epochs=200, methods=_TABLE),
                Grid(("ptb",), ("lstm_1500",), (0.5,), (0, 1, 2), epochs=55, methods=_TABLE[:-1]),
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
