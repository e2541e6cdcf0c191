"""A network as an ONNX file, checked against the network itself."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow.base.errors import one_line
from nasbench_grow.base.files import write_whole

TOLERANCE = 1e-4
"""Largest difference from the network's outputs, as a share of the largest of them or of 1."""

INPUT, OUTPUT = "input", "output"


def write_onnx(network: nn.Module, example: Tensor, path: Path) -> str:
    """Writes the network in evaluation mode, for batches of any size; returns what is to be said of it in one line.

    Where packages are missing, the network cannot be exported or the file computes anything else, there is no file
    afterwards, and the line says why.

    Args:
        network: of one tensor to one tensor.
        example: one input with a batch axis.
        path: the file to write.
    """
    path.unlink(missing_ok=True)
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        return (
            f"{path.name} was not written: it needs {' and '.join(missing)}; install with: "
            "pip install 'nasbench-grow[onnx]'"
        )
    network = copy.deepcopy(network).cpu().eval()
    batch = torch.rand(3, *example.shape[1:], generator=torch.Generator().manual_seed(0)).to(example.dtype)
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet(), torch.no_grad():
            made = Path(folder) / path.name
            torch.onnx.export(
                network,
                (batch,),
                str(made),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            content = made.read_bytes()
    except Exception as error:  # the exporter raises whatever its passes do
        return f"{path.name} was not written: this network cannot be exported ({one_line(error)})"
    if find_spec("onnxruntime") is None:
        write_whole(path, content)
        return f"{path.name} was not checked: it needs onnxruntime; install with: pip install 'nasbench-grow[onnx]'"
    try:
        off = _difference(content, network, batch)
    except Exception as error:
        return f"{path.name} was not written: onnxruntime cannot run it ({one_line(error)})"
    if not off <= TOLERANCE:
        return f"{path.name} was not written: its outputs differ from the network's by {off:.1e}"
    write_whole(path, content)
    return f"{path.name} gives the network's outputs (largest difference {off:.0e}, batches of 1 and 3)"


def _difference(content: bytes, network: nn.Module, batch: Tensor) -> float:
    """The largest difference of a file's outputs from the network's, for batches of one and of more."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    off = 0.0
    for inputs in (batch, batch[:1]):
        with torch.no_grad():
            wanted = network(inputs)
        found = torch.from_numpy(session.run([OUTPUT], {INPUT: inputs.numpy()})[0])
        if found.shape != wanted.shape:
            return float("inf")
        off = max(off, float((found - wanted).abs().max() / max(1.0, float(wanted.abs().max()))))
    return off


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the exporter's warnings and log lines are dropped: what fails is raised."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
