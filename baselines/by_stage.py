"""An architecture that is named by hand: of every stage the width and the number of removable layers.

``by_stage[layers=3-1-0,widths=8-16-32]`` trains one point of a grid. A stage's channel groups are those of one full
width, the narrowest first (16, 32 and 64 filters in ResNet-20); its removable layers are the blocks that add to the
same filters, of which the first ones stay. The oracle (``docs/search.md``) is a table of such networks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nasbench_grow import Space, UserError, discover, extract
from nasbench_grow.contract import FixedNetwork, Job, check_types

ALL = "all"


@dataclass(frozen=True)
class ByStageSettings:
    """The architecture."""

    widths: str = ALL
    """Filters of every channel group of each stage, e.g. 8-16-32; all: the dense network's."""
    layers: str = ALL
    """Removable layers that each stage keeps, e.g. 3-1-0; all: every one."""

    def __post_init__(self) -> None:
        """Refuses what is no list of numbers with a UserError."""
        check_types(self)
        numbers("widths", self.widths)
        numbers("layers", self.layers)


class ByStage(FixedNetwork):
    """Trains the architecture that its settings name, whatever the budget."""

    name = "by_stage"
    summary = "an architecture given as a width and a number of layers for each stage, trained from the start"
    family = "control"
    citation = "Radosavovic et al., Designing Network Design Spaces, arXiv 2003.13678 (width and depth by stage)"
    Settings = ByStageSettings
    uses_budget = False
    aims_at_budget = False

    def choose(self, job: Job) -> nn.Module:
        """The sub-network with the first filters of each group and the first removable layers of each stage."""
        model = job.build()
        space = discover(model, job.example)
        return extract(space, model, self.present(space))

    def present(self, space: Space) -> Tensor:
        """The structures that the settings name, shape (structures,), bool.

        Raises:
            UserError: they name another number of stages than there are, or more than a stage has.
        """
        present = space.full()
        sizes = sorted({group.size for group in space.groups})
        widths = _for_each("widths", numbers("widths", self.settings.widths), sizes, least=1)
        for group in space.groups:
            present[group.start + widths[sizes.index(group.size)] : group.start + group.size] = False
        stages = space.stages()
        layers = _for_each("layers", numbers("layers", self.settings.layers), [len(stage) for stage in stages], least=0)
        for stage, kept in zip(stages, layers, strict=True):
            present[stage[kept:]] = False
        return present


def numbers(name: str, text: str) -> list[int] | None:
    """The numbers of a list such as 8-16-32; None for ``all``.

    Raises:
        UserError: the text is no such list; it names the setting.
    """
    parts = text.split("-")
    if text != ALL and not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"{name} {text!r} cannot be read: give a number for each stage, e.g. 8-16-32, or {ALL}")
    return None if text == ALL else [int(part) for part in parts]


def _for_each(name: str, given: list[int] | None, most: list[int], *, least: int) -> list[int]:
    """One number for each stage, from ``least`` to ``most``."""
    if given is None:
        return most
    allowed = "-".join(str(number) for number in most)
    if len(given) != len(most) or not all(least <= number <= top for number, top in zip(given, most, strict=True)):
        raise UserError(
            f"{name} {'-'.join(map(str, given))} does not fit this network: give {len(most)} numbers, from {least} "
            f"up to {allowed}"
        )
    return given
