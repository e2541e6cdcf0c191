"""The command line, ``nasbench-grow``: see ``nasbench-grow --help``.

PyTorch is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from nasbench_grow.base.errors import UserError

if TYPE_CHECKING:
    from nasbench_grow.harness.cell import Cell
    from nasbench_grow.harness.record import Record
    from nasbench_grow.harness.runner import Progress
    from nasbench_grow.harness.store import Store

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_KINDS = ("methods", "tasks", "backbones", "setups", "profiles")

_DESCRIPTION = "Grow efficient networks while they train, and compare with pruning baselines on equal terms."

_EPILOG = """\
examples:
  nasbench-grow list methods
  nasbench-grow reproduce --profile smoke
  nasbench-grow run --method grow --task digits --backbone cifar_resnet20 --budget 0.5 --seed 0 --epochs 5
  nasbench-grow report
  nasbench-grow grow --model resnet50 --data photos --budget 0.5 --epochs 90 --out small

exit codes: 0 all went well (or was skipped with a reason), 1 a cell failed or diverged, 2 bad input, 130 interrupted"""

_RUN_EPILOG = """\
A cell that is finished is not run again: its record is printed. An interrupted one goes on after its last epoch,
to the same result. A failed or diverged one starts again from the beginning, unless memory was full or a process was
killed: then it goes on too. A method that begins with the result of another cell has that one run first.

settings of a method stand in brackets behind its name, in quotes because shells read brackets; those left out are at
their defaults. `nasbench-grow list methods --json` has them all. A setting that names a method may bring that one's:
  --method 'grow[growth=0.2,periods=40]'
  --method 'retrain[of=grow[growth=0.2,periods=40]]'

examples:
  nasbench-grow run --method dense --task digits --backbone cifar_resnet20 --budget 1 --seed 0 --epochs 5
  nasbench-grow run --method grow --task cifar10 --backbone resnet18 --budget 0.25 --seed 1 --epochs 20 --json"""

_GROW_EPILOG = """\
FOLDER holds one sub-folder of images for each class, or `train`, `val` and perhaps `test` that do: the last judges the
finished network. Where it is not divided, a share of each class is held out. OUT holds afterwards: model.safetensors
(nasbench_grow.load reads it), model.onnx (with the extra `onnx`), README.md (what the network is, how good and how
fast), history.csv, growth.png, and the folder `run`.
An interrupted run goes on after its last epoch when the same command is given again, to the same result.

A checkpoint fills the dense model with trained weights; each filter and layer that joins the growing network brings
its own of them. Its last layer may have other classes: then that one starts afresh.

examples:
  nasbench-grow grow --model resnet50 --data photos --budget 0.5 --epochs 90 --out small
  nasbench-grow grow --model my_models:tiny --data photos --image-size 64 --augmentation shift --out small
  nasbench-grow grow --model vit_tiny_patch16_224 --data photos --checkpoint vit.pth --learning-rate 5e-3 --out s"""

_REPRODUCE_EPILOG = """\
Finished cells are passed over, interrupted ones go on after their last epoch, failed and diverged ones start again
(unless memory was full or a process was killed: then they go on). A cell whose method has no meaning for its task or
backbone is recorded as skipped, with the reason, and counts as done. A cell that fails is recorded with its error and
the others go on. Several processes may share one folder, and --jobs N starts as many: each runs one cell after
another, on its share of the cores or beside the others on the GPU. A cell waits for the one that it begins with. Times
of cells that ran beside others are kept, but not compared.

examples:
  nasbench-grow reproduce --dry-run
  nasbench-grow reproduce --profile laptop --methods grow,uniform --results results
  nasbench-grow reproduce --profile paper --setup cuda-bf16 --results results/gpu --jobs 12"""

_REPORT_EPILOG = """\
Writes DIR/README.md, DIR/tables and DIR/figures, with --html DIR/report.html too. In FILE, what stands between the
lines <!-- report:BLOCK:TABLE --> and <!-- /report:BLOCK:TABLE --> is written anew and the rest is left alone.

