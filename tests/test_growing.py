"""Growing in one call, and saving, loading and describing what it returns."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_networks import EXAMPLE, Plain, Residual, seeded, sgd
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import nasbench_grow
from nasbench_grow import (
    RelaxationSettings,
    SamplingSettings,
    ScalingSettings,
    UserError,
    count_macs,
    describe,
    grow,
    load,
    rebuild,
)
from nasbench_grow.growing.api import Grown

KINDS = {"relaxation": RelaxationSettings(), "scaling": ScalingSettings(), "sampling": SamplingSettings()}
every = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)


def samples(count: int = 24, shape: tuple[int, ...] = (1, 8, 8)) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, *shape, generator=generator)
    return TensorDataset(inputs, torch.randint(0, 10, (count,), generator=generator))


def grown_from(model: nn.Module, **changes: Any) -> Grown:
    loader = DataLoader(samples(), batch_size=8)
    return grow(model, EXAMPLE, loader, **{"epochs": 8, "granularity": 1, "progress": False, **changes})


@cache
def plain() -> Grown:
    return grown_from(seeded(Plain))


@cache
def residual() -> Grown:
    return grown_from(seeded(Residual), budget=0.3, seed=2, settings=SamplingSettings(layer_start=-1.0))


@cache
def from_timm() -> tuple[nn.Module, Grown]:
    dense = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    loader = DataLoader(samples(8, (1, 32, 32)), batch_size=4)
    return dense, grow(dense, torch.zeros(1, 1, 32, 32), loader, epochs=3, progress=False)


# --- growing ---


def test_a_user_written_model_becomes_a_small_ordinary_network():
    grown = plain()
    network = grown.network
    assert type(network) is Plain and not network.training
    assert {type(module) for module in network.modules()} <= {Plain, nn.Conv2d, nn.BatchNorm2d, nn.Linear}
    for module in network.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in network.parameters())
    assert network(torch.randn(5, 1, 8, 8)).shape == (5, 10)
    assert sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in Plain().parameters())
    assert network.conv2.out_channels == network.conv2.weight.shape[0] == network.bn2.num_features < 16


@every
def test_the_macs_are_those_of_the_network(settings):
    grown = grown_from(seeded(Plain), settings=settings, epochs=4)
    assert grown.macs == count_macs(grown.network, EXAMPLE)
    assert grown.dense_macs == count_macs(Plain(), EXAMPLE)
    assert grown.dense_train_macs == 3 * grown.dense_macs * 24 * 4
    assert 0 < grown.train_macs < grown.dense_train_macs


def test_the_budget_is_met():
    assert abs(plain().macs / plain().dense_macs - 0.5) <= 0.02


def test_the_history_has_an_entry_an_epoch():
    grown = grown_from(seeded(Plain), settings=ScalingSettings(growth=0.5))
    history = grown.history
    assert [entry["epoch"] for entry in history] == list(range(1, 9))
    assert all(math.isfinite(entry["loss"]) for entry in history)
    assert history[0]["cost"] < history[-1]["cost"] == pytest.approx(grown.macs / grown.dense_macs)
    network = grown.network
    widths = {name: network.get_submodule(name).out_channels for name in ("conv1", "conv2", "conv3")}
    assert history[-1]["widths"] == {**widths, "fc": 10}


def test_progress_is_silent_when_it_is_off(capfd):
    grown_from(seeded(Plain), epochs=1)
    assert capfd.readouterr() == ("", "")
    grown_from(seeded(Plain), epochs=1, progress=True)
    assert "growing" in capfd.readouterr().err


def test_loss_optimizer_and_schedule_of_ones_own_are_used():
    rates, losses = [], []

    def rate(progress: float) -> float:
        rates.append(progress)
        return 0.01

    def loss(output: Tensor, target: Tensor) -> Tensor:
        losses.append(F.cross_entropy(output, target, label_smoothing=0.1))
        return losses[-1]

    def adam(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters())

    grown = grown_from(seeded(Plain), epochs=4, loss=loss, optimizer=adam, learning_rate_at=rate)
    assert sorted(set(rates)) == pytest.approx([step / 12 for step in range(1, 13)])
    assert len(losses) == 4 * 3, "nothing but the steps of training asks for a loss"
    assert grown.history[0]["loss"] == pytest.approx(sum(loss.item() for loss in losses[:3]) / 3)


def test_the_rates_of_an_optimizer_of_ones_own_stay_and_keep_their_ratio_under_a_schedule():
    made = []

    def two_rates(network: nn.Module) -> torch.optim.Optimizer:
        head = list(network.fc.parameters())
        rest = [parameter for name, parameter in network.named_parameters() if not name.startswith("fc.")]
        made.append(torch.optim.SGD([{"params": rest, "lr": 0.02}, {"params": head, "lr": 0.1}]))
        return made[-1]

    def rates() -> list[float]:
        return [group["lr"] for group in made[-1].param_groups]

    grown_from(seeded(Plain), epochs=2, optimizer=two_rates)
    assert len(made) > 2 and rates() == [0.02, 0.1]
    grown_from(seeded(Plain), epochs=2, optimizer=two_rates, learning_rate_at=lambda progress: 0.03 * progress)
    assert rates() == pytest.approx([0.006, 0.03])  # the fastest has the schedule's


def test_what_is_returned_holds_no_gradients():
    assert all(parameter.grad is None for parameter in plain().network.parameters())


def test_the_same_seed_gives_the_same_network():
    other = grown_from(seeded(Plain)).network.state_dict()
    first = plain().network.state_dict()
    assert all(torch.equal(other[name], tensor) for name, tensor in first.items())


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(samples())


@pytest.mark.parametrize(
    "loader", [list(DataLoader(samples(), batch_size=8)), DataLoader(Stream(), batch_size=8)], ids=["list", "stream"]
)
def test_any_iterable_of_batches_will_do(loader):
    grown = grow(seeded(Plain), EXAMPLE, loader, epochs=2, progress=False)
    assert grown.dense_train_macs == 3 * grown.dense_macs * 24 * 2


class Counted(Stream):
    passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        Counted.passes += 1
        yield from super().__iter__()


def test_a_loader_without_a_length_is_counted_once(monkeypatch):
    monkeypatch.setattr(Counted, "passes", 0)
    grow(seeded(Plain), EXAMPLE, DataLoader(Counted(), batch_size=8), epochs=3, progress=False)
    assert Counted.passes == 1 + 3


# --- bad input ---


def refused(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@every
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(value, settings):
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return value * output.sum()

    refused(
        "the training loss became .* in epoch 1; give a lower learning rate",
        lambda: grown_from(seeded(Plain), loss=loss, settings=settings, optimizer=sgd),
    )


@pytest.mark.parametrize("epochs", [0, -3])
def test_epochs_below_one_are_refused(epochs):
    refused(f"epochs {epochs} is below 1", lambda: grown_from(Plain(), epochs=epochs))


def test_a_part_of_an_epoch_is_refused_before_training():
    refused("epochs 1.5 is no whole number", lambda: grown_from(Plain(), epochs=1.5))


@pytest.mark.parametrize("budget", [{}, {"budget_ms": 5.0}])
@pytest.mark.parametrize("settings", [{}, "grow"])
def test_settings_of_another_kind_are_refused(settings, budget):
    said = "give SamplingSettings, ScalingSettings, RelaxationSettings or None"
    refused(said, lambda: grown_from(Plain(), settings=settings, **budget))


def test_an_empty_loader_is_refused():
    refused("the loader gives no batch", lambda: grow(Plain(), EXAMPLE, [], progress=False))


class Short(list):
    """Says that it has more batches than it gives."""

    def __len__(self) -> int:
        return super().__len__() + 2


@every
def test_a_loader_that_gives_fewer_batches_than_it_says_is_refused(settings):
    loader = Short(DataLoader(samples(), batch_size=8))
    refused(
        "the training data end after 3 of the 5 batches that epoch 1 should have",
        lambda: grow(seeded(Plain), EXAMPLE, loader, settings=settings, progress=False),
    )


def test_a_loader_that_can_be_looped_over_only_once_is_refused():
    once = (batch for batch in DataLoader(samples(), batch_size=8))
    refused("generator gives its batches only once", lambda: grow(Plain(), EXAMPLE, once, progress=False))


def test_a_model_without_parameters_is_refused():
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
    refused("no parameters: there is nothing to train", lambda: grown_from(model))


def test_a_budget_out_of_range_is_refused():
    refused(r"budget 2 is outside \(0, 1\]", lambda: grown_from(Plain(), budget=2))


# --- saving and loading ---


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(
        torch.equal(tensor, others[name]) and tensor.dtype == others[name].dtype for name, tensor in mine.items()
    )


def test_a_timm_model_is_loaded_without_its_class(tmp_path):
    _, grown = from_timm()
    network = load(grown.save(tmp_path / "small.safetensors"))
    assert not network.training
    assert equal(network, grown.network)
    inputs = torch.randn(2, 1, 32, 32)
    assert torch.equal(network(inputs), grown.network(inputs))
    assert count_macs(network, torch.zeros(1, 1, 32, 32)) == grown.macs


@pytest.mark.parametrize("make, grown", [(Plain, plain), (Residual, residual)])
def test_a_class_of_ones_own_is_loaded_into_an_instance(make, grown, tmp_path):
    path = grown().save(tmp_path / "small.safetensors")
    dense = make()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    network = load(path, model=dense)
    assert equal(network, grown().network)
    inputs = torch.randn(2, 1, 8, 8)
    assert torch.equal(network(inputs), grown().network(inputs))
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert count_macs(network, EXAMPLE) == grown().macs


def test_a_loaded_network_can_be_trained(tmp_path):
    network = load(plain().save(tmp_path / "small.safetensors"), model=Plain()).train()
    inputs, targets = samples()[:8]
    F.cross_entropy(network(inputs), targets).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_file_holds_tensors_and_text_alone(tmp_path):
    raw = plain().save(tmp_path / "small.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    text = header.pop("__metadata__")
    assert text.pop("architecture") == plain().architecture
    assert list(text) == ["details"] and json.loads(text["details"])["answers"]["output"]
    tensors = plain().network.state_dict()
    assert {name: entry["shape"] for name, entry in header.items()} == {n: list(t.shape) for n, t in tensors.items()}
    assert len(raw) - 8 - length == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def test_saving_replaces_a_file_whole_and_leaves_no_other(tmp_path):
    path = tmp_path / "small.safetensors"
    path.write_bytes(b"old")
    assert plain().save(path) == path
    assert list(tmp_path.iterdir()) == [path]
    assert equal(load(path, model=Plain()), plain().network)


def test_a_file_of_ones_own_class_asks_for_an_instance(tmp_path):
    path = plain().save(tmp_path / "small.safetensors")
    refused(r"not a timm model; give a dense instance of it: load\(path, model=...\)", lambda: load(path))


@pytest.mark.parametrize("other", [Residual, lambda: Plain(4)], ids=["another class", "another size"])
def test_a_model_that_does_not_fit_is_refused(other, tmp_path):
    path = plain().save(tmp_path / "small.safetensors")
    refused("does not fit (Plain|Residual): .*; give the model it came from", lambda: load(path, model=other()))


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"no safetensors " * 9],
    ids=["half", "empty", "other bytes"],
)
def test_a_damaged_file_is_refused(damage, tmp_path):
    path = plain().save(tmp_path / "small.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    refused(r"small.safetensors' is damaged or no safetensors file", lambda: load(path, model=Plain()))


def test_a_missing_file_is_refused(tmp_path):
    refused(r"no file '.*absent'", lambda: load(tmp_path / "absent"))
    refused(r"no file", lambda: load(tmp_path))


def test_a_safetensors_file_of_others_is_refused(tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    refused("holds no architecture", lambda: load(path))
    save_file({"weight": torch.ones(2)}, path, metadata={"architecture": "resnet50"})
    refused("is not an architecture of format", lambda: load(path))
    save_file({"weight": torch.ones(2)}, path, metadata={"architecture": plain().architecture})
    refused("does not fit Plain", lambda: load(path, model=Plain()))


def test_saving_into_a_missing_folder_is_refused(tmp_path):
    refused("no folder '.*absent'", lambda: plain().save(tmp_path / "absent" / "small.safetensors"))


# --- architecture as text ---


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_a_description_of_a_timm_model_is_enough_to_rebuild_it():
    dense, grown = from_timm()
    assert '"backbone": "resnet10t"' in grown.architecture
    rebuilt = rebuild(grown.architecture)
    assert shapes(rebuilt) == shapes(grown.network)
    assert rebuilt(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    assert describe(rebuilt, dense) == grown.architecture


@pytest.mark.parametrize("make, grown", [(Plain, plain), (Residual, residual)])
def test_a_description_rebuilds_the_same_shapes_from_a_dense_instance(make, grown):
    rebuilt = rebuild(grown().architecture, make())
    assert shapes(rebuilt) == shapes(grown().network)
    assert rebuilt(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert describe(rebuilt, make()) == grown().architecture


def test_a_description_names_what_is_gone():
    text = json.loads(residual().architecture)
    gone = [f"blocks.{i}" for i in range(3) if isinstance(residual().network.blocks[i], nn.Identity)]
    assert gone, "the case should have lost a block"
    assert text["removed"] == gone
    assert text["shapes"]["stem.weight"] == list(residual().network.stem.weight.shape)


def test_the_dense_network_is_described_as_unchanged():
    text = json.loads(describe(Plain(), Plain()))
    assert text["removed"] == [] and text["shapes"] == {}
    assert shapes(rebuild(json.dumps(text), Plain())) == shapes(Plain())


@pytest.mark.parametrize("text", ["", "resnet50", "[1]", "null", "{}", '{"backbone": null}'])
def test_other_text_is_no_architecture(text):
    refused("is not an architecture of format", lambda: rebuild(text, Plain()))


# --- the package ---


def test_every_public_name_can_be_had():
    for name in nasbench_grow.__all__:
        assert getattr(nasbench_grow, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'growth'"):
        nasbench_grow.growth  # noqa: B018


def test_importing_the_package_is_light():
    heavy = ["timm", "nni", "pandas", "matplotlib", "torch_pruning", "scipy", "fvcore"]
    code = f"import sys, nasbench_grow; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
