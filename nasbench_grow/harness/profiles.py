"""Profiles: which cells ``nasbench-grow reproduce`` runs.

Every method is named, so that a profile does not change with what is installed, and every method has its default
settings, except in ``choosing`` and ``tuning``, which ask about settings.
"""

from __future__ import annotations

from dataclasses import replace

from nasbench_grow.harness.grids import Grid, Profile

__all__ = ["PROFILES", "Grid", "Profile"]

_FEW = ("dense", "uniform", "grow")
_TABLE = ("dense", "uniform", "random", "l1", "grow")
_CONTROLS = ("uniform", "scaled", "random", "random_widths", "placebo", "retrain[of=placebo]")
_TRAINED_FIRST = ("l1", "thinet", "slimming", "taylor", "provable", "bar", "depgraph")
"""Pruning methods that want a trained network."""
_PRUNING = (*_TRAINED_FIRST, "soft_filter", "fpgm", "prunetrain", "morphnet", "chex", "oto", "iss")
_GROWING = ("random_growth", "net2net", "gradmax", "variance_transfer", "tiny", "firefly", "autogrow")
"""The growing methods beside ``grow``, and the control of those that widen on a schedule."""
_SEARCH = (
    *("random_search", "regularized_evolution", "tpe", "successive_halving"),
    *("single_path_one_shot", "darts_width", "slimmable", "netadapt", "zero_cost"),
)
_EVERY = (
    *_TABLE,
    *(name for name in _PRUNING if name not in _TABLE),
    *("grow-paper", "scaled", "placebo", "random_widths", "retrain", "dense_short", "l1_torch_pruning"),
    "by_stage",
    *_GROWING,
    *_SEARCH,
)
_TUNED = (
    *("l1", "l1[dense_share=0.25]", "taylor", "taylor[dense_share=0.25]"),
    *("slimming", "slimming[dense_share=0.25]", "slimming[strength=1e-06]"),
    *("depgraph", "depgraph[strength=0.003]", "depgraph[sparse_rate=1,strength=5e-05]"),
    *("prunetrain", "prunetrain[ratio=0.05]", "prunetrain[pruning_share=0.25]"),
    *("oto", "oto[pruning_share=0.3]", "bar", "bar[distillation=0]"),
    *("morphnet", "morphnet[strength=1]", "morphnet[strength=4]"),
)
"""Pruning methods that short runs are hard on, each with what might be better there: how strong its regulariser is,
and how much of the run comes before pruning."""
_BED_SEEDS = (1, 2, 3)
"""Seed 0 is for choosing settings."""
_BEDS = (
    ("cifar10_16px", "cifar_resnet20", (0.25, 0.5), 12, None),
    ("cifar10_16px", "cifar_vgg16_bn", (0.15, 0.3), 12, None),
    ("cifar10_16px", "cifar_mobilenetv2", (0.35,), 12, None),
    ("landcover", "deeplabv3plus_thin", (0.5,), 40, None),
    ("ptb_small", "lstm_200", (0.5,), 13, 11_550),
)
"""Task, backbone, budgets, epochs and training samples of each test bed."""
_SEEDS = (0, 1, 2)


def _cifar(
    backbone: str, epochs: int, budgets: tuple[float, ...], methods: tuple[str, ...], samples: int | None = None
) -> Grid:
    """CIFAR-10 with three seeds."""
    return Grid(
        methods=methods,
        tasks=("cifar10",),
        backbones=(backbone,),
        budgets=budgets,
        seeds=_SEEDS,
        epochs=epochs,
        train_samples=samples,
    )


def _landcover(methods: tuple[str, ...], seeds: tuple[int, ...], epochs: int, samples: int | None = None) -> Grid:
    """Segmentation at half the MACs."""
    return Grid(
        methods=methods,
        tasks=("landcover",),
        backbones=("deeplabv3plus_thin",),
        budgets=(0.5,),
        seeds=seeds,
        epochs=epochs,
        train_samples=samples,
    )


def _treebank(methods: tuple[str, ...], seeds: tuple[int, ...], epochs: int, samples: int) -> Grid:
    """Language modelling at half the MACs."""
    return Grid(
        methods=methods,
        tasks=("ptb_small",),
        backbones=("lstm_200",),
        budgets=(0.5,),
        seeds=seeds,
        epochs=epochs,
        train_samples=samples,
    )


