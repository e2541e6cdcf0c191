"""A saved network is the network that is loaded: its function, numbers, ties and buffers, or one line."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nasbench_grow.backbones
from nasbench_grow import UserError, describe, discover, extract, load, save
from nasbench_grow.structure.answers import answers, difference

OLD = Path(__file__).parent / "data" / "saved-by-0.1.0.safetensors"
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def small_of(full: nn.Module, inputs: Tensor) -> nn.Module:
    """A sub-network of most of what a model has."""
    space = discover(full, inputs[:1])
    present = space.full()
    for group in space.groups:
        present[group.start : group.start + group.size // 3] = False
    return extract(space, full, present).eval()


def written(network: nn.Module, full: nn.Module, path: Path, example: Any) -> Path:
    return save(network, describe(network, full), path / "network.safetensors", example=example)


def same(one: nn.Module, other: nn.Module, inputs: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(one(inputs), other(inputs))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {"act_layer": "silu"}),
        ("resnet10t", {"act_layer": nn.LeakyReLU}),
        ("resnet10t", {"global_pool": "max"}),
        ("resnet10t", {"output_stride": 8}),
        ("resnet10t", {"drop_rate": 0.3, "drop_path_rate": 0.2}),
        ("mobilenetv3_small_050", {"bn_eps": 0.1, "bn_momentum": 0.3}),
        ("test_vit", {"img_size": 64, "global_pool": "avg", "class_token": False}),
        ("test_vit", {"img_size": (64, 96), "proj_drop_rate": 0.1}),
    ],
    ids=str,
)
def test_a_timm_model_is_rebuilt_with_the_options_it_was_made_with(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    full = timm.create_model(name, num_classes=5, **options).eval()
    images = torch.randn(2, 3, *((64, 96) if options.get("img_size") == (64, 96) else (64, 64)))
    loaded = load(written(full, full, tmp_path, images[:1]))
    assert same(loaded, full, images)
    kinds = {path: (type(module), module.extra_repr()) for path, module in full.named_modules()}
    assert {path: (type(module), module.extra_repr()) for path, module in loaded.named_modules()} == kinds
    assert getattr(loaded, "drop_rate", 0.0) == getattr(full, "drop_rate", 0.0)


def test_what_a_user_changed_after_timm_made_it_is_rebuilt_too(tmp_path: Path) -> None:
    full = timm.create_model("resnet10t", num_classes=5).eval()
    full.bn1.eps, full.maxpool = 0.1, nn.AvgPool2d(3, 2, 1)
    full.reset_classifier(7)
    small = small_of(full, IMAGES)
    assert small.conv1[0].out_channels < full.conv1[0].out_channels
    assert same(load(written(small, full, tmp_path, IMAGES[:1])), small, IMAGES)


class Own(nn.Module):
    """No library's layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1)


def hooked(full: nn.Module) -> None:
    full.conv1.register_forward_hook(lambda module, inputs, output: output * 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda full: setattr(full, "act1", Own()),
        lambda full: setattr(full, "forward", lambda x: full.fc(full.forward_features(x).amax((2, 3)))),
        lambda full: setattr(full, "bn1", nn.GroupNorm(4, 32)),
        hooked,
    ],
    ids=["own layer", "own forward", "other weights", "hook"],
)
def test_what_timm_cannot_make_asks_for_the_model(change: Any, tmp_path: Path) -> None:
    full = timm.create_model("resnet10t", num_classes=5).eval()
    change(full)
    path = written(full, full, tmp_path, IMAGES[:1])
    with pytest.raises(UserError, match=r"give a dense instance of it: load\(path, model=...\)"):
        load(path)


@pytest.mark.parametrize(
    "other",
    [
        {"act_layer": "silu"},
        {"global_pool": "max"},
        {"output_stride": 8},
        {"norm_layer": partial(nn.BatchNorm2d, eps=1e-2)},
    ],
    ids=["activation", "pooling", "stride", "epsilon"],
)
def test_a_model_of_another_function_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    full = timm.create_model("resnet10t", num_classes=5).eval()
    path = written(full, full, tmp_path, IMAGES[:1])
    with pytest.raises(
        UserError, match=r"answers otherwise than the network that was saved: .*; give the model"
    ) as line:
        load(path, model=timm.create_model("resnet10t", num_classes=5, **other))
    assert "\n" not in str(line.value)
    assert same(load(path, model=full), full, IMAGES)


def test_versions_of_states_survive(tmp_path: Path) -> None:
    full = torchvision.models.mnasnet0_5(num_classes=3).eval()
    path = written(full, full, tmp_path, IMAGES[:1])
    assert same(load(path, model=torchvision.models.mnasnet0_5(num_classes=3)), full, IMAGES)


