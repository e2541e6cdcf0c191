"""Multiply-accumulates against closed forms and against PyTorch's own counter; the training meter."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nasbench_grow.base.errors import UserError
from nasbench_grow.cost.macs import count_macs, macs_by_module, uncounted_ops
from nasbench_grow.cost.meter import TrainingMeter

few = settings(max_examples=25, deadline=None)


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def torch_macs(model: nn.Module, example: Tensor) -> int:
    """PyTorch's operator-level count, which takes a multiply-accumulate as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(example)
    return counter.get_total_flops() // 2


@few
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    dims=st.integers(1, 3),
)
def test_a_convolution_costs_its_weights_times_its_output_positions(
    batch: int, groups: int, widths: tuple[int, int], kernel: int, stride: int, bias: bool, dims: int
) -> None:
    c_in, c_out = (groups * width for width in widths)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    conv = kind(c_in, c_out, kernel, stride, padding=1, groups=groups, bias=bias)
    side = (6 + 2 - kernel) // stride + 1
    assert count_macs(conv, torch.zeros(batch, c_in, *[6] * dims)) == conv.weight.numel() * side**dims


@few
@given(groups=st.integers(1, 3), width=st.integers(1, 4), stride=st.integers(1, 3), batch=st.integers(1, 3))
def test_a_transposed_convolution_costs_its_weights_times_its_input_positions(
    groups: int, width: int, stride: int, batch: int
) -> None:
    conv = nn.ConvTranspose2d(groups * width, groups * 2, 3, stride, groups=groups)
    assert count_macs(conv, torch.zeros(batch, groups * width, 5, 4)) == conv.weight.numel() * 5 * 4


def test_same_padding_and_functional_convolutions_are_counted() -> None:
    example = torch.zeros(2, 3, 7, 7)
    assert count_macs(nn.Conv2d(3, 4, 3, padding="same"), example) == 4 * 3 * 9 * 49
    assert count_macs(Call(lambda x: F.conv2d(x, torch.ones(4, 3, 1, 1))), example) == 4 * 3 * 49


