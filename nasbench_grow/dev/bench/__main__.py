"""The command line of the benchmark: see ``python -m nasbench_grow.dev.bench --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType

from nasbench_grow.base import blocks
from nasbench_grow.base.errors import UserError, unknown
from nasbench_grow.dev.bench import (
    compiling,
    floor,
    heap,
    memory,
    plain,
    pruning,
    record,
    restructure,
    startup,
    step_time,
    whole_run,
)
from nasbench_grow.dev.bench.settings import FULL, QUICK, Settings
from nasbench_grow.harness import registry
from nasbench_grow.harness.cell import DEFAULT_SETUP
from nasbench_grow.harness.setups import SETUPS

PARTS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (step_time, plain, whole_run, floor, restructure, pruning, compiling, heap, memory, startup)
}
"""Each part has a SUMMARY, ``measure(settings)`` and ``tables(record)``; CPU_ONLY where a GPU has no share in it."""

_EPILOG = """\
parts:
{parts}

Each part writes DIR/NAME.json (raw measurements with machine, versions and date) and DIR/NAME.md (tables with targets),
and puts its tables into the performance page. Everything takes about half an hour on two cores; keep the machine idle.
A part that is stopped leaves its old record; give its name to run it alone. Another set-up than the default has a
folder DIR/SETUP and a place of its own on the page, if there is one.

examples:
  python -m nasbench_grow.dev.bench                     measure everything
  python -m nasbench_grow.dev.bench memory startup      two parts only
  python -m nasbench_grow.dev.bench --setup cuda-bf16   everything that a GPU has a share in, into DIR/cuda-bf16
  python -m nasbench_grow.dev.bench step_time --quick   tiny sizes, meaningless times, nothing is written"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts that were asked for and prints their tables; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        _check_setup(arguments.setup)
        names = _parts(arguments.names, arguments.setup)
        if arguments.quick:
            run(names, QUICK.on(arguments.setup))
        else:
            run(names, FULL.on(arguments.setup), arguments.out, arguments.page)
    except UserError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbench: interrupted; the parts that were finished are kept, name the others to go on", file=sys.stderr)
        return 130
    return 0


def _check_setup(name: str) -> None:
    """Raises a UserError for a set-up that is unknown, cannot run here, or is a form of another one."""
    setup = registry.usable_setup(name)
    if setup.adaptive or setup.compiled or setup.parallel:
        raise UserError(
            f"setup {name!r} is a form of another, whose steps are measured; use setup {name.rpartition('-')[0]!r}"
        )


def _parts(names: Sequence[str], setup: str) -> list[str]:
    """The parts asked for, or all that say something about a set-up.

    Raises:
        UserError: an unknown part, or one that a GPU has no share in.
    """
    on_gpu = SETUPS[setup].device == "cuda"
    for name in names:
        if name not in PARTS:
            raise unknown("part", name, PARTS)
        if on_gpu and _cpu_only(name):
            raise UserError(f"part {name!r} measures the CPU, which setup {setup!r} is not; leave out --setup")
    return list(names) or [name for name in PARTS if not (on_gpu and _cpu_only(name))]


def _cpu_only(name: str) -> bool:
    return getattr(PARTS[name], "CPU_ONLY", False)


def run(names: Collection[str], settings: Settings, out: Path | None = None, page: Path | None = None) -> None:
    """Measures each part, then prints all tables.

    Args:
        names: which parts.
        settings: how much to measure.
        out: folder for records, tables and the figure; None: nothing is written.
        page: a document that shows the tables between markers; left alone where it does not exist.
    """
    found = {}
    settings.setup.activate()
    for name in names:
        print(f"bench: {name}: {PARTS[name].SUMMARY}", file=sys.stderr)
        result = record.provenance(name, settings)
        with settings.setup.autocast():
            result |= PARTS[name].measure(settings)
        found[name] = PARTS[name].tables(result)
        if out is not None:
            _keep(result, found[name], out, page)
    for name, tables in found.items():
        print(f"\n# {name}\n\n{tables}")


def _keep(result: record.Record, tables: str, out: Path, page: Path | None) -> None:
    """Writes the record, its tables, the figure of the step times, and the tables into the page."""
    place = record.place(result)
    record.write_json(out / f"{place}.json", result)
    record.write(out / f"{place}.md", tables + "\n")
    if result["part"] == "step_time":
        from nasbench_grow.dev.bench import figure

        figure.save(figure.draw(result), out / f"{place}.png")
    if page is not None and page.exists():
        text = page.read_text(encoding="utf-8")
        name = record.block(place)
        if place == result["part"] or name in blocks.names(text, "bench"):
            record.write(page, blocks.fill(text, {name: tables}))


def _parser() -> argparse.ArgumentParser:
    parts = "\n".join(f"  {name:12} {module.SUMMARY}" for name, module in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m nasbench_grow.dev.bench",
        description="Measure on this machine what the suite promises about time and memory.",
        epilog=_EPILOG.format(parts=parts),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts to measure (default: all)")
    parser.add_argument("--setup", default=DEFAULT_SETUP, help="see nasbench-grow list setups (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works; writes nothing")
    parser.add_argument("--out", type=Path, default=Path("results/bench"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--page", type=Path, default=Path("docs/performance.md"), metavar="FILE", help="default: %(default)s"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