def _digits(backbone: str, epochs: int, samples: int, *, whole: bool = True) -> Grid:
    """``grow``, learning however short the run is, on digits: three budgets and seeds, or one of each."""
    return Grid(
        methods=("grow[least_search=0]",),
        tasks=("digits",),
        backbones=(backbone,),
        budgets=(0.25, 0.5, 0.75) if whole else (0.5,),
        seeds=_SEEDS if whole else (0,),
        epochs=epochs,
        train_samples=samples,
    )


def _beds(methods: tuple[str, ...], seeds: tuple[int, ...]) -> tuple[Grid, ...]:
    """Methods on every test bed."""
    return tuple(
        Grid(
            methods=methods,
            tasks=(task,),
            backbones=(backbone,),
            budgets=budgets,
            seeds=seeds,
            epochs=epochs,
            train_samples=samples,
            setup="cpu-bf16",
        )
        for task, backbone, budgets, epochs, samples in _BEDS
    )


def _pruned(task: str, backbone: str, budget: float, epochs: int, samples: int | None = None) -> Grid:
    """Every pruning method beside the controls and ``grow``; those that want a trained network also on top of one."""
    return Grid(
        methods=(
            *("dense", "uniform", "scaled", "random", "grow", *_PRUNING),
            *(f"{name}[start=trained]" for name in (*_TRAINED_FIRST, "l1_torch_pruning")),
        ),
        tasks=(task,),
        backbones=(backbone,),
        budgets=(budget,),
        seeds=_SEEDS,
        epochs=epochs,
        train_samples=samples,
        setup="cpu-bf16",
    )


def _searched(task: str, backbone: str, budget: float, epochs: int) -> Grid:
    """Every growing and search method beside the controls and ``grow``."""
    return Grid(
        methods=("dense", "uniform", "scaled", "random", "grow", "retrain", *_GROWING, *_SEARCH),
        tasks=(task,),
        backbones=(backbone,),
        budgets=(budget,),
        seeds=_SEEDS,
        epochs=epochs,
        setup="cpu-bf16",
    )