def test_normalisation_pooling_and_activations_cost_nothing() -> None:
    free = nn.Sequential(
        nn.BatchNorm2d(8),
        nn.GroupNorm(2, 8),
        nn.InstanceNorm2d(8, affine=True),
        nn.GELU(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(32),
        nn.Softmax(-1),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count_macs(free, torch.zeros(2, 8, 6, 6)) == 0


@few
@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    projected=st.booleans(),
)
def test_an_lstm_costs_four_gates_per_layer_direction_and_step(
    sizes: tuple[int, int, int, int], layers: int, bidirectional: bool, batch_first: bool, projected: bool
) -> None:
    batch, steps, features, hidden = sizes[0], sizes[1], sizes[2], sizes[3] + 1
    out = hidden - 1 if projected else hidden
    lstm = nn.LSTM(
        features,
        hidden,
        layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        proj_size=out if projected else 0,
    )
    directions = 2 if bidirectional else 1
    expected = 0
    for layer in range(layers):
        inputs = features if layer == 0 else directions * out
        expected += directions * (4 * hidden * (inputs + out) + (hidden * out if projected else 0))
    first_axis, second_axis = (batch, steps) if batch_first else (steps, batch)
    example = torch.zeros(first_axis, second_axis, features)
    assert count_macs(lstm, example) == expected * second_axis


def test_recurrent_cells_and_gru_are_counted() -> None:
    assert count_macs(nn.GRU(3, 5, batch_first=True), torch.zeros(2, 7, 3)) == 7 * 3 * 5 * (3 + 5)
    assert count_macs(nn.RNN(3, 5, batch_first=True), torch.zeros(2, 7, 3)) == 7 * 5 * (3 + 5)
    assert count_macs(nn.LSTMCell(3, 5), torch.zeros(2, 3)) == 4 * 5 * (3 + 5)


@pytest.mark.parametrize(
    "equation, shapes, macs",
    [
        ("bij,bjk->bik", [(1, 3, 4), (1, 4, 5)], 3 * 4 * 5),
        ("bij, bkj", [(1, 3, 4), (1, 5, 4)], 3 * 4 * 5),
        ("...ij,...jk", [(1, 2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        ("b...i,io->b...o", [(1, 6, 7, 3), (3, 2)], 6 * 7 * 3 * 2),
        ("bi,ij,jk->bk", [(1, 3), (3, 4), (4, 5)], 3 * 4 + 4 * 5),
        ("bi->b", [(1, 3)], 0),
    ],
)
def test_einsum_costs_the_product_of_the_axes_of_each_pair(
    equation: str, shapes: list[tuple[int, ...]], macs: int
) -> None:
    operands = tuple(torch.zeros(shape) for shape in shapes)
    assert count_macs(Call(lambda *tensors: torch.einsum(equation, *tensors)), operands) == macs


@pytest.mark.parametrize(
    "function, shapes, macs",
    [
        (torch.matmul, [(1, 6, 2, 3), (3, 4)], 6 * 2 * 3 * 4),
        (torch.matmul, [(1, 3), (3,)], 3),
        (torch.bmm, [(2, 3, 4), (2, 4, 5)], 3 * 4 * 5),
        (lambda x, w: torch.addmm(torch.zeros(4), x, w), [(2, 3), (3, 4)], 3 * 4),
        (lambda x, w: torch.baddbmm(torch.zeros(1), x, w), [(2, 3, 4), (2, 4, 5)], 3 * 4 * 5),
        (F.linear, [(2, 5, 3), (4, 3)], 5 * 3 * 4),
        (torch.inner, [(2, 5, 3), (4, 3)], 5 * 3 * 4),
        (lambda x, w: torch.tensordot(x, w, dims=2), [(2, 4, 3), (4, 3, 6)], 4 * 3 * 6),
        (lambda x, w: torch.tensordot(x, w, dims=([2], [0])), [(2, 4, 3), (3, 6)], 4 * 3 * 6),
        (lambda w, x: torch.addmv(torch.zeros(2), w, x), [(2, 3), (3,)], 3),
        (F.bilinear, [(2, 5, 3), (2, 5, 4), (6, 3, 4)], 5 * 6 * 3 * 4),
        (F.scaled_dot_product_attention, [(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6)], 4 * 5 * 7 * (8 + 6)),
    ],
)
def test_products_are_counted_per_sample(function: object, shapes: list[tuple[int, ...]], macs: int) -> None:
    assert count_macs(Call(function), tuple(torch.zeros(shape) for shape in shapes)) == macs


def test_multihead_attention_and_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    split = macs_by_module(layer, torch.zeros(2, 5, 32))
    assert split == {"self_attn": 5 * 4 * 32 * 32 + 2 * 5 * 5 * 32, "linear1": 5 * 32 * 64, "linear2": 5 * 64 * 32}


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_100", "vit_tiny_patch16_224"])
def test_timm_models_agree_with_pytorch(name: str) -> None:
    model, example = timm.create_model(name), torch.zeros(1, 3, 224, 224)
    assert count_macs(model, example) == torch_macs(model, example)
    assert sum(macs_by_module(model, example).values()) == torch_macs(model, example)


def test_resnet50_is_the_published_figure() -> None:
    assert count_macs(timm.create_model("resnet50"), torch.zeros(1, 3, 224, 224)) == pytest.approx(4.089e9, rel=1e-3)


def test_fused_and_unfused_attention_cost_the_same() -> None:
    counts = []
    for fused in (True, False):
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
        for block in vit.blocks:
            block.attn.fused_attn = fused
        counts.append(macs_by_module(vit, torch.zeros(1, 3, 32, 32)))
    tokens, width = 2 * 2 + 1, 192
    assert counts[0] == counts[1]
    assert counts[0]["blocks.0.attn"] == 2 * tokens * tokens * width


@few
@given(batch=st.integers(1, 5))
def test_the_count_does_not_depend_on_the_batch_size(batch: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 7))
    example = torch.zeros(batch, 3, 5, 5)
    assert macs_by_module(model, example) == {"0": 4 * 3 * 9 * 9, "3": 4 * 9 * 7}
    assert count_macs(model, example) == 4 * 3 * 9 * 9 + 4 * 9 * 7


class Shared(nn.Module):
    """One layer called twice, and a product of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x)) @ torch.ones(4, 2)


def test_every_call_and_the_models_own_products_have_their_place() -> None:
    assert macs_by_module(Shared(), torch.zeros(1, 4)) == {"layer": 2 * 16, "": 8}


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    model[1].eval()
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_macs(model, torch.ones(2, 3, 5, 5))
    with pytest.raises(UserError):
        count_macs(model, torch.ones(2, 5, 5, 5))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert [len(module._forward_hooks) for module in model.modules()] == [0, 1, 0, 0]
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()
    calls.clear()
    model(torch.ones(2, 3, 5, 5))
    assert calls == [1]


def test_an_input_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(UserError, match=r"MACs of Conv2d on an input of shape \(1, 5, 8, 8\): ") as caught:
        count_macs(nn.Conv2d(3, 4, 3), torch.zeros(1, 5, 8, 8))
    assert "\n" not in str(caught.value)


def test_products_without_a_rule_are_not_passed_over_in_silence() -> None:
    model, example = Call(lambda x: torch.fft.fft(x).real), torch.zeros(2, 8)
    assert uncounted_ops(model, example) == {"aten::fft_fft": 1}
    with pytest.warns(UserWarning, match="no rule to count aten::fft_fft"):
        assert count_macs(model, example) == 0


class Doubled(torch.autograd.Function):
    """A custom function, whose insides a trace does not see."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 2 * gradient


def test_custom_functions_are_reported() -> None:
    assert list(uncounted_ops(Call(Doubled.apply), torch.zeros(2, 8))) == ["prim::PythonOp.Doubled"]


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "efficientnet_b0", "convnext_atto"])
def test_usual_models_have_nothing_uncounted(name: str) -> None:
    assert uncounted_ops(timm.create_model(name), torch.zeros(1, 3, 224, 224)) == {}


@given(steps=st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 4096))), cut=st.integers(0, 10))
def test_the_meter_sums_three_forward_passes_a_sample_and_resumes(steps: list[tuple[int, int]], cut: int) -> None:
    meter = TrainingMeter()
    for macs, batch in steps[:cut]:
        meter.step(macs, batch)
    resumed = TrainingMeter()
    resumed.load_state_dict(meter.state_dict())
    for macs, batch in steps[cut:]:
        resumed.step(macs, batch)
    assert resumed.total == sum(3 * macs * batch for macs, batch in steps)


def test_importing_cost_stays_light() -> None:
    heavy = ("fvcore", "timm", "pandas", "nni")
    code = f"import sys, nasbench_grow.cost.macs; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
