"""Engines on the CPU: PyTorch, OpenVINO from the same weights, and both of OpenVINO and onnxruntime from an ONNX file.
Needs requirements-onnx.txt and requirements-openvino.txt.

    python -m benchmarks.bench_onnx [--threads N] [--json [FILE]]

dinov2-base with gem at 322 x 322, random weights, on one image and on batches of 8; in bf16 too if the CPU has
instructions for it. They run in turn.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_extract import SIZE, make_model
from benchmarks.common import parse_arguments, report_table, time_in_turn
from model import GeoLocalizationNet
from model.inference import Describer
from utils.engines.onnx_file import load_onnx
from utils.integrations import onnx_export
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import prepare
from utils.runtime.devices import cpu_supports
from utils.runtime.script import cli_main

ROUNDS = {8: 5, 1: 9}  # of each batch size
OURS = "OpenVINO"  # what --engine auto takes
MANY = 1000  # images, enough for it to take that


def engines(model: GeoLocalizationNet, file: Path, precision: str) -> dict[str, Callable[[], Describer]]:
    """{name: how to make it}. onnxruntime computes as the file says, in fp32."""

    def checkpoint(**settings: Any) -> Describer:
        config = ExtractionConfig(resize=SIZE, precision=precision, **settings)
        return prepare(model, config, num_images=MANY)

    def exported(engine: str) -> Describer:
        return load_onnx(file.read_bytes(), file, engine=engine, provider=None, precision=precision)

    made: dict[str, Callable[[], Describer]] = {
        "PyTorch": checkpoint,
        "PyTorch --compile": partial(checkpoint, compile=True),
        OURS: partial(checkpoint, engine="auto"),
        "ONNX file, OpenVINO": partial(exported, "openvino"),
        "ONNX file, onnxruntime": partial(exported, "onnxruntime"),
    }
    if precision != "fp32":
        del made["ONNX file, onnxruntime"]
    return made


def engine_rows(model: GeoLocalizationNet, file: Path, precision: str) -> list[dict[str, Any]]:
    """The time per image of each batch size; how far the descriptors are from the model's; the time of the start."""
    images = torch.randn(max(ROUNDS), 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(images)
    started: dict[str, Any] = {}
    distances: dict[str, Any] = {}
    describers: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, make in engines(model, file, precision).items():
        start = time.perf_counter()
        describers[name] = make()
        describers[name](images[:1])
        started[name] = time.perf_counter() - start
        distances[name] = f"{float((describers[name](images) - expected).norm(dim=1).max()):.1e}"
    rows = []
    for batch, rounds in ROUNDS.items():
        calls = {name: partial(describer, images[:batch]) for name, describer in describers.items()}
        medians = {name: statistics.median(values) for name, values in time_in_turn(calls, rounds).items()}
        others = min(value for name, value in medians.items() if name != OURS)
        row: dict[str, Any] = {"": f"{precision}, batches of {batch}: ms an image"}
        row |= {name: 1e3 * value / batch for name, value in medians.items()}
        rows.append(row | {"fastest other / ours": others / medians[OURS]})
    rows.append({"": f"{precision}: largest L2 distance of descriptors", **distances})
    return [*rows, {"": f"{precision}: start and first image, s", **started}]


def main() -> None:
    args = parse_arguments("Engines on the CPU.", threads=None)
    onnx_export.check_packages()
    model = make_model("dinov2-base", "cpu")
    precisions = ["fp32"] + ["bf16"] * cpu_supports("bf16")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        proto = onnx_export.build_proto(copy.deepcopy(model), ExtractionConfig(resize=SIZE), normalize=True)
        file.write_bytes(proto.SerializeToString())
        rows = [row for precision in precisions for row in engine_rows(model, file, precision)]
    report_table(f"Engines at {SIZE[0]} x {SIZE[1]}, base", rows, args.json)


if __name__ == "__main__":
    cli_main(main)
