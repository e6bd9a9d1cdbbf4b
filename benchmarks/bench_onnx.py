"""onnxruntime against PyTorch on the CPU: one image by dinov2-base. Needs requirements-onnx.txt."""

import copy
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.bench_extract import SIZE, make_model
from benchmarks.common import Row, compare, parse_arguments, report
from utils.integrations import onnx_export
from utils.retrieval.config import ExtractionConfig
from utils.runtime.script import cli_main

ROUNDS = 9


def onnx_row(folder: Path, threads: int) -> Row:
    """Time for one image in [0, 1], with as many threads each, and a note on the file."""
    import onnxruntime

    model = make_model("dinov2-base", "cpu")
    images = onnx_export.checked_images(SIZE)[:1]
    expected = onnx_export.reference_outputs(model, images)
    proto = onnx_export.build_proto(copy.deepcopy(model), ExtractionConfig(resize=SIZE), normalize=True)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    error = onnx_export.compare(path, images, expected, precision="fp32")["descriptor"]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return compare(
        "base, fp32, one image",
        partial(onnx_export.reference_outputs, model, images),
        partial(session.run, None, {"images": images.numpy()}),
        rounds=ROUNDS,
        note=f"baseline: PyTorch; the file has {path.stat().st_size / 1e6:.0f} MB; relative error {error:.1e}",
    )


def main() -> None:
    args = parse_arguments("onnxruntime against PyTorch.")
    onnx_export.check_packages()
    with tempfile.TemporaryDirectory() as folder:
        rows = [onnx_row(Path(folder), args.threads)]
    report(f"onnxruntime at {SIZE[0]} x {SIZE[1]}", rows, args.json)


if __name__ == "__main__":
    cli_main(main)
