"""OpenVINO in place of PyTorch on the CPU."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model import GeoLocalizationNet, InputError, ModelConfig, prepare_for_inference
from model.config import patch_grid
from model.network import HashingOutput, TwoBranchOutput, sign

OPENVINO = "OpenVINO"
MAX_BATCH = 2**16  # an assumption of torch.export; the converted model takes any batch
HINTS = {"fp32": "f32", "bf16": "bf16"}  # without one it chooses bf16 by itself, where the CPU has instructions for it
Run = Callable[[np.ndarray], dict[str, np.ndarray]]  # images [B, 3, H, W] float32 -> {name: output}


def import_openvino() -> Any:
    """The package. Raises InputError, which says how to install it, if it is missing."""
    try:
        import openvino
    except ImportError as error:
        raise InputError(
            f"The engine openvino is not installed: {error}. Install it with: pip install -r requirements-openvino.txt"
        ) from error
    return openvino


@cache
def core() -> Any:
    """OpenVINO's Core, of which a process has one: each gives its thread a stack for signals, and takes it back when it
    goes, which is safe in reverse order only. Otherwise the next signal, such as Ctrl-C, would end the process.
    """
    return import_openvino().Core()


def is_installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("openvino") is not None


def version(openvino: Any) -> str:
    """The package's version, without its build."""
    return openvino.__version__.partition("-")[0]


def check_precision(precision: str) -> str:
    """The precision itself. Raises InputError if OpenVINO does not compute in it on a CPU."""
    if precision not in HINTS:
        raise InputError(
            f"--precision {precision}: OpenVINO computes in {' or '.join(HINTS)} on a CPU. Choose one of these, or "
            "--engine torch; for an ONNX file in half precision, --engine onnxruntime."
        )
    return precision


def compile_on_cpu(model: Any, names: Sequence[str], precision: str) -> Run:
    """An openvino.Model of images [B, 3, H, W] float32, for any B, as a function that returns its outputs, which have
    these names. It computes with as many threads as PyTorch.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",  # all threads for one batch
    }
    compiled = core().compile_model(model, "CPU", settings)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = compiled([images])
        return {name: np.array(outputs[i]) for i, name in enumerate(names)}  # a copy: the next call overwrites them

    return run


def output_names(config: ModelConfig, float_branch: bool) -> list[str]:
    """The names of what a model computes, but for the code, which follows from the logits."""
    return ["logits"] * config.hashing + ["descriptor"] * (config.has_float_branch and float_branch)


def as_output(outputs: Mapping[str, np.ndarray]) -> Any:
    """What GeoLocalizationNet.forward returns, of the outputs that output_names states."""
    tensors = {name: torch.from_numpy(values) for name, values in outputs.items()}
    if "logits" not in tensors:
        return tensors["descriptor"]
    code = sign(tensors["logits"])
    return TwoBranchOutput(code=code, **tensors) if "descriptor" in tensors else HashingOutput(code=code, **tensors)


class OpenVINODescriber:
    """A model that OpenVINO runs on the CPU: see model.inference.Describer. It is called like the original.

    The first images of a size take seconds more: the model is converted for that size, and any number of images. Each
    size takes memory for the weights. Nothing is written, and nothing sent: this is not openvino.convert_model, which
    reports its use. Attributes: config and descriptor_dim of the original; engine, in words.
    """

    def __init__(self, model: GeoLocalizationNet, precision: str) -> None:
        """precision: "fp32" or "bf16". Raises InputError for another one, and if OpenVINO is not installed."""
        self.original, self.precision = model, check_precision(precision)
        self.config, self.descriptor_dim = model.config, model.descriptor_dim
        self.engine = f"{OPENVINO} {version(import_openvino())}, {precision}"
        self._network = prepare_for_inference(model, device="cpu").network
        self._runs: dict[tuple[int, int, bool], Run] = {}

    @cached_property
    def fingerprint(self) -> str:
        """That of the original."""
        return self.original.fingerprint

    def __call__(self, images: Tensor, float_branch: bool = True) -> Any:
        """See GeoLocalizationNet.forward."""
        height, width = images.shape[-2:]
        key = height, width, float_branch
        if key not in self._runs:
            grid = patch_grid(height, width)
            embedding = self.original.backbone.position_embedding(*grid).detach().float()
            self._network.backbone.fix_positions(nn.Parameter(embedding, requires_grad=False), grid)
            names = output_names(self.config, float_branch)
            self._runs[key] = compile_on_cpu(
                convert(self._network, (height, width), float_branch), names, self.precision
            )
        return as_output(self._runs[key](images.numpy()))


class _NamedOutputs(nn.Module):
    """A network's outputs in the order of output_names."""

    def __init__(self, network: GeoLocalizationNet, float_branch: bool) -> None:
        super().__init__()
        self.network, self.float_branch = network, float_branch

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs: Any = self.network(images, self.float_branch)
        if isinstance(outputs, Tensor):
            return (outputs,)
        return tuple(getattr(outputs, name) for name in output_names(self.network.config, self.float_branch))


def convert(network: GeoLocalizationNet, size: tuple[int, int], float_branch: bool) -> Any:
    """The openvino.Model of a network whose position embedding is that of images of this size (H, W)."""
    import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    module, example = _NamedOutputs(network, float_branch).eval(), torch.zeros(2, 3, *size)
    batch = torch.export.Dim("batch", max=MAX_BATCH)
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes={"images": {0: batch}})
    aten, decompositions = torch.ops.aten, torch.export.default_decompositions()
    for operator in (aten.scaled_dot_product_attention.default, aten.linear.default):
        decompositions.pop(operator)  # OpenVINO computes it in one step
    decoder = TorchFXPythonDecoder(program.run_decompositions(decompositions).module(), dynamic_shapes=True)
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape([-1, 3, *size])
    return model
