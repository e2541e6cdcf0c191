"""What a run has done so far, so that it can be taken up again in the middle of a method's own code.

A method is straight code that trains, decides and trains again. After a kill it is run anew from its first line, and
every step that is in the journal - a training, a judgement, a whole trial - gives at once what it gave then; what lies
between is computed again, to the same end. The first step that the journal does not hold whole goes on where it
stopped.

Each step has a name, its number in the order of the code, and is one entry of a storage. The steps inside a step are
numbered ``3.0``, ``3.1``, ... and are forgotten when it is done, or, of a step that goes on after them, whenever it
keeps where it stands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from nasbench_grow.base.errors import UserError

State = dict[str, Any]


class Storage(Protocol):
    """Keeps states (tensors, numbers, strings, lists, tuples and dicts) by name, each written whole or not at all."""

    def read(self, name: str) -> State | None:
        """The state called ``name``, or None."""
        ...

    def write(self, name: str, state: State) -> None:
        """Keep a state in place of any older one of its name."""
        ...

    def forget(self, prefix: str) -> None:
        """Drop every state whose name begins so."""
        ...


class Memory:
    """Keeps nothing: for a run that nobody resumes."""

    def read(self, name: str) -> State | None:
        """Nothing."""
        return None

    def write(self, name: str, state: State) -> None:
        """Lets it go."""

    def forget(self, prefix: str) -> None:
        """There is nothing to forget."""


class Journal:
    """The steps of a run in the order in which its code takes them."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._prefix = ""
        self.next = 0
        """Number that the next step will have, among those inside the same one."""

    @property
    def inside(self) -> str:
        """Beginning of the name that the next step will have."""
        return self._prefix

    @contextmanager
    def step(self, kind: str) -> Iterator[Step]:
        """The next step of the code, of some kind (``fit``, ``trial``, ...); steps taken inside are part of it.

        Raises:
            UserError: the storage has a step of another kind in its place, as other code left it.
        """
        name = f"{self._prefix}{self.next}"
        outside = self._prefix, self.next + 1
        self._prefix, self.next = f"{name}.", 0
        try:
            yield Step(name, kind, self)
        finally:
            self._prefix, self.next = outside

    def thin(self, name: str, fields: Collection[str]) -> None:
        """Drop these fields from what is kept of a step that is done."""
        state = self.storage.read(name)
        if state is not None and state["done"] and not state.keys().isdisjoint(fields):
            self.storage.write(name, {field: value for field, value in state.items() if field not in fields})


class Step:
    """One step: not begun, begun or done."""

    def __init__(self, name: str, kind: str, journal: Journal) -> None:
        self.name, self._kind, self._journal, self._storage = name, kind, journal, journal.storage
        self.state = self._storage.read(name)
        """What was kept last; None: nothing."""
        if self.state is not None and self.state["kind"] != kind:
            raise UserError(
                f"the checkpoint has a {self.state['kind']} where this method takes a {kind}: other code began the "
                "run; delete the cell's folder in checkpoints/ to begin it anew"
            )

    @property
    def done(self) -> bool:
        """Whether the step was taken to its end."""
        return self.state is not None and bool(self.state["done"])

    def keep(self, state: State, *, done: bool) -> None:
        """Keep where the step stands; what was taken inside must be over.

        Raises:
            UserError: a step inside goes on.
        """
        if self._journal.inside != f"{self.name}.":
            raise UserError(
                "two trainings of this method take turns stage by stage, so that they could not be taken up again; let "
                "one end before the other goes on, e.g. job.fit(model, epochs=1) in turn"
            )
        self.state = {**state, "kind": self._kind, "done": done}
        self._storage.write(self.name, self.state)
        self.forget_inside()

    def forget_inside(self) -> None:
        """Drop the steps taken inside so far: what was kept last comes after them."""
        self._storage.forget(f"{self.name}.")
