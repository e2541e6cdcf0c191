"""The configuration space of a model, from what :class:`~nasbench_grow.structure.flow.Flow` saw of a forward pass.

What the network does not survive is tried in other ways before it is fixed: channels leave along another dimension at
the sites that were in it, then with the output of the modules around them as wide as their input. Sizes that the
code of modules writes down as numbers are read anew.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from nasbench_grow.base.calling import first_samples
from nasbench_grow.structure.couplings import FIXED, NO_DIMENSION, Couplings
from nasbench_grow.structure.flow import Flow, Site, Vector, size_attributes
from nasbench_grow.structure.probing import runs
from nasbench_grow.structure.rates import weight_rates
from nasbench_grow.structure.recurrent import RECURRENT, input_axes, with_stand_ins
from nasbench_grow.structure.space import Axis, Space, WeightCost
from nasbench_grow.structure.trial import MOST_ROUNDS, UNSETTLED, Trial, everything
from nasbench_grow.structure.written import numbers_in, place

_STAND_IN = ".stand_in.weight"
_CHECKS, _ATTEMPTS = 640, 12
"""How many groups are checked in other ways before what does not run is fixed, and how often all are at least."""


def followed(trial: Trial) -> Space:
    """The space of all that can leave, as far as it was seen."""
    module, inputs = trial.probe.module, trial.probe.inputs
    rates = weight_rates(module, inputs)
    one = first_samples(inputs, 1)
    if not runs(module, one):  # what counts its samples, as the edges of a graph do, takes all of them
        one = inputs
    rates = {axes: rate for axes, rate in rates.items() if isinstance(module.get_submodule(_path(axes)), RECURRENT)}
    choices: dict[str, int] = defaultdict(int)
    ties: set[str] = set()
    rejected: dict[str, str] = {}
    written: set[str] = set()
    attempts = rounds = 0
    while rounds < MOST_ROUNDS:
        couplings = FlowCouplings(module, written)
        couplings.follow(one, inputs, choices, ties, trial.probe.views())
        if couplings.picks(choices):
            continue
        attempts += 1
        space = couplings.space(trial, rates, rejected)
        found = trial.judge(space)
        if isinstance(found, Space):
            plain = trial.judge(replace(found, written={})) if found.written else found
            return plain if isinstance(plain, Space) else found
        writing = couplings.writing(space, found) - written
        if writing:
            written |= writing
            continue
        inside = couplings.sites_of(space, found)
        spent = attempts > max(_ATTEMPTS, _CHECKS // max(len(space.groups), 1))
        if spent or not _try_otherwise(inside, choices, ties):
            rejected |= {name.partition("#")[0]: reason for name, reason in found.items()}
            rounds += 1
    return couplings.space(trial, rates, everything(space, UNSETTLED) | rejected)


def _try_otherwise(sites: list[Site], choices: dict[str, int], ties: set[str]) -> bool:
    """Goes on to the next option of some sites or, after their last one, to the first with the modules tied; whether
    there was anything to try."""
    if _count_on([site for site in sites if "/=" in site.name], choices):
        return True
    further = [site.name for site in sites if choices[site.name] + 1 < site.options and "/=" not in site.name]
    if further:
        choices.update({name: choices[name] + 1 for name in further})
        return True
    tried = False
    for site in sites:
        module, _, number = site.name.rpartition("/")
        if module not in ties and not number.startswith("="):
            ties.add(module)
            tried = True
    if tried:
        choices.update({site.name: 0 for site in sites})
    return tried


def _count_on(sites: list[Site], choices: dict[str, int]) -> bool:
    """Goes on to the next combination of which attributes count what, in every module at once; False, and all at the
    first, after the last of all."""
    modules: dict[str, dict[str, int]] = defaultdict(dict)
    for site in sites:
        modules[site.name.rpartition("/")[0]][site.name] = site.options
    further = False
    for options in modules.values():
        lowest = next((name for name, number in options.items() if choices[name] + 1 < number), None)
        if lowest is not None:
            for name in options:
                if name == lowest:
                    break
                choices[name] = 0
            choices[lowest] += 1
            further = True
    if not further:
        choices.update({site.name: 0 for site in sites})
    return further


class FlowCouplings(Couplings):
    """Couplings read off the operations of a forward pass.

    Args:
        model: the network to be followed.
        written: modules whose code writes sizes down, which are to be read anew.
    """

    def __init__(self, model: nn.Module, written: set[str]) -> None:
        super().__init__(model)
        self.written = written

    def follow(self, one: Any, inputs: Any, choices: dict[str, int], ties: set[str], views: Iterable[None]) -> None:
        """Runs the model once in every view and notes what leaves together.

        Args:
            one: a sample for the model.
            inputs: several.
            choices: the option to take at each site.
            ties: modules whose output is as wide as their input.
            views: of the probe that the model is (:meth:`Probe.views`).
        """
        for name, module in self.modules.items():
            if isinstance(module, RECURRENT):
                self._tie(name, module)
        traced = with_stand_ins(self.model).eval()
        for name, module in self.modules.items():
            if isinstance(module, RECURRENT):
                traced.get_submodule(f"{name}.stand_in").register_parameter("bias", None)
        self.flow = flow = Flow(traced, self._numbers, self._join, choices, ties)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flow.run(one, views, inputs)
        self._stay(flow.reasons)
        for root, vector in flow.roots.items():
            self.roots[_module_of(root)] = vector
        made = (axis for axis in flow.makers | flow.added for axis in self._axes(*axis))
        self.own_makers = {(_scale_of(name), dim) for name, dim in made}
        for axis in flow.taken_in:
            self.consumers |= dict.fromkeys(self._axes(*axis))

    def _stay(self, reasons: list[tuple[Vector, str]]) -> None:
        """Joins what has to stay to FIXED, and remembers why."""
        self.before = self._components()
        self.because: dict[int, str] = {}
        for vector, reason in reasons:
            for label in self.before[vector].tolist():
                self.because.setdefault(label, reason)
            self._join(vector, np.zeros_like(vector))

    def _axes(self, name: str, dim: int) -> list[Axis]:
        """The axes of the model that a dimension of a tensor that was run stands for."""
        if name.endswith(_STAND_IN):
            name = name.removesuffix(_STAND_IN)
            layer = self.modules[name]
            assert isinstance(layer, RECURRENT)
            return list(input_axes(name, layer)) if dim else [(f"{name}.weight_hh_l0", NO_DIMENSION)]
        return [(name, dim)]

    def _numbers(self, name: str, dim: int) -> Vector:
        axes = self._axes(name, dim)
        numbers = [self._ids(axis, range(self._length(axis))) for axis in axes]
        for other in numbers[1:]:
            self._join(numbers[0], other)
        return numbers[0]

    def _prepare(self, labels: np.ndarray) -> None:
        """Gates of what meets a site are late; modules that stay say why."""
        sites = {int(label) for site in self.flow.sites for label in labels[site.vector]} - {int(labels[FIXED])}
        self.late += [
            axis
            for axis in self.consumers
            if axis in self.offsets and sites.intersection(labels[self._all(axis)].tolist())
        ]
        self.fixed |= self._reasons(labels)

    def _complete(self, space: Space, labels: np.ndarray) -> None:
        """Adds the attributes that count what shrinks, and the costs of products outside of layers."""
        self.structure = _structures(self, space, labels)
        space.attributes = {
            (path, key, place): torch.from_numpy(owner)
            for path, key, place, vector in size_attributes(self.flow)
            if ((owner := self.structure[vector]) >= 0).any()
        }
        for path in self.written & self.flow.frames.keys():
            for dim, vector in self.flow.frames[path].written:
                if ((owner := self.structure[vector]) >= 0).any():
                    space.written[path, place(dim, len(vector))] = torch.from_numpy(owner)
        space.costs += list(self._products(space))

    def writing(self, space: Space, reasons: Iterable[str]) -> set[str]:
        """The modules whose code tells a tensor, in numbers, to take a shape with filters of some groups in it."""
        bad = _filters(space, reasons)
        own = (path for path, module in self.modules.items() if not type(module).__module__.startswith("torch.nn."))
        return {
            path
            for path in self.flow.frames.keys() & own
            if any(
                len(vector) in numbers_in(self.modules[path]) and bad.intersection(self.structure[vector].tolist())
                for _, vector in self.flow.frames[path].written
            )
        }

    def _all(self, axis: Axis) -> Vector:
        return self.offsets[axis] + np.arange(self.lengths[axis])

    def _reasons(self, labels: np.ndarray) -> dict[str, str]:
        """Why modules whose channels all stay do so."""
        stays = labels[FIXED]
        reasons = {}
        for root, vector in self.roots.items():
            if (labels[vector] == stays).all():
                known = [self.because[label] for label in self.before[vector].tolist() if label in self.because]
                reasons[root] = known[0] if known else "its channels meet some that always stay"
        return reasons

    def _products(self, space: Space) -> Iterable[WeightCost]:
        """The costs of all products but those of recurrent layers."""
        axes: dict[tuple[tuple[int, int], ...], tuple[Axis, int]] = {}
        for axis, owner in space.owners.items():
            form, times = _form(owner.numpy())
            axes.setdefault(form, (axis, times))
        for product in self.flow.products:
            if product.module.endswith(".stand_in"):  # a recurrent layer's products are known otherwise
                continue
            along: list[Axis] = []
            rate = float(product.macs)
            for vector in product.vectors:
                owner = self.structure[vector]
                if (owner >= 0).any():
                    form, _ = _form(owner)
                    if form in axes:
                        along.append(axes[form][0])
                        rate /= len(space.owners[axes[form][0]])
            layer = next((index for index, layer in enumerate(space.layers) if layer.holds(product.module)), None)
            if along or layer is not None:
                yield WeightCost(rate, tuple(along), layer)

    def picks(self, choices: dict[str, int]) -> bool:
        """Goes on to the next option of the sites from whose dimension single entries are picked (queries, keys and
        values); whether there were any."""
        labels = self._components()
        picked = {int(labels[vector[0]]) for vector in self.flow.picked}
        names = [
            site.name
            for site in self.flow.sites
            if choices[site.name] + 1 < site.options and picked.intersection(labels[site.vector].tolist())
        ]
        choices.update({name: choices[name] + 1 for name in names})
        return bool(names)

    def sites_of(self, space: Space, reasons: Iterable[str]) -> list[Site]:
        """The sites whose entries are filters of some groups."""
        bad = _filters(space, reasons)
        return [site for site in self.flow.sites if bad.intersection(self.structure[site.vector].tolist())]


def _filters(space: Space, names: Iterable[str]) -> set[int]:
    """The numbers of the filters of some groups."""
    wanted = set(names)
    return {
        number
        for group in space.groups
        if group.name in wanted
        for number in range(group.start, group.start + group.size)
    }


def _form(owner: np.ndarray) -> tuple[tuple[tuple[int, int], ...], int]:
    """How often each structure owns an entry, divided by what all counts have in common; and that divisor."""
    counts = Counter(owner.clip(min=-1).tolist())
    common = math.gcd(*counts.values())
    return tuple(sorted((number, count // common) for number, count in counts.items())), common


def _structures(couplings: Couplings, space: Space, labels: np.ndarray) -> np.ndarray:
    """The structure that owns every entry, -1 where none does; shape (entries,)."""
    by_label = np.full(int(labels.max()) + 1, -1, dtype=np.int64)
    for axis, offset in couplings.offsets.items():
        if axis in space.owners:
            by_label[labels[offset : offset + couplings.lengths[axis]]] = space.owners[axis].numpy()
    return by_label[labels]


def _path(axes: tuple[Axis, ...]) -> str:
    return axes[0][0].rpartition(".")[0]


def _scale_of(weight: str) -> str:
    """The tensor that a filter's gate scales: not the direction of a normalised weight, of which no length matters."""
    for direction, scale in ((".original1", ".original0"), (".weight_v", ".weight_g")):
        if weight.endswith(direction):
            return weight.removesuffix(direction) + scale
    return weight


def _module_of(root: str) -> str:
    """The name of a root, without what a stand-in or a reparametrization adds."""
    for mark in (".stand_in", ".parametrizations.", ".weight_v", ".weight_orig"):
        root = root.partition(mark)[0]
    return root
