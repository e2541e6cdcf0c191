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
Each model is examined in a process of its own and leaves DIR/records/SOURCE/MODEL.json. A record is kept until the
libraries or the code that an examination runs change, so that a command that was stopped goes on where it was.

examples:
  python -m nasbench_grow.dev.model_table                           all models, then the page
  python -m nasbench_grow.dev.model_table timm:resnet18 --again     one model anew"""


def main(argv: Sequence[str] | None = None) -> int:
    """Examines the models that were asked for and writes the page; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        known = entries.entries(arguments.out / "entries.json", arguments.processes)
        for name in arguments.names:
            if name not in known:
                raise unknown("model", name, known)
        runner.run(
            {name: known[name] for name in arguments.names or known},
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
        print("\nmodel_table: interrupted; finished models are kept, run it again to go on", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nasbench_grow.dev.model_table",
        description="Try discovery, extraction and training on models of timm, of torchvision, and written by hand.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="MODEL", help="models to examine (default: all)")
    parser.add_argument("--again", action="store_true", help="examine models with a good record too")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="at once (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=120, metavar="S", help="limit of a model's CPU time (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("results/models"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--page", type=Path, default=Path("docs/models.md"), metavar="FILE", help="default: %(default)s"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