class Tied(nn.Module):
    """Tied weights, one layer under two names, a buffer that no state holds, counts and a scale of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 16)
        self.inner = nn.Linear(16, 16)
        self.again = self.inner
        self.out = nn.Linear(16, 12, bias=False)
        self.out.weight = self.words.weight
        self.register_buffer("shift", torch.randn(3), persistent=False)
        self.register_buffer("seen", torch.tensor(2**40 + 1))
        self.register_buffer("none", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.again(self.inner(self.words(x)).relu())) * self.shift.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_ties_buffers_and_types_survive(dtype: torch.dtype, tmp_path: Path) -> None:
    full = Tied().to(dtype)
    words = torch.arange(6).view(1, 6)
    loaded = load(written(full, full, tmp_path, words), model=Tied())
    assert same(loaded, full.eval(), words)
    assert loaded.words.weight is loaded.out.weight and loaded.inner is loaded.again
    assert loaded.out.weight.dtype == dtype and loaded.shift.dtype == dtype
    assert loaded.seen.item() == 2**40 + 1
    assert list(loaded.state_dict()) == list(full.state_dict())


def test_tied_weights_stay_tied_where_they_were_cut(tmp_path: Path) -> None:
    full = Tied()
    small = copy.deepcopy(full)
    small.words.weight = small.out.weight = nn.Parameter(full.words.weight.detach()[:, :9].clone())
    small.inner.weight, small.inner.bias = nn.Parameter(torch.randn(9, 9)), nn.Parameter(torch.randn(9))
    words = torch.arange(6).view(1, 6)
    loaded = load(written(small, full, tmp_path, words), model=full)
    assert loaded.words.weight is loaded.out.weight
    assert same(loaded, small.eval(), words)


def test_a_recurrent_network_is_loaded_after_it_carried_a_state(tmp_path: Path) -> None:
    full = timm.create_model("lstm_200", num_classes=20).eval()
    words = torch.cat([torch.ones(3, 1, dtype=torch.long), torch.randint(20, (3, 5))], 1)
    with torch.no_grad():
        full(words)
        carried = copy.deepcopy(full)
    loaded = load(written(full, full, tmp_path, words[:1]))
    assert same(loaded, carried, words)


def test_the_names_of_the_classes_are_kept(tmp_path: Path) -> None:
    full = nn.Linear(3, 2)
    path = save(full, describe(full, full), tmp_path / "x.safetensors", class_names=["cat", "Käfer"])
    assert load(path, model=nn.Linear(3, 2)).class_names == ["cat", "Käfer"]


def test_a_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Noted(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"note": 1}

        def set_extra_state(self, state: Any) -> None:
            pass

    full = Noted(3, 2)
    with pytest.raises(UserError, match="the network's state '_extra_state' is a dict"):
        written(full, full, tmp_path, torch.zeros(1, 3))


def test_a_file_of_the_first_version_still_loads() -> None:
    network = load(OLD)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = [-0.009880764409899712, 0.0698089674115181, 0.056810617446899414, 0.060342226177453995]
    with torch.no_grad():
        assert network(images)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_an_architecture_may_not_name_other_files(tmp_path: Path) -> None:
    full = timm.create_model("resnet10t", num_classes=5)
    plan = json.loads(describe(full, full))
    for change, words in (
        ({"options": {"num_classes": 5, "checkpoint_path": "x.pth"}}, "'checkpoint_path' would fetch other weights"),
        ({"changes": {"act1": {"class": "os.system"}}}, "there is no layer 'os.system'"),
    ):
        with pytest.raises(UserError, match=words):
            nasbench_grow.rebuild(json.dumps({**plan, **change}))


trees = st.sampled_from(["tensor", "dict", "tuple", "nested"])


class Takes(nn.Module):
    """Any tree of tensors, and gives a dict with a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, tree: Any) -> Any:
        leaves = [tree] if isinstance(tree, Tensor) else torch.utils._pytree.tree_leaves(tree)
        total = sum(leaf.to(self.layer.weight.dtype).sum() for leaf in leaves)
        first = self.layer(torch.ones(2, 4, dtype=self.layer.weight.dtype) * total)
        return {"logits": first, "more": (first.sum(), [first[:, :1]])}


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(kind=trees, seed=st.integers(0, 99), whole=st.booleans(), entry=st.integers(0, 23))
def test_answers_tell_any_changed_weight_whatever_the_network_takes(
    kind: str, seed: int, whole: bool, entry: int
) -> None:
    torch.manual_seed(seed)
    leaf = torch.randint(5, (1, 4)) if whole else torch.rand(1, 4)
    example = {
        "tensor": leaf,
        "dict": ({"a": leaf, "b": 3.0 * torch.ones(1)},),
        "tuple": ((leaf, leaf),),
        "nested": ({"a": [leaf, {"b": (leaf,)}]},),
    }[kind]
    network = Takes()
    state = torch.get_rng_state()
    kept = json.loads(json.dumps(answers(network, example)))
    assert difference(network, kept) is None
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        network.layer.weight.view(-1)[entry] += 0.01
    assert difference(network, kept) is not None