examples:
  nasbench-grow report --html
  nasbench-grow report --results results/ablations --document docs/ablations.md"""


class _Parser(argparse.ArgumentParser):
    """Answers bad arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"nasbench-grow: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Prints the version of the installed package."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> None:
        from importlib.metadata import version

        print(f"nasbench-grow {version('nasbench-grow')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(words)
    previous = signal.signal(signal.SIGTERM, _terminate)
    arguments.words = words
    try:
        return int(arguments.command(arguments))
    except UserError as error:
        print(f"nasbench-grow: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        command = shlex.join(["nasbench-grow", *words])
        print(f"\nnasbench-grow: interrupted; go on from the last finished epoch with: {command}", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nasbench-grow",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    listing = _command(commands, "list", _list, "show what can be named in the other commands")
    listing.add_argument("kind", choices=_KINDS)
    listing.add_argument("--json", action="store_true", help="print a JSON list instead of a table")

    run = _command(commands, "run", _run, "run one cell: a method on a task and a backbone", _RUN_EPILOG)
    run.add_argument(
        "--method",
        required=True,
        help="see nasbench-grow list methods; with settings: 'grow[growth=0.2]' (see below)",
    )
    run.add_argument("--task", required=True, help="see nasbench-grow list tasks")
    run.add_argument("--backbone", required=True, help="see nasbench-grow list backbones; any timm name works")
    run.add_argument(
        "--budget",
        required=True,
        type=_budget,
        help="inference MACs to end with, as a share of the dense network's; with 'grow[cost=time]' the time of a "
        "training step as a share of the dense network's, or in milliseconds: 12ms",
    )
    run.add_argument("--seed", required=True, type=int, help="decides everything random: a whole number from 0")
    run.add_argument("--epochs", type=int, metavar="E", help="passes over the training data (default: 160)")
    run.add_argument("--train-samples", type=int, metavar="N", help="train on a fixed choice of N samples")
    run.add_argument("--setup", help="device and memory layout, see nasbench-grow list setups (default: cpu)")
    _results(run)
    run.add_argument("--dry-run", action="store_true", help="say what the cell will cost, run nothing")
    run.add_argument("--json", action="store_true", help="print the record as the last line of stdout")

    _ships(run)
    run.add_argument("--save", metavar="DIR", help="write the network with its card, ONNX file and history to DIR")

    own = _command(commands, "grow", _grow, "train a smaller network on a folder of images and ship it", _GROW_EPILOG)
    own.add_argument("--model", required=True, help="a timm name, or module:function: the dense model")
    own.add_argument("--data", required=True, metavar="FOLDER", help="the images, one sub-folder a class")
    own.add_argument("--out", required=True, metavar="OUT", help="where the network and its card are written")
    own.add_argument(
        "--budget", type=float, default=0.5, help="share of the dense model's inference MACs (default: 0.5)"
    )
    own.add_argument("--epochs", type=int, default=90, metavar="E", help="passes over the images (default: 90)")
    own.add_argument("--method", default="grow", help="see nasbench-grow list methods (default: grow)")
    own.add_argument("--checkpoint", metavar="FILE", help="trained weights to start from, .safetensors or .pth")
    own.add_argument("--batch-size", type=int, default=64, metavar="N", help="images in a step (default: 64)")
    own.add_argument("--image-size", type=int, metavar="PX", help="side of what the model sees (default: the model's)")
    own.add_argument(
        "--learning-rate", type=float, metavar="R", help="the highest (default: 0.1 for 256 images, in proportion)"
    )
    own.add_argument(
        "--augmentation",
        default="crop",
        help="crop, shift (small images), none, or a policy of timm's like rand-m9-mstd0.5 (default: crop)",
    )
    own.add_argument(
        "--val-share", type=float, default=0.2, metavar="S", help="held out where there is no val folder (default: 0.2)"
    )
    own.add_argument(
        "--seed", type=int, default=0, help="decides everything random, the held out images too (default: 0)"
    )
    own.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    _ships(own)

    many = _command(commands, "reproduce", _reproduce, "run every unfinished cell of a profile", _REPRODUCE_EPILOG)
    many.add_argument("--profile", default="laptop", help="see nasbench-grow list profiles (default: laptop)")
    many.add_argument(
        "--methods", type=_names, metavar="A,B", help="only these methods of the profile, with settings or without"
    )
    many.add_argument("--setup", help="run them on this set-up, see nasbench-grow list setups (default: the profile's)")
    many.add_argument("--tasks", type=_names, metavar="A,B", help="only these tasks of the profile")
    many.add_argument(
        "--jobs",
        type=_jobs,
        default=1,
        metavar="N",
        help="run N cells at once, in N processes that share the machine's cores or its one GPU (default: 1)",
    )
    _results(many)
    many.add_argument("--dry-run", action="store_true", help="list the cells and what they will cost, run nothing")

    report = _command(
        commands, "report", _report, "write tables and figures from the records of a results folder", _REPORT_EPILOG
    )
    _results(report)
    report.add_argument(
        "--reference",
        default="grow",
        metavar="METHOD",
        help="compare every other method with this one, seed by seed (default: grow)",
    )
    report.add_argument(
        "--html",
        action="store_true",
        help="write DIR/report.html as well: a page to sort, filter and hover on, one file that needs no network",
    )
    report.add_argument("--document", metavar="FILE", help="fill the marked blocks of this Markdown file as well")

    data = _command(commands, "data", None, "handle data sets")
    data_commands = data.add_subparsers(metavar="COMMAND", required=True)
    fetch = _command(data_commands, "fetch", _fetch, "find or download a task's data and check them")
    fetch.add_argument("task", metavar="NAME", help="see nasbench-grow list tasks")
    return parser


def _command(commands: Any, name: str, function: Any, summary: str, epilog: str | None = None) -> _Parser:
    parser: _Parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    return parser


def _results(parser: _Parser) -> None:
    parser.add_argument("--results", default="results", metavar="DIR", help="results folder (default: results)")


def _ships(parser: _Parser) -> None:
    parser.add_argument(
        "--tensorboard", metavar="DIR", help="write loss, metric, MACs and widths there for TensorBoard"
    )


def _names(text: str) -> list[str]:
    from nasbench_grow.contract.settings import split_list

    return [name.strip() for name in split_list(text) if name.strip()]


def _jobs(text: str) -> int:
    try:
        jobs = int(text)
    except ValueError:
        jobs = 0
    if jobs < 1:
        raise argparse.ArgumentTypeError(f"invalid number of jobs {text!r}: give a whole number from 1")
    return jobs


def _budget(text: str) -> float | str:
    """A share, or a time in milliseconds as it was written."""
    number = text.removesuffix("ms")
    try:
        return float(text) if number == text else f"{float(number):g}ms"
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"invalid budget {text!r}: give a share like 0.5, or a time like 12ms"
        ) from error


def _share(arguments: argparse.Namespace, setup: str) -> float:
    """The budget as a share of what the dense network costs."""
    from nasbench_grow.harness.milliseconds import share_of_cell

    if isinstance(arguments.budget, float):
        return arguments.budget
    milliseconds = float(arguments.budget.removesuffix("ms"))
    cell = {name: getattr(arguments, name) for name in ("method", "task", "backbone", "train_samples")}
    share = share_of_cell(milliseconds, **cell, setup=setup)
    print(f"a step of {arguments.budget} is {share:g} of the dense network's", file=sys.stderr)
    return share


def _list(arguments: argparse.Namespace) -> int:
    from nasbench_grow.harness.listing import listing

    rows = listing(arguments.kind)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        width = max((len(row["name"]) for row in rows), default=0)
        for row in rows:
            print(f"{row['name']:<{width}}  {row['summary']}")
    return OK


def _run(arguments: argparse.Namespace) -> int:
    from nasbench_grow.harness.cell import DEFAULT_SETUP, make_cell
    from nasbench_grow.harness.progress import describe, epoch_bar
    from nasbench_grow.harness.record import is_settled
    from nasbench_grow.harness.reproduce import with_sources
    from nasbench_grow.harness.store import Store

    given = {name: getattr(arguments, name) for name in ("epochs", "setup") if getattr(arguments, name) is not None}
    budget = _share(arguments, arguments.setup or DEFAULT_SETUP)
    cell = make_cell(
        method=arguments.method,
        task=arguments.task,
        backbone=arguments.backbone,
        budget=budget,
        seed=arguments.seed,
        train_samples=arguments.train_samples,
        **given,
    )
    if cell.budget != budget:
        print(f"{cell.method} ignores the budget: run at budget 1", file=sys.stderr)
    if arguments.dry_run:
        return _plan(with_sources([cell]), arguments.results)
    store = Store(arguments.results)
    if arguments.save:
        from nasbench_grow.report.shipping import check_free, ship  # imports pandas and matplotlib

        check_free(arguments.save, cell)
    with epoch_bar(cell) as tell:
        record = _followed(cell, store, tell, arguments.tensorboard)
    if arguments.save and record["status"] == "ok":
        for line in ship(cell, store, arguments.save, command=["nasbench-grow", *arguments.words]):
            print(line, file=sys.stderr)
    if arguments.json:
        print(json.dumps(record))
    else:
        print(f"{cell}: {describe(record)}")
        print(f"record: {os.path.join(arguments.results, 'records', record['run_key'])}.json")
    return OK if is_settled(record) else FAILED


def _followed(cell: Cell, store: Store, tell: Progress, tensorboard: str | None) -> Record:
    """The record of a cell, whose epochs are told to a person and, if wanted, to TensorBoard."""
    from nasbench_grow.harness.board import board
    from nasbench_grow.harness.reproduce import run_one

    if tensorboard is None:
        return run_one(cell, store, progress=tell)
    with board(tensorboard) as write:
        told = 0

        def both(entry: dict[str, Any]) -> None:
            nonlocal told
            told += 1
            tell(entry)
            write(entry)

        record = run_one(cell, store, progress=both)
        for entry in [] if told else store.history(cell.run_key()):  # it was finished before
            write(entry)
    return record


def _grow(arguments: argparse.Namespace) -> int:
    from nasbench_grow.harness import dense
    from nasbench_grow.harness.own_cell import OwnRun, own_cell
    from nasbench_grow.harness.progress import describe, epoch_lines
    from nasbench_grow.harness.record import is_settled
    from nasbench_grow.harness.store import Store
    from nasbench_grow.report.shipping import CARD, check_free, ship

    asked = OwnRun(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(OwnRun)})
    cell, task = own_cell(asked)
    folder = check_free(arguments.out, cell)
    if cell.budget != asked.budget:
        print(f"{cell.method} ignores the budget: run at budget 1", file=sys.stderr)
    print(f"{asked.data}: {task.summary}", file=sys.stderr)
    store = Store(folder / "run")
    macs = dense.macs(cell.backbone, cell.task)
    with epoch_lines(cell, macs, lambda accuracy: f"accuracy {accuracy:.1%}") as tell:
        record = _followed(cell, store, tell, arguments.tensorboard)
    print(describe(record, task.judged_by()))
    if record["status"] == "ok":
        command = ["nasbench-grow", *arguments.words]
        for line in ship(cell, store, folder, class_names=task.class_names, command=command):
            print(line)
        print(f"card: {folder / CARD}")
    return OK if is_settled(record) else FAILED


def _reproduce(arguments: argparse.Namespace) -> int:
    from nasbench_grow.harness import jobs, registry
    from nasbench_grow.harness.reproduce import cells_of, reproduce
    from nasbench_grow.harness.store import Store

    profile = registry.profile(arguments.profile)
    if arguments.setup is not None and not arguments.dry_run:
        registry.usable_setup(arguments.setup)
    cells = cells_of(profile, arguments.methods, arguments.tasks, arguments.setup)
    if arguments.dry_run:
        return _plan(cells, arguments.results, arguments.jobs)
    store = Store(arguments.results)
    if arguments.jobs > 1:
        outcome = jobs.reproduce(cells, store, arguments.jobs, profile=profile.name)
    else:
        outcome = reproduce(cells, store, profile=profile.name)
    counts = ", ".join(f"{count} {status}" for status, count in outcome.items() if count)
    print(f"{len(cells)} cells in {arguments.results}: {counts}")
    return OK if outcome["ok"] + outcome["skipped"] == len(cells) else FAILED


def _plan(cells: Sequence[Cell], folder: str, jobs: int = 1) -> int:
    from nasbench_grow.harness.estimate import plan
    from nasbench_grow.harness.store import Store

    print(plan(cells, Store(folder, repair=False), jobs))
    return OK


def _report(arguments: argparse.Namespace) -> int:
    from nasbench_grow import report

    with warnings.catch_warnings():
        warnings.showwarning = _warn  # type: ignore[assignment]
        page, *others = report.write(arguments.results, arguments.reference, arguments.document, html=arguments.html)
    print(f"{page} and {len(others)} other files")
    return OK


def _warn(message: Warning | str, *where: Any) -> None:
    """A warning in one line, without the line of code that gave it."""
    print(f"nasbench-grow: warning: {message}", file=sys.stderr)


def _fetch(arguments: argparse.Namespace) -> int:
    from nasbench_grow.harness import registry

    where = registry.task(arguments.task)().fetch()
    print(f"{arguments.task}: {'comes with an installed package' if where is None else where}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