def _choosing(*methods: str) -> Grid:
    """Settings to choose among, on a budget and a seed that are not those of the tables."""
    return Grid(
        methods=methods,
        tasks=("cifar10_16px",),
        backbones=("cifar_resnet20",),
        budgets=(0.35,),
        seeds=(0,),
        epochs=12,
        setup="cpu-bf16",
    )


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "smoke",
            "every built-in method on digits, grow on each kind of task: does it all work? (some minutes on two cores)",
            (
                Grid(
                    methods=_EVERY,
                    tasks=("digits",),
                    backbones=("cifar_resnet20",),
                    budgets=(0.5,),
                    seeds=(0,),
                    epochs=2,
                    train_samples=512,
                ),
                Grid(
                    methods=("dense", "grow"),
                    tasks=("cifar10",),
                    backbones=("cifar_resnet20",),
                    budgets=(0.5,),
                    seeds=(0,),
                    epochs=1,
                    train_samples=512,
                ),
                _landcover(("dense", "grow"), (0,), epochs=1, samples=60),
                _treebank(("dense", "grow"), (0,), epochs=1, samples=1_400),
            ),
        ),
        Profile(
            "laptop",
            "half the MACs on CIFAR-10, land cover, Penn Treebank; short runs, 3 seeds (20 minutes on two cores)",
            (
                _cifar("cifar_resnet20", 5, (0.5,), _TABLE, samples=2_048),
                _landcover(_FEW, _SEEDS, epochs=10),
                _treebank(_FEW, _SEEDS, epochs=4, samples=2_450),
            ),
        ),
        Profile(
            "methods",
            "every built-in method on part of CIFAR-10, 2 budgets, 3 seeds (some hours on two cores)",
            (_cifar("cifar_resnet20", 5, (0.25, 0.5), _EVERY, samples=2_048),),
        ),
        Profile(
            "lengths",
            "grow on digits, 3 networks, 3 budgets, 3 seeds, 10 and 40 epochs: is it scale-free?",
            (
                *(_digits("cifar_resnet20", epochs, 256) for epochs in (10, 40)),
                *(_digits(name, 10, 128) for name in ("cifar_vgg16_bn", "cifar_mobilenetv2")),
                _digits("cifar_resnet20", 160, 256, whole=False),
            ),
        ),
        Profile(
            "families",
            "segmentation and language models at half the MACs, 3 seeds (2 hours on two cores)",
            (
                _landcover((*_FEW, "random"), _SEEDS, epochs=10),
                _treebank((*_FEW, "random"), _SEEDS, epochs=8, samples=11_550),
            ),
        ),
        Profile(
            "table",
            "the paper's tables near its budgets, full recipes: CIFAR-10 on 3 networks, Penn Treebank (wants a GPU)",
            (
                _cifar("cifar_resnet20", 160, (0.5,), _TABLE),
                _cifar("cifar_vgg16_bn", 160, (0.14,), _TABLE),
                _cifar("cifar_wrn28_10", 200, (0.28,), _TABLE),
                Grid(
                    methods=("dense", "uniform", "random", "grow"),
                    tasks=("ptb",),
                    backbones=("lstm_1500",),
                    budgets=(0.5,),
                    seeds=_SEEDS,
                    epochs=55,
                ),
            ),
        ),
        Profile(
            "paper",
            "the full recipes on CIFAR-10: 3 backbones, 3 budgets, 3 seeds (wants a GPU, or weeks)",
            (
                _cifar("cifar_resnet20", 160, (0.25, 0.5, 0.75), _EVERY),
                _cifar("cifar_vgg16_bn", 160, (0.25, 0.5, 0.75), _EVERY),
                _cifar("cifar_wrn28_10", 200, (0.25, 0.5, 0.75), _EVERY),
            ),
        ),
        Profile(
            "pruning",
            "every pruning method beside grow and the controls, on two networks and Penn Treebank, 3 seeds (4 days)",
            (
                _pruned("cifar10_16px", "cifar_resnet20", 0.25, 12),
                _pruned("cifar10_16px", "cifar_vgg16_bn", 0.15, 12),
                _pruned("ptb_small", "lstm_200", 0.5, 4, 11_550),
            ),
        ),
        Profile(
            "search",
            "growing methods and architecture search beside grow and the controls, on two networks, 3 seeds (a week)",
            (
                _searched("cifar10_16px", "cifar_resnet20", 0.25, 12),
                _searched("cifar10_16px", "cifar_vgg16_bn", 0.15, 12),
            ),
        ),
        Profile(
            "cells",
            "for reference, in a table of its own: DARTS on cells, which no backbone here holds (wants a GPU)",
            (_cifar("cifar_resnet20", 100, (1.0,), ("dense", "darts_cells")),),
        ),
        Profile(
            "beds",
            "does growing learn? grow and its controls on seven test beds, 3 seeds (two cores: days)",
            (
                *_beds(("grow", "retrain", *_CONTROLS), _BED_SEEDS),
                *(replace(grid, budgets=(1.0,)) for grid in _beds(("dense",), _BED_SEEDS)),
            ),
        ),
        Profile(
            "headroom",
            "how much is there to win? 40 random architectures on each test bed (two cores: days)",
            _beds(tuple(f"random[draw={number}]" for number in range(40)), (0,)),
        ),
        Profile(
            "choosing",
            "settings of grow against each other, on a budget and a seed of their own (1 hour on two cores)",
            (
                _choosing(
                    "uniform",
                    "grow",
                    "grow[growth=0.1]",
                    "grow[search=0.05]",
                    "grow[search=0.4]",
                    "grow[travel=1]",
                    "grow[travel=16]",
                    "grow[layer_start=0]",
                    "grow[layer_start=-1]",
                    "grow[beta_growth=1]",
                    "grow[newborn=initial]",
                    "grow[newborn=zero]",
                    "grow-paper",
                    "retrain",
                ),
            ),
        ),
        Profile(
            "tuning",
            "settings of the pruning methods against each other, on a budget of their own (2 hours on two cores)",
            (_choosing("uniform", "random", *_TUNED),),
        ),
    )
}
