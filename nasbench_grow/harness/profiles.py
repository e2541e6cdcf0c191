"""Profiles: which cells ``nasbench-grow reproduce`` runs.

Every method is named, so that a profile does not change with what is installed, and every method has its default
settings, except in the profiles ``ablation-*``, which ask about settings.
"""

from __future__ import annotations

from nasbench_grow.harness.grids import Grid, Profile

__all__ = ["PROFILES", "Grid", "Profile"]

_FEW = ("dense", "uniform", "grow")
_TABLE = ("dense", "uniform", "random", "l1", "grow")
_EVERY = (*_TABLE, "grow-paper", "retrain", "dense_short")
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
    """``grow`` on digits: three budgets and seeds, or one of each."""
    return Grid(
        methods=("grow",),
        tasks=("digits",),
        backbones=(backbone,),
        budgets=(0.25, 0.5, 0.75) if whole else (0.5,),
        seeds=_SEEDS if whole else (0,),
        epochs=epochs,
        train_samples=samples,
    )


def _proxy(
    *methods: str,
    budgets: tuple[float, ...] = (0.25, 0.5),
    backbone: str = "cifar_resnet20",
    epochs: int = 4,
    samples: int = 8_000,
) -> Grid:
    """CIFAR-10 at 16 pixels, where a run takes about a minute on a CPU."""
    return Grid(
        methods=methods,
        tasks=("cifar10_16px",),
        backbones=(backbone,),
        budgets=budgets,
        seeds=_SEEDS,
        epochs=epochs,
        train_samples=samples,
    )


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "smoke",
            "every built-in method on digits, grow on each kind of task: does it all work? (3 minutes on two cores)",
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
            "every built-in method on part of CIFAR-10, 2 budgets, 3 seeds (40 minutes on two cores)",
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
            "ablation-controls",
            "is it the architecture, the depth or the training? grow against its controls (40 minutes on two cores)",
            (
                _proxy("uniform", "random", "grow", "retrain", budgets=(0.25, 0.5, 0.75)),
                _proxy("dense", budgets=(1.0,)),
            ),
        ),
        Profile(
            "ablation-depth",
            "how much depth grow gives up for width (20 minutes on two cores)",
            (_proxy("grow", "grow[layer_logit=-4]", "grow[layer_logit=0]", "grow[layer_logit=20]"),),
        ),
        Profile(
            "ablation-growth",
            "over which share of the run grow grows (10 minutes on two cores)",
            (_proxy("grow", "grow[growth=0.3]"),),
        ),
        Profile(
            "ablation-rounding",
            "what rounding widths to multiples of 8, or of 16, costs (15 minutes on two cores)",
            (_proxy("grow", "grow[granularity=1]", "grow[granularity=16]"),),
        ),
        Profile(
            "ablation-networks",
            "grow and its controls on other networks (20 minutes on two cores)",
            tuple(
                _proxy("uniform", "random", "grow", budgets=(0.25,), backbone=name, samples=2_560)
                for name in ("cifar_vgg16_bn", "cifar_mobilenetv2")
            ),
        ),
    )
}
