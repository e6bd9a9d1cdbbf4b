"""A model as an ONNX file for images of one size, and the comparison of the two.

PyTorch's exporter based on torch.export is used: its graph has half as many nodes as that of the one based on
TorchScript, which fixes the batch size in SALAD and does not know BoQ's encoder. Both are equally fast.
"""

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model import GeoLocalizationNet, InputError, prepare_for_inference
from model.images import IMAGENET_MEAN, IMAGENET_STD
from model.images import normalize as normalized
from model.inference import dtype_of
from model.vision_transformer import patch_grid
from utils.engines.onnx_metadata import OnnxMetadata
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import pack_codes
from utils.runtime.atomic_files import atomic_write

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
IR_VERSION = 8  # enough for the opset; onnxruntime before 1.18 (on a Jetson, say) reads none that is newer than 9
OPSET = 18
MAX_BATCH = 2**16  # an assumption of torch.export; the file takes any batch
MAX_FILE_BYTES = 2**31 - 1  # of protobuf, the format of ONNX files
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}  # relative L2 error; a bit may differ where |logit| is no larger
CHECKED_IMAGES = 3

Outputs = dict[str, np.ndarray]


def check_packages() -> None:
    """Raises InputError if a package that the export needs cannot be imported."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"The export to ONNX needs {', '.join(PACKAGES)}: {error}. Install them with: pip install -r "
                "requirements-onnx.txt"
            ) from error


def named_outputs(model: GeoLocalizationNet, images: Tensor) -> dict[str, Tensor]:
    """The model's outputs for normalised images [B, 3, H, W] as the ONNX file gives them.

    code [B, 64] uint8, 512 bits in np.packbits order; logits [B, 512] and descriptor [B, dim], float32.
    """
    outputs: Any = model(images)
    if not model.config.hashing:
        return {"descriptor": outputs}
    code = {"code": pack_codes(outputs.code), "logits": outputs.logits}
    return {**code, "descriptor": outputs.descriptor} if model.config.rerank else code


class ExportedModel(nn.Module):
    """What the ONNX file computes: images [B, 3, H, W] float32, in [0, 1] or normalised -> the tuple of outputs.

    normalize: the images are in [0, 1]. The position embedding is that for the size (H, W) of the settings.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: GeoLocalizationNet, settings: ExtractionConfig, *, normalize: bool) -> None:
        super().__init__()
        self.model = prepare_for_inference(model).network
        grid = patch_grid(*settings.image_config.resize)
        self.model.backbone.fix_positions(nn.Parameter(model.backbone.position_embedding(*grid).detach()), grid)
        self.dtype = dtype_of(settings.precision)
        self.model.to(self.dtype).requires_grad_()  # PyTorch 2.6 cannot convert BoQ's encoder otherwise
        self.normalize = normalize
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.normalize:
            images = (images - self.mean) / self.std
        return tuple(named_outputs(self.model, images.to(self.dtype)).values())


def checked_images(size: tuple[int, int]) -> Tensor:
    """The images with which the file is compared with the model: [3, 3, H, W] in [0, 1], always the same."""
    return torch.rand(CHECKED_IMAGES, 3, *size, generator=torch.Generator().manual_seed(0))


def reference_outputs(model: GeoLocalizationNet, images: Tensor) -> Outputs:
    """The outputs of the model in PyTorch for images [B, 3, H, W] in [0, 1]."""
    with torch.inference_mode():
        return {name: value.numpy() for name, value in named_outputs(model, normalized(images)).items()}


def export_onnx(
    model: GeoLocalizationNet, settings: ExtractionConfig, output: Path, *, normalize: bool
) -> dict[str, float]:
    """Writes the file, and compares its outputs with the model's. Returns the errors, as `compare` does.

    The arguments are those of build_proto. Raises InputError, and leaves no file, if the outputs differ or the disk is
    full.
    """
    images = checked_images(settings.image_config.resize)
    expected = reference_outputs(model, images)
    proto = build_proto(model, settings, normalize=normalize)
    with atomic_write(output, "wb", interruptible=True, new=True) as file:
        file.write(proto.SerializeToString())
        file.flush()
        inputs = images if normalize else normalized(images)
        return compare(file.name, inputs, expected, precision=settings.precision)


def build_proto(model: GeoLocalizationNet, settings: ExtractionConfig, *, normalize: bool) -> Any:
    """The onnx.ModelProto of a float32 model in eval mode on the CPU.

    Input: `images`, float32 [batch, 3, H, W] with the settings' (H, W); outputs: see named_outputs. precision "fp16":
    weights and computation are in half precision. Raises InputError if the file would be too large.
    """
    metadata = OnnxMetadata(
        model=model.config,
        precision=settings.precision,
        images=settings.image_config,
        normalize=normalize,
        weights_sha256=model.fingerprint,
    )
    exported = ExportedModel(model, settings, normalize=normalize).eval()
    size = sum(value.numel() * value.element_size() for value in exported.state_dict().values())
    if size > MAX_FILE_BYTES:
        raise InputError(
            f"The weights take {size / 1e9:.1f} GB, but an ONNX file holds at most 2 GB. Halve them with --fp16."
        )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about its own code
        program = torch.onnx.export(
            exported,
            (torch.zeros(2, 3, *settings.image_config.resize),),
            input_names=["images"],
            output_names=metadata.outputs,
            dynamic_shapes={"images": {0: torch.export.Dim("batch", max=MAX_BATCH)}},
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    proto.ir_version = IR_VERSION
    # PyTorch 2.6 states the example's batch size in some shapes, or calls it s0. Those within the graph are not needed.
    del proto.graph.value_info[:]
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for key, value in metadata.to_properties().items():  # how images must be prepared
        proto.metadata_props.add(key=key, value=value)
    return proto


def compare(file: str | Path, images: Tensor, expected: Outputs, *, precision: str) -> dict[str, float]:
    """Runs an ONNX file with onnxruntime on the CPU, on one image and on all of them, and compares with `expected`.

    images: as the file takes them. Returns the relative L2 error of logits and descriptor, the largest of any image,
    by name, and as "code" the number of bits that differ. Raises InputError if an error exceeds TOLERANCES, or a bit
    differs although the logit is not close to 0.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    errors = dict.fromkeys(names, 0.0)
    for count in (1, len(images)):
        outputs = dict(zip(names, session.run(None, {"images": images[:count].numpy()}), strict=True))
        first = {name: values[:count] for name, values in expected.items()}
        for name, error in output_errors(outputs, first, TOLERANCES[precision]).items():
            errors[name] = max(errors[name], error)
    return errors


def output_errors(outputs: Outputs, expected: Outputs, tolerance: float) -> dict[str, float]:
    """The errors that `compare` returns, of one run. Raises InputError if one is too large."""
    errors = {}
    for name, value in outputs.items():
        if name == "code":
            bits = np.unpackbits(np.bitwise_xor(value, expected[name]), axis=1).astype(bool)
            errors[name] = float(bits.sum())
            is_close = not bits[np.abs(expected["logits"]) > tolerance].any()
        else:
            distances = np.linalg.norm(value - expected[name], axis=1) / np.linalg.norm(expected[name], axis=1)
            errors[name] = float(distances.max())
            is_close = errors[name] <= tolerance  # False for NaN
        if not is_close:
            difference = f"{errors[name]:.0f} bits" if name == "code" else f"a relative error of {errors[name]:.1e}"
            raise InputError(
                f"The ONNX file gives another {name} than PyTorch ({difference}), so it was not kept. Export without "
                "--fp16, or install other versions of the packages in requirements-onnx.txt."
            )
    return errors
