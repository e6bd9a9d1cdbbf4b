"""ONNX files of this project in place of a model."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model import InputError, ModelConfig
from model.files import read_regular
from model.images import IMAGENET_MEAN, IMAGENET_STD
from utils.engines import ONNX_PROVIDERS
from utils.engines.onnx_metadata import OnnxMetadata
from utils.engines.openvino import (
    OPENVINO,
    Run,
    as_output,
    check_precision,
    compile_on_cpu,
    core,
    import_openvino,
    is_installed,
    output_names,
    version,
)

SUFFIX = ".onnx"
MAX_BYTES = 2**31 - 1  # of protobuf, the format of these files
ONNX_PACKAGES = "pip install -r requirements-onnx.txt"
EXPORT = "Export the model again with: export.py onnx"
FLOAT32 = ("f32", "tensor(float)")  # as OpenVINO and onnxruntime call it


class LoadedFile(NamedTuple):
    """An ONNX file in an engine: its metadata, {name: (type, shape)} of its inputs, the names of its outputs with the
    last side of each, how to run it, the precision in which it computes ("" for that of the file), and the engine in
    words.
    """

    properties: dict[str, str]
    inputs: dict[str, tuple[str, list[Any]]]
    outputs: dict[str, Any]
    run: Run
    precision: str
    engine: str


@dataclass(frozen=True, kw_only=True)
class OnnxDescriber:
    """An ONNX file as a model: see model.inference.Describer. Images and outputs are on the CPU.

    metadata: of the file; engine: what runs it, in words; precision: in which it computes; fingerprint: that of the
    model from which it was exported or, where the file does not state it, the file's own.
    """

    metadata: OnnxMetadata
    descriptor_dim: int
    fingerprint: str
    precision: str
    engine: str
    run: Run

    @property
    def config(self) -> ModelConfig:
        """The model that was exported."""
        return self.metadata.model

    def require(self, wanted: ModelConfig, path: Path) -> None:
        """Raises InputError, which names the file, if it holds another model than the script or its flags state."""
        if wanted != self.config:
            raise InputError(
                f"{path} is an exported {self.config.kind} model, {self.config.flags}, and not {wanted.flags}. Float "
                "models go to eval.py, two-branch ones to eval_rerank.py, and hashing-only ones to eval_hashing.py."
            )

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises InputError if the file does not take images of size (H, W)."""
        if size != self.metadata.images.resize:
            wanted, given = (f"{height} x {width}" for height, width in (self.metadata.images.resize, size))
            raise InputError(
                f"The ONNX file takes images of {wanted} pixels (height x width) alone, not of {given}. Leave out "
                "--resize and --test_method, or export the model for that size: export.py onnx --resize H W."
            )

    def __call__(self, images: Tensor, float_branch: bool = True) -> Any:
        """See GeoLocalizationNet.forward. The file computes both branches in any case."""
        height, width = images.shape[-2:]
        self.check_size((height, width))
        if self.metadata.normalize:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
            images = images * std + mean
        outputs = self.run(images.numpy())
        return as_output({name: outputs[name] for name in output_names(self.config, float_branch)})


def is_onnx(source: object) -> bool:
    """Whether the source of a model is an ONNX file, judged by its name."""
    return isinstance(source, Path) and source.suffix.lower() == SUFFIX


def read_onnx(path: Path) -> bytes:
    """The content of a file. Raises InputError if there is none, or it is too large."""
    if not path.exists():
        raise InputError(f"No ONNX file at {path}. {EXPORT}")
    return read_regular(path, MAX_BYTES)


def load_onnx(content: bytes, path: Path, *, engine: str, provider: str | None, precision: str) -> OnnxDescriber:
    """A file in an engine: OpenVINO where it is installed and no provider is stated, with engine "auto"; onnxruntime
    otherwise. path: of the content, for messages. precision: "fp32", which stands for that of the file in onnxruntime,
    or "bf16" for OpenVINO.

    Raises InputError if the engine is not installed or cannot compute so, or if this is no file that export.py writes.
    """
    if engine == "torch":
        raise InputError(f"--engine torch cannot run {path}, an ONNX file. Choose openvino or onnxruntime, or auto.")
    if engine == "auto":
        engine = "openvino" if is_installed() and provider is None and precision != "fp16" else "onnxruntime"
    if engine == "openvino":
        loaded = _load_in_openvino(content, path, precision)
    else:
        loaded = _load_in_onnxruntime(content, path, provider or "cpu")
    try:
        metadata = OnnxMetadata.parse(loaded.properties)
        _check_graph(loaded, metadata)
    except InputError as error:
        raise InputError(f"{path} is no model that can be used: {error}. {EXPORT}") from error
    computed = loaded.precision or metadata.precision
    if precision not in ("fp32", computed):
        raise InputError(
            f"--precision {precision}: onnxruntime computes as {path} says, in {computed}. Leave --precision out; or "
            "take OpenVINO for bf16, or export the file with --fp16."
        )
    return OnnxDescriber(
        metadata=metadata,
        descriptor_dim=loaded.outputs.get("descriptor", 0),
        fingerprint=metadata.weights_sha256 or hashlib.sha256(content).hexdigest(),
        precision=computed,
        engine=f"{loaded.engine}, {computed}",
        run=loaded.run,
    )


