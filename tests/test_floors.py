"""The house stands: no room imports one from a floor above, no two files import each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "nasbench_grow"
FLOORS = (
    ("base",),
    ("backbones", "cost"),
    ("structure",),
    ("contract",),
    ("data", "growing"),
    ("tasks", "baselines"),
    ("harness",),
    ("oracle",),
    ("report",),
    ("cli", "results"),
    ("dev",),
)
"""From the ground up, as in ``docs/architecture.md``. Rooms of one floor do not know each other."""

PUBLIC = {"nasbench_grow", "nasbench_grow.contract", "nasbench_grow.growing"}
"""What a method may import: the public names, the contract and, for growing itself, its algorithm."""


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("nasbench_grow", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imports_of(path):
    """The modules of ours that a file imports anywhere, ``from package import name`` as package.name if that is one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "nasbench_grow")


# `baselines` is a link, into which rglob does not go
FILES = {module_of(path): path for path in sorted([*ROOT.rglob("*.py"), *(ROOT / "baselines").glob("*.py")])}
MODULES = set(FILES)
IMPORTS = {name: sorted(set(imports_of(path)) - {name}) for name, path in FILES.items()}


def room(module):
    return module.split(".")[1] if "." in module else "results"  # the package itself is what users import


def floor(module):
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def test_every_room_has_its_floor():
    rooms = {room(module) for module in MODULES if "." in module}
    assert rooms == {name for floor_ in FLOORS for name in floor_}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_file_imports_its_own_room_or_lower_floors(module):
    for imported in IMPORTS[module]:
        if room(module) == "baselines":
            needed = imported in PUBLIC or room(imported) in ("growing", "baselines")
            assert needed, f"{module} imports {imported}: a method needs no more than the contract"
        elif room(imported) != room(module):
            assert floor(imported) < floor(module), f"{module} imports {imported} from a floor above"


def test_no_files_import_each_other():
    state, path = {}, []

    def visit(module):
        if state.get(module) == "done":
            return
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        path.append(module)
        for imported in IMPORTS.get(module, ()):
            if imported in MODULES and "." in imported:
                visit(imported)
        path.pop()
        state[module] = "done"

    for module in sorted(MODULES):
        visit(module)
