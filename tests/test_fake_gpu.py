"""What a machine without a GPU can say of runs on one: operations on tensors of a GPU that have no values.

PyTorch refuses them as the real ones would be where devices are mixed, and where a value is asked for, which on a real
GPU the CPU would have to wait for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from families import network, space, structure
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from nasbench_grow.backbones import create
from nasbench_grow.structure import recurrent, subnetwork
from nasbench_grow.structure.exactness import _over
from nasbench_grow.structure.gating import GatedNetwork
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import absorb, carry_optimizer, carry_state, extract


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda self, memo: self, raising=False)  # networks are copied
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            torch.empty(1, device="cuda")
        except (AssertionError, RuntimeError) as error:
            pytest.skip(f"this PyTorch has no fake GPU: {error}")
        yield


def on_gpu(model: nn.Module) -> nn.Module:
    """The module itself, its tensors replaced by such without values."""
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(torch.empty_like(parameter, device="cuda"))
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = torch.empty_like(buffer, device="cuda")
    return model


@pytest.fixture(params=["cifar_resnet", "mobilenetv2", "vit"])
def gated(request: pytest.FixtureRequest) -> tuple[Space, GatedNetwork]:
    """Decided and cut on the CPU, as the structures of a run are, then moved."""
    configuration = space(request.param)
    small = extract(configuration, network(request.param), configuration.full())
    return configuration, GatedNetwork(configuration, configuration.full(), small)


def moved(gated: GatedNetwork) -> GatedNetwork:
    on_gpu(gated.network)
    gated._numbers = torch.empty_like(gated._numbers, device="cuda")
    return gated


@pytest.mark.parametrize("family", ["cifar_resnet", "mobilenetv2", "vit"])
def test_a_restructuring_mixes_no_devices(family: str, monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    with unset_fake_temporarily():
        configuration, dense_model = space(family), copy.deepcopy(network(family))
        before, after = (structure(configuration, 0, share) for share in (0.4, 0.9))
    for name in ("kept", "layer_present"):  # decided on the CPU
        monkeypatch.setattr(Space, name, without_fakes(getattr(Space, name)))
    monkeypatch.setattr(subnetwork, "set_attributes", without_fakes(subnetwork.set_attributes))
    on_gpu(dense_model)
    old, new = (extract(configuration, dense_model, present) for present in (before, after))
    first, second = (torch.optim.SGD(each.parameters(), momentum=0.9, fused=True) for each in (old, new))
    for parameter in old.parameters():
        first.state[parameter]["momentum_buffer"] = torch.empty_like(parameter)
    absorb(configuration, dense_model, before, old)
    carry_optimizer(configuration, (before, old, first), (after, new, second))
    carry_state(configuration, (before, old), (after, new))
    carried = [(parameter, second.state[parameter]["momentum_buffer"]) for parameter in new.parameters()]
    assert carried and all(
        each.device.type == "cuda" and each.stride() == parameter.stride() for parameter, each in carried
    )
    assert all(tensor.device.type == "cuda" for each in (dense_model, new) for tensor in each.state_dict().values())


def without_fakes(decide: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, in which CPU tensors keep their values."""

    def decided(*arguments: Any) -> Any:
        with unset_fake_temporarily():
            return decide(*arguments)

    return decided


def test_gates_wait_for_no_value(gated: tuple[Space, GatedNetwork], gpu: None) -> None:
    configuration, on_cpu = gated
    network = moved(on_cpu)
    scaled = network.scaled(torch.ones(len(configuration), device="cuda"))
    assert scaled and all(tensor.device.type == "cuda" for tensor in scaled.values())


def test_a_language_model_is_traced_where_it_is(gpu: None) -> None:
    with_stand_ins = recurrent.with_stand_ins(on_gpu(create("lstm_200", 50, 1)))
    logits = with_stand_ins(torch.zeros(1, 36, dtype=torch.int64, device="cuda"))
    assert logits.device.type == "cuda"


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(1, 8)], ids=["layer norm", "group norm"])
def test_a_norm_over_the_present_channels_is_computed_where_it_is(norm: nn.Module, gpu: None) -> None:
    on_gpu(norm)
    given: Tensor = torch.empty(4, 8, 8, device="cuda")
    assert _over(torch.arange(4), norm, (given,), norm(given)).device.type == "cuda"
