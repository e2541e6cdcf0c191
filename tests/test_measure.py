import copy
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from nasbench_grow.harness import measure
from nasbench_grow.harness.setups import SETUPS
from nasbench_grow.structure.widths import output_channels


def test_the_fingerprint_changes_with_a_single_bit_and_with_the_layout_of_names():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    same, other = copy.deepcopy(network), copy.deepcopy(network)
    with torch.no_grad():
        other[0].weight.view(torch.int32).flatten()[0] ^= 1
    fingerprint = measure.weights_sha256(network)
    assert measure.weights_sha256(same) == fingerprint
    assert measure.weights_sha256(other) != fingerprint
    assert measure.weights_sha256(nn.Sequential(network)) != fingerprint
    assert measure.weights_sha256(SETUPS["cpu-channels-last"].place(same)) == fingerprint, "memory layout is no matter"


@pytest.mark.skipif(not measure.Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_sees_what_came_after_it_began():
    mebibyte = 2**20
    torch.ones(40 * mebibyte, dtype=torch.uint8).sum()  # gone before the meter begins
    peak = measure.PeakMemory(torch.device("cpu"))
    before = peak.bytes()
    block = torch.ones(20 * mebibyte, dtype=torch.uint8)
    del block
    assert 18 * mebibyte < peak.bytes() - before < 30 * mebibyte


def test_output_channels_are_those_of_convolutions_and_linear_layers():
    network = nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2), nn.Sequential(nn.ConvTranspose2d(2, 3, 1)))
    network.append(nn.Linear(3, 4))
    assert output_channels(network) == {"0": 2, "2.0": 3, "3": 4}


def test_the_machine_and_the_versions_are_named():
    parts = {"cpu", "vectors", "cores", "processes", "threads", "memory_gib", "gpu", "platform"}
    assert set(measure.hardware()) == parts
    assert measure.hardware()["memory_gib"] > 0
    assert measure.versions()["torch"] == torch.__version__
    assert measure.code_version()


@pytest.mark.parametrize("name", [name for name, setup in SETUPS.items() if setup.available()[0]])
def test_a_setup_places_inputs_and_weights_alike(name):
    setup = SETUPS[name]
    expected = torch.channels_last if setup.channels_last else torch.contiguous_format
    images, network = setup.place(torch.zeros(2, 3, 4, 4)), setup.place(nn.Conv2d(3, 5, 3))
    assert images.is_contiguous(memory_format=expected)
    assert network.weight.is_contiguous(memory_format=expected)
    assert setup.place(torch.zeros(7)).shape == (7,)


@pytest.mark.parametrize(
    ("capability", "precision", "reason"),
    [(None, "fp32", "no CUDA device"), ((7, 5), "bf16", "no bf16 units"), ((8, 0), "bf16", ""), ((7, 5), "fp32", "")],
)
def test_a_cuda_setup_says_what_the_machine_lacks(monkeypatch, capability, precision, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    available, why = SETUPS[f"cuda-{precision}"].available()
    assert available == (not reason)
    assert reason in why


@pytest.mark.parametrize("vectors, available", [("AVX2", False), ("AVX512", True), ("DEFAULT", True)])
def test_channels_last_is_refused_where_its_kernels_overwrite_memory(monkeypatch, vectors, available):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    assert SETUPS["cpu"].available() == (True, "")
    found, why = SETUPS["cpu-channels-last"].available()
    assert found == available and ("write beyond their memory" in why) == (not available)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_on_a_cpu_setup_memory_that_a_step_frees_serves_the_next_until_it_is_given_back():
    script = """
import resource, torch
from nasbench_grow.harness import heap
from nasbench_grow.harness.setups import SETUPS
network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 1), torch.nn.ReLU())  # of 40 MB an activation
def page_faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        network(torch.ones(20, 1, 256, 256)).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
page_faults(3)
usual = page_faults(3)
SETUPS["cpu"].activate()
page_faults(10)
kept = page_faults(3)
heap.give_back()
print(usual, kept, page_faults(3))
"""
    usual, kept, after = map(int, subprocess.check_output([sys.executable, "-c", script], text=True).split())
    assert kept < usual / 3 and after > kept