def _check_graph(file: LoadedFile, metadata: OnnxMetadata) -> None:
    """Raises InputError if inputs and outputs are not those that the metadata states."""
    kind, shape = file.inputs.get("images", ("", []))
    if list(file.inputs) != ["images"] or kind not in FLOAT32 or shape[1:] != [3, *metadata.images.resize]:
        found = ", ".join(f"{name} {kind} {shape}" for name, (kind, shape) in file.inputs.items())
        raise InputError(f"it takes {found}; expected images float32 {['batch', 3, *metadata.images.resize]}")
    if list(file.outputs) != metadata.outputs:
        raise InputError(f"it gives {', '.join(file.outputs)}; expected {', '.join(metadata.outputs)}")


def _load_in_openvino(content: bytes, path: Path, precision: str) -> LoadedFile:
    openvino, precision = import_openvino(), check_precision(precision)
    try:
        model = core().read_model(io.BytesIO(content))
    except RuntimeError as error:
        raise _not_onnx(path, error) from error
    stated = dict(model.get_rt_info().items()).get("framework", {})  # where OpenVINO keeps a file's metadata
    properties = {name: value.astype(str) for name, value in stated.items()}
    names = [output.any_name for output in model.outputs]
    run = compile_on_cpu(model, names, precision)
    return LoadedFile(
        properties=properties,
        inputs={
            port.any_name: (port.element_type.get_type_name(), _sides(port.partial_shape)) for port in model.inputs
        },
        outputs={port.any_name: _sides(port.partial_shape)[-1] for port in model.outputs},
        run=run,
        precision=precision,
        engine=f"{OPENVINO} {version(openvino)}",
    )


def _sides(shape: Any) -> list[Any]:
    """Each side, or "?" for one that may be any."""
    return [side.get_length() if side.is_static else "?" for side in shape]


def _load_in_onnxruntime(content: bytes, path: Path, provider: str) -> LoadedFile:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"{path} is an ONNX file, which needs OpenVINO or onnxruntime: {error}. Install one with: pip install -r "
            f"requirements-openvino.txt, or {ONNX_PACKAGES}"
        ) from error
    wanted, available = ONNX_PROVIDERS[provider], onnxruntime.get_available_providers()
    if wanted not in available:
        names = [name for name, provider_class in ONNX_PROVIDERS.items() if provider_class in available]
        raise InputError(
            f"--onnx_provider {provider}: onnxruntime {onnxruntime.__version__} was installed without it. Available: "
            f"{', '.join(names)}."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    try:
        session = onnxruntime.InferenceSession(content, options, providers=[wanted])
    except Exception as error:  # its errors have no class in common
        raise _not_onnx(path, error) from error
    if session.get_providers()[0] != wanted:  # it goes on without a provider that does not start
        raise InputError(
            f"--onnx_provider {provider}: onnxruntime {onnxruntime.__version__} has it, but it did not start. Check "
            "its libraries, such as CUDA's and cuDNN's."
        )
    names = [output.name for output in session.get_outputs()]
    return LoadedFile(
        properties=session.get_modelmeta().custom_metadata_map,
        inputs={value.name: (value.type, value.shape) for value in session.get_inputs()},
        outputs={value.name: value.shape[-1] for value in session.get_outputs()},
        run=lambda images: dict(zip(names, session.run(None, {"images": images}), strict=True)),
        precision="",
        engine=f"onnxruntime {onnxruntime.__version__} with {wanted}",
    )


def _not_onnx(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:300]
    return InputError(f"{path} is no ONNX file, or was not copied completely: {reason} {EXPORT}")
