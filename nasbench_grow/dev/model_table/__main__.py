"""The command line of the model table: see ``python -m nasbench_grow.dev.model_table --help``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nasbench_grow.base import blocks
from nasbench_grow.base.errors import UserError, unknown
from nasbench_grow.dev.bench.record import block, write
from nasbench_grow.dev.model_table import entries, page, runner

_EPILOG = """\
Each family is examined in a process of its own and leaves DIR/records/FAMILY.json. A record is kept until the libraries
or the code that an examination runs change, so that a command that was stopped goes on where it was.

examples:
  python -m nasbench_grow.dev.model_table                     all families, then the page
  python -m nasbench_grow.dev.model_table resnet --again      one family anew"""


def main(argv: Sequence[str] | None = None) -> int:
    """Examines the families that were asked for and writes the page; returns the exit code."""
    arguments = _parser().parse_args(argv)
    known = entries.families()
    try:
        for name in arguments.names:
            if name not in known:
                raise unknown("family", name, known)
        chosen = entries.entries(arguments.names or known, arguments.out / "entries.json", arguments.processes)
        runner.run(
            chosen,
            arguments.out,
            processes=arguments.processes,
            seconds=arguments.seconds,
            again=arguments.again,
        )
        text = arguments.page.read_text(encoding="utf-8")
        tables = page.tables(runner.load(arguments.out, known), len(known))
        write(arguments.page, blocks.fill(text, {block("models"): tables}))
    except UserError as error:
        print(f"model_table: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nmodel_table: interrupted; finished families are kept, run it again to go on", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nasbench_grow.dev.model_table",
        description="Try discovery, extraction and training on the smallest model of every timm family.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="FAMILY", help="families to examine (default: all)")
    parser.add_argument("--again", action="store_true", help="examine families with a good record too")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="at once (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=300, metavar="S", help="time limit of a family (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("results/models"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--page", type=Path, default=Path("docs/models.md"), metavar="FILE", help="default: %(default)s"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
