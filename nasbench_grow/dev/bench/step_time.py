"""Does a MAC saved save time? Times of a training step of dense and sub-networks, in every memory layout."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from nasbench_grow.dev.bench.networks import KINDS, Variant, backbone, batch, structures, sub_network, variants
from nasbench_grow.dev.bench.record import Record, Spread, origin, ratios, spread, table, verdict
from nasbench_grow.dev.bench.settings import Settings
from nasbench_grow.dev.bench.steps import Step, interleave, training_step
from nasbench_grow.harness.cell import DEFAULT_SETUP
from nasbench_grow.harness.setups import SETUPS, Setup

SUMMARY = "time of a training step against the share of the MACs, by width granularity and memory layout"


@dataclass(frozen=True)
class Target:
    """What a CPU's step of a uniform sub-network, at the set-up's own granularity, may take of a dense step."""

    backbone: str
    share: float
    fastest: bool
    """Compare with the dense network in its fastest layout; False: in the sub-network's own."""
    limit: float


TARGETS = (
    Target("cifar_vgg16_bn", 0.5, False, 0.60),
    Target("cifar_vgg16_bn", 0.25, False, 0.35),
    Target("cifar_resnet20", 0.5, False, 0.60),
    Target("cifar_resnet20", 0.5, True, 0.75),
)
_MOST_WIDTHS = 7
"""Longer lists of widths are left to the record."""


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds of every network in every round, with its MACs and widths."""
    networks = []
    for name in settings.backbones:
        model, space = backbone(name, settings)
        dense_macs = space.macs(space.full())
        steps: dict[tuple[str, Variant], Step] = {}
        known = {}
        for setup in _setups(settings):
            inputs, targets = batch(settings, setup)
            for variant in variants(space, setup.granularity):
                present = structures(space, variant)
                steps[setup.name, variant] = training_step(sub_network(space, model, present, setup), inputs, targets)
                known[variant] = {"macs": space.macs(present), "widths": space.widths(present)}
        found = interleave(steps, settings.seconds, settings.min_rounds, f"step times of {name}")
        for (setup_name, variant), times in found.items():
            what = {"backbone": name, "setup": setup_name, **asdict(variant), "dense_macs": dense_macs}
            networks.append({**what, **known[variant], "seconds": times})
    return {"networks": networks}


def cpu_setups() -> list[Setup]:
    """On a CPU both memory layouts are timed, where both can be had."""
    return [setup for setup in (SETUPS["cpu"], SETUPS["cpu-channels-last"]) if setup.available()[0]]


def _setups(settings: Settings) -> list[Setup]:
    return cpu_setups() if settings.setup.device == "cpu" else [settings.setup]


def tables(record: Record) -> str:
    """The targets, then every network, as Markdown."""
    kinds = sorted({network["kind"] for network in record["networks"]}, key=list(KINDS).index)
    legend = "\n".join(f"- `{kind}`: {KINDS[kind]}" for kind in kinds)
    sections = [_targets(record)]
    for (name, setup), networks in groupby(record["networks"], key=lambda each: (each["backbone"], each["setup"])):
        sections.append(f"**{name}, set-up `{setup}`**\n\n{_networks(record, list(networks))}")
    notes = (
        "Medians over rounds with quartiles in brackets; a ratio is taken within each round. Widths are in forward "
        "order, repeated ones once, 0 inside an absent block. MACs are shares of the "
        f"dense network's. *Fastest*: the layout in which the dense network is fastest.\n\n{legend}"
    )
    return "\n\n".join(section for section in [*sections, notes, origin(record)] if section)


def against_dense(record: Record, network: dict[str, Any], *, fastest: bool) -> Spread:
    """Step time relative to the dense network in the same layout, or in the one in which that is fastest."""
    dense = [
        other for other in record["networks"] if other["kind"] == "dense" and other["backbone"] == network["backbone"]
    ]
    if fastest:
        base = min(dense, key=lambda other: spread(other["seconds"]).median)
    else:
        base = next(other for other in dense if other["setup"] == network["setup"])
    return ratios(network["seconds"], base["seconds"])


def _targets(record: Record) -> str:
    rows = []
    for target in TARGETS:
        wanted = (target.backbone, "uniform", target.share)
        for network in record["networks"]:
            setup = SETUPS[network["setup"]]
            asked = (network["backbone"], network["kind"], network["share"])
            if asked == wanted and network["granularity"] == setup.granularity and setup.device == "cpu":
                found = against_dense(record, network, fastest=target.fastest)
                rows.append(
                    [
                        target.backbone,
                        f"{setup.name}{' (default)' if setup.name == DEFAULT_SETUP else ''}",
                        f"{network['macs'] / network['dense_macs']:.3f}",
                        "fastest dense" if target.fastest else "dense, same layout",
                        f"{target.limit:.2f}",
                        found.text(),
                        verdict(found.median, target.limit),
                    ]
                )
    header = ["backbone", "set-up", "MACs", "compared with", "target", "measured", "result"]
    return table(header, rows) if rows else ""


def _networks(record: Record, networks: list[dict[str, Any]]) -> str:
    header = ["network", "granularity", "widths", "MACs", "step, ms", "of dense", "of fastest dense"]
    rows = [
        [
            network["kind"],
            network["granularity"] if network["kind"] != "dense" else "",
            _widths(network["widths"]),
            f"{network['macs'] / network['dense_macs']:.3f}",
            f"{1000 * spread(network['seconds']).median:.1f}",
            against_dense(record, network, fastest=False).text(),
            against_dense(record, network, fastest=True).text(),
        ]
        for network in networks
    ]
    return table(header, rows)


def _widths(widths: dict[str, int]) -> str:
    """The widths in forward order, repeated ones once."""
    runs = [width for width, _ in groupby(widths.values())]
    return "-".join(map(str, runs)) if len(runs) <= _MOST_WIDTHS else "various"
