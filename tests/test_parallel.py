"""Several processes that share every batch: the same gradients, the same structures, and what happens if one dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist

from nasbench_grow import cli
from nasbench_grow.base.parallel import from_first, sharing_batches
from nasbench_grow.contract import Job, Recipe
from nasbench_grow.data.segmentation import VOID
from nasbench_grow.growing.beginning import Settings, begin
from nasbench_grow.growing.relaxation import RelaxationSettings
from nasbench_grow.growing.sampling import SamplingSettings
from nasbench_grow.harness import ranks, registry

TIMEOUT_S = 240


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, affine=False), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)),
    ).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 3, 6, 6, generator=generator, dtype=torch.float64)
    inputs[6:] *= 3  # the halves have other statistics
    return inputs, torch.arange(12) % 5


def two_steps(part: slice) -> dict[str, Tensor]:
    """The gradients of the second of two steps on a part of the batch, and the statistics by then."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs, targets = batch()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[part]), targets[part]).backward()
        optimizer.step()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {**gradients, **dict(model.named_buffers())}


def segmentation_gradients(part: slice) -> dict[str, Tensor]:
    """Of a loss that is a mean over the pixels with a class, of which the second half of the batch has few."""
    torch.manual_seed(0)
    task = registry.task("landcover")()
    model = nn.Conv2d(3, task.num_classes, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, targets = batch()
    pixels = (targets.view(-1, 1, 1) + torch.arange(36).view(6, 6)) % task.num_classes
    pixels[6:, 1:] = VOID
    task.loss(model(inputs[part].float()), pixels[part]).backward()
    optimizer.step()
    return {f"segmentation {name}": parameter.grad for name, parameter in model.named_parameters()}


def everything(part: slice) -> dict[str, Tensor]:
    made = from_first(lambda: torch.tensor(float(part.start == 0)))
    gated = growth(part, RelaxationSettings(periods=10, mask_learning_rate=1.0))
    weighed = growth(part, SamplingSettings(growth=0.5, search=0.2, periods=10))
    figures = {**two_steps(part), **segmentation_gradients(part), "made by the first": made}
    return {**figures, "grown by gates": gated, "grown by weighing": weighed}


class Same:
    """The same batch, so many times an epoch."""

    def __init__(self, steps: int, inputs: Tensor, targets: Tensor) -> None:
        self.steps, self.batch = steps, (inputs, targets)

    def __len__(self) -> int:
        return self.steps * len(self.batch[0])

    def steps_per_epoch(self, batch_size: int) -> int:
        return self.steps

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.steps * [self.batch])


def growth(part: slice, settings: Settings) -> Tensor:
    """The structures, and the logits by which they were chosen, after a few steps of growing on a part of each batch:
    on the gradients along gates all processes must agree."""
    model = network().float()
    inputs, targets = batch()
    job = Job(
        budget=0.5,
        seed=0,
        epochs=4,
        granularity=1,
        example=inputs[:1].float(),
        recipe=Recipe(learning_rate=0.1),
        loss=F.cross_entropy,
        build=lambda: model,
        train=Same(5, inputs[part].float(), targets[part]),
    )
    growing_model, growing = begin(job, settings)
    for _ in job.fit(growing_model, growing):
        pass
    return torch.cat([growing_model.structures.float(), growing.masks.logits.detach()])


def one_process(number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=number, world_size=2)
    half = slice(0, 6) if number == 0 else slice(6, 12)
    with sharing_batches():
        torch.save(everything(half), folder / f"{number}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_gradients_and_structures_of_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=one_process, args=(number, tmp_path)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=TIMEOUT_S)

    expected = everything(slice(0, 12))
    for number in range(2):
        found = torch.load(tmp_path / f"{number}.pt")
        assert found.keys() == expected.keys()
        for name in expected:
            rounding = {"rtol": 1e-4, "atol": 1e-4} if name == "grown by weighing" else {}  # sums of logarithms
            torch.testing.assert_close(found[name], expected[name], msg=name, **rounding)


def test_alone_nothing_is_changed() -> None:
    expected = two_steps(slice(0, 12))
    plain = F.batch_norm
    with sharing_batches():
        assert F.batch_norm is not plain
    assert F.batch_norm is plain
    torch.testing.assert_close(two_steps(slice(0, 12)), expected)


def words(folder: Path, **changes: Any) -> list[str]:
    """A run by two processes, started from this one: only they need to import everything."""
    options = {
        **{"method": "grow[least_search=0]", "task": "digits", "backbone": "cifar_resnet20", "budget": 0.5, "seed": 0},
        **{"epochs": 3, "train_samples": 320, "setup": "cpu-ddp", "results": folder, **changes},
    }
    return ["run", *(word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value)))]


def record(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "records").glob("*.json")
    return dict(json.loads(path.read_text()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cell that two processes ran from its beginning to its end."""
    folder = tmp_path_factory.mktemp("whole")
    assert cli.main(words(folder)) == 0
    return folder


def test_a_cell_run_by_two_processes_grows_as_by_one(tmp_path: Path, whole: Path) -> None:
    assert cli.main(words(tmp_path, setup="cpu")) == 0

    one, two = record(tmp_path), record(whole)
    assert (one["hardware"]["processes"], two["hardware"]["processes"]) == (1, 2)
    assert two["train_macs"] == pytest.approx(one["train_macs"], rel=0.01)
    assert two["macs"] == pytest.approx(one["macs"], rel=0.02)
    assert len(list((whole / "histories").iterdir())) == 1
    assert not list((whole / "checkpoints").iterdir())


def test_a_killed_process_ends_the_run_with_one_line_and_the_run_goes_on(
    tmp_path: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killer = threading.Thread(target=kill_second_rank_after_an_epoch, args=(tmp_path,))
    killer.start()
    assert cli.main(words(tmp_path)) == 1
    killer.join()
    printed, complaint = capfd.readouterr()

    assert "process 1 of 2 was ended by SIGKILL" in printed
    assert "goes on after the last finished epoch" in printed
    assert "Traceback" not in printed + complaint
    assert record(tmp_path)["status"] == "failed"

    assert cli.main(words(tmp_path)) == 0
    assert record(tmp_path)["weights_sha256"] == record(whole)["weights_sha256"]


def kill_second_rank_after_an_epoch(folder: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not list(folder.glob("checkpoints/*/*.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.environ().get("LOCAL_RANK") == "1":
                process.send_signal(signal.SIGKILL)


def test_a_process_whose_memory_is_full_costs_no_checkpoint() -> None:
    failure = ranks._failure({"full": "CUDA out of memory (in process 1 of 2)"}, "", 2)
    assert isinstance(failure, ranks.RankDiedError) and "process 1 of 2" in str(failure)


def test_a_batch_that_cannot_be_shared_equally_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words(tmp_path, method="dense", budget=1, train_samples=31)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert lines == [
        "nasbench-grow: error: setup 'cpu-ddp' cannot share batches of 31 equally among 2 processes; use setup 'cpu'"
    ]
