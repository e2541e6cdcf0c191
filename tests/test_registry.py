import dataclasses
import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint

import pytest
from cells import Noisy

from nasbench_grow import baselines
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.dense import Dense
from nasbench_grow.harness import registry
from nasbench_grow.tasks.digits import Digits


@pytest.fixture(autouse=True)
def fresh():
    registry.methods.cache_clear()
    yield
    registry.methods.cache_clear()


def install(monkeypatch, *values):
    """Pretend that other packages declare these methods."""
    points = [EntryPoint(f"method{i}", value, registry.ENTRY_POINTS) for i, value in enumerate(values)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


def test_methods_tasks_and_backbones_are_found_by_their_files():
    assert type(registry.method("dense")) is Dense
    assert registry.task("digits") is Digits
    assert {"cifar_resnet20", "cifar_vgg16_bn", "cifar_mobilenetv2", "cifar_wrn28_10"} <= set(registry.backbones())
    for found in (*registry.methods().values(), *registry.tasks().values()):
        assert found.name and found.summary
    for cls in registry.methods().values():
        assert cls.family in ("control", "pruning", "growing", "search")
        assert cls.citation or cls.family == "control"


def test_a_method_of_another_package_is_found(monkeypatch):
    install(monkeypatch, "cells:Noisy")
    assert type(registry.method("noisy")) is Noisy


def test_a_broken_file_does_not_take_the_others_away(monkeypatch, tmp_path, caplog):
    (tmp_path / "broken_method.py").write_text("import a_module_that_does_not_exist")
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    assert type(registry.method("dense")) is Dense
    assert "baselines.broken_method" in caplog.text


@pytest.mark.parametrize("value", ["no_such_module:Method", "cells:NoSuchClass", "cells:small_cell"])
def test_a_broken_package_does_not_take_the_others_away(monkeypatch, caplog, value):
    install(monkeypatch, value)
    assert type(registry.method("dense")) is Dense
    assert value in caplog.text


def test_two_methods_of_one_name_are_refused(monkeypatch, tmp_path):
    source = """
        from nasbench_grow.baselines.dense import Dense

        class Impostor(Dense):
            name = "dense"
    """
    (tmp_path / "impostor.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, "impostor:Impostor")
    with pytest.raises(UserError, match=r"baselines\.dense\.Dense and impostor\.Impostor"):
        registry.methods()


@pytest.mark.parametrize(
    ("lookup", "name", "nearest"),
    [
        (registry.method, "dens", "dense"),
        (registry.task, "digit", "digits"),
        (registry.setup, "cpu-channel-last", "cpu-channels-last"),
        (registry.profile, "labtop", "laptop"),
        (lambda name: registry.build_backbone(name, Digits()), "cifar_resnet21", "cifar_resnet20"),
    ],
)
def test_an_unknown_name_gets_the_nearest(lookup, name, nearest):
    with pytest.raises(UserError) as caught:
        lookup(name)
    assert f"{name!r}; did you mean {nearest!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setup_that_this_machine_lacks_says_why(monkeypatch):
    setup = dataclasses.replace(registry.setups()["cpu"], name="cuda", device="cuda")
    monkeypatch.setitem(registry.setups(), "cuda", setup)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        registry.usable_setup("cuda")


def test_any_timm_name_is_a_backbone():
    network = registry.build_backbone("resnet10t", Digits())
    assert network.num_classes == 10


def test_listing_the_methods_imports_no_heavy_library() -> None:
    heavy = ("fvcore", "timm", "torchvision", "torch_pruning", "pandas", "scipy", "matplotlib", "sympy", "nni")
    code = (
        "import sys; from nasbench_grow.harness.listing import listing; listing('methods'); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
