"""Loading weights: DINOv2's, published checkpoints, our own checkpoints and bare state dicts. Loading is strict."""

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .aggregation import AGGREGATIONS
from .checkpoint_files import read_checkpoint
from .config import BACKBONES, ImageConfig, ModelChoice, ModelConfig, check_image_size
from .downloads import Source, download
from .errors import InputError
from .network import GeoLocalizationNet
from .zoo import FOUNDATIONS, PublishedModel, find_model

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module)\.")  # in the names of entries
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def model_state(checkpoint: dict, source: str | Path) -> dict[str, Tensor]:
    """The model's entries in a checkpoint of any kind, without the names that DataParallel (`module.`), torch.compile
    (`_orig_mod.`) and FSDP put before them, however these are nested.

    Raises InputError, which names the file `source`, if there are none, or if one is not a dense tensor with a name.
    """
    state = checkpoint.get("model_state_dict", checkpoint)
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        names = ", ".join(map(str, list(checkpoint)[:5]))
        raise InputError(
            f"{source} contains no model. Its entries are: {names or 'none'}. Expected 'model_state_dict', or "
            "tensors by name."
        )
    for name, value in state.items():
        problem = _entry_problem(name, value)
        if problem:
            raise InputError(
                f"{source}: the entry {name!r} {problem}. Expected dense tensors by name, as in a state dict."
            )
    unwrapped: dict[str, Tensor] = {}
    for name, value in state.items():
        bare = WRAPPERS.sub("", name)
        if bare in unwrapped:
            twice = [other for other in state if WRAPPERS.sub("", other) == bare]
            raise InputError(
                f"{source} contains both {' and '.join(map(repr, twice[:2]))}, which are one entry of the model. "
                "Remove one of them."
            )
        unwrapped[bare] = value
    return unwrapped


def model_content(model: GeoLocalizationNet) -> dict[str, Any]:
    """What our checkpoints contain of a model: its configuration, that of its images if it is known, its entries."""
    images = {"image_config": asdict(model.image_config)} if model.image_config else {}
    return {"model_config": asdict(model.config), **images, "model_state_dict": model.state_dict()}


def find_config(checkpoint: dict, source: str | Path) -> ModelConfig | None:
    """The model of a checkpoint: the one that it states or, if it states none, the one that its entries belong to.

    None if that is not a SelaVPR++ model. Raises InputError, which names the file `source`, if it states a model that
    does not exist, or contains no model.
    """
    stated = checkpoint.get("model_config")
    if stated is None:
        return guess_config(model_state(checkpoint, source))
    names = {field.name for field in fields(ModelConfig)}
    try:
        if stated.keys() != names:
            raise InputError(f"Expected the fields {', '.join(sorted(names))}.")
        if any(type(stated[name]) is not bool for name in ("hashing", "rerank")):
            raise InputError("hashing and rerank must be true or false.")
        return ModelConfig(**stated)
    except (InputError, AttributeError, TypeError) as error:
        raise InputError(
            f"{source} states a model that does not exist here, {str(stated)[:200]}: {str(error)[:200]}"
        ) from error


def find_image_config(checkpoint: dict, model: ModelConfig, source: str | Path) -> ImageConfig | None:
    """The images that a checkpoint states, at which its model was validated; None if it states none.

    Raises InputError, which names the file `source`, if the model cannot take such images.
    """
    stated = checkpoint.get("image_config")
    if stated is None:
        return None
    try:
        images = ImageConfig(**{**stated, "resize": tuple(stated["resize"])})
        height, width = images.resize
        if (type(height), type(width), type(images.antialias)) != (int, int, bool):
            raise InputError("Expected resize, two whole numbers, and antialias, true or false.")
        check_image_size(model, (height, width))
        return images
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{source} states images that its model cannot take, {str(stated)[:200]}: {str(error)[:200]}"
        ) from error


def new_model(choice: ModelChoice, checkpoint: dict, source: str | Path) -> GeoLocalizationNet:
    """The model of a checkpoint, without its weights: what the user states of it, and otherwise the checkpoint's.

    Raises InputError, which names the file `source`, if the user leaves the backbone open, but the checkpoint is none
    of a SelaVPR++ model; and as find_config, find_image_config and ModelConfig do.
    """
    found = find_config(checkpoint, source)
    if found is None and choice.backbone is None:
        raise InputError(f"{source} {describe(model_state(checkpoint, source))}.")
    network = GeoLocalizationNet(choice.resolve(found))
    network.image_config = find_image_config(checkpoint, network.config, source)
    return network


def load_model(model: ModelConfig | ModelChoice, source: PublishedModel | str | Path) -> GeoLocalizationNet:
    """The model with the weights of a published model, or of a file, in eval mode on the CPU.

    What a ModelChoice leaves open is that of the weights. source: as model_file takes it. Raises InputError if the
    weights are missing or another model's.
    """
    path = model_file(source)
    checkpoint = read_checkpoint(path)
    choice = model if isinstance(model, ModelChoice) else ModelChoice(**asdict(model))
    network = new_model(choice, checkpoint, path)
    load_state(network, model_state(checkpoint, path), path)
    return network.eval()


def load_any_model(source: PublishedModel | str | Path) -> GeoLocalizationNet:
    """The model of this name, in eval mode: a published one, or a file of any model.

    Raises InputError if it is neither, or cannot be downloaded.
    """
    return load_model(ModelChoice(), source)


def model_file(source: PublishedModel | str | Path) -> Path:
    """The file of a model, which is downloaded if it is a published one. A text names either: see find_model.

    Raises InputError for another name, for an ONNX file, and if the file cannot be downloaded.
    """
    found = find_model(source) if isinstance(source, str) else source
    if isinstance(found, Path):
        if found.suffix.lower() == ".onnx":
            raise InputError(
                f"{found} is an ONNX file, which evaluations, build_index.py and search.py run, and nothing else. Give "
                "the checkpoint that it was exported from, with --model."
            )
        return found
    with torch.device("meta"):
        network = GeoLocalizationNet(found.config)
    wanted = Source(found.urls, "--model (in Python, to load_any_model)", _max_download(network), found.sha256)
    return download(wanted, lambda checkpoint, path: check_state(network, model_state(checkpoint, path), path))


def load_weights(model: GeoLocalizationNet, path: str | Path) -> None:
    """Loads a checkpoint file into the model. Raises InputError, which names some, if entries or shapes differ."""
    load_state(model, model_state(read_checkpoint(path), path), path)


def load_state(model: torch.nn.Module, state: dict[str, Tensor], source: str | Path, *, description: str = "") -> None:
    """Loads all entries, or none and raises InputError if one is missing, unexpected or of the wrong shape or type, or
    contains NaN or infinity.

    A floating-point entry takes float16, bfloat16, float32 or float64; an integer one takes integers.

    description: what the file looks like, if `state` is not its content.
    """
    check_state(model, state, source, description=description)
    model.load_state_dict(state)


def check_state(model: torch.nn.Module, state: dict[str, Tensor], source: str | Path, *, description: str = "") -> None:
    """Raises InputError where load_state does. The model may be without values, on the device "meta"."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {_shape(value)} instead of {_shape(expected[name])}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    types = [
        f"{name} {_dtype(value)} instead of {_dtype(expected[name])}"
        for name, value in state.items()
        if name in expected and value.dtype not in (FLOATS if expected[name].is_floating_point() else INTEGERS)
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of another type", types),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"{source} {description or describe(state)}, and does not fit the model.\n"
            f"State-dict entries: {'; '.join(problems)}."
        )
    damaged = [name for name, value in state.items() if not _is_finite(value)]
    if damaged:
        raise InputError(
            f"{source} contains NaN or infinity in {len(damaged)} of {len(state)} entries ({', '.join(damaged[:3])}"
            f"{', ...' if len(damaged) > 3 else ''}). The training has diverged, or the file is damaged. Take an "
            "earlier checkpoint, or copy the file again."
        )


def guess_config(state: dict[str, Tensor]) -> ModelConfig | None:
    """The model that these entries belong to, judged by their names and shapes; None if it is not a SelaVPR++ model.

    Of the backbones of this width, it has the one that agrees most in registers, blocks and adapters.
    """
    width, registers = _dimensions(state, "backbone.")
    blocks, float_adapters, binary_adapters = (
        _count(state, f"backbone.{part}.") for part in ("blocks", "adapters", "adapters_hashing")
    )
    adapters = float_adapters or binary_adapters
    found = registers, blocks, adapters
    agreement = {
        name: sum(a == b for a, b in zip(found, (vit.num_registers, vit.depth, vit.num_adapters), strict=True))
        for name, vit in BACKBONES.items()
        if vit.embed_dim == width
    }
    if not agreement or not adapters:
        return None
    backbone = max(agreement, key=lambda name: agreement[name])
    if not float_adapters:
        return ModelConfig(backbone=backbone, hashing=True)
    present = {name.removeprefix("aggregation.") for name in state if name.startswith("aggregation.")}
    aggregation = min(AGGREGATIONS, key=lambda name: len(present ^ _aggregation_entries(name, width)))
    two_branch = binary_adapters > 0
    return ModelConfig(backbone=backbone, aggregation=aggregation, hashing=two_branch, rerank=two_branch)


def describe(state: dict[str, Tensor]) -> str:
    """What a file with these entries most likely is, with the flags that load it."""
    if "cls_token" in state:
        return "looks like DINOv2 weights, which training scripts take as --foundation_model_path"
    config = guess_config(state)
    if config is None:
        return "does not look like a SelaVPR++ model"
    script = {"float": "eval.py", "hashing": "eval_hashing.py", "two-branch": "eval_rerank.py"}[config.kind]
    return f"looks like a model for {config.flags} (evaluate it with {script})"


def load_foundation(model: GeoLocalizationNet, path: str | Path | None = None) -> Path:
    """Loads DINOv2's weights into the backbone, strictly, from a file or (path None) by download, and returns the file.

    Raises InputError if the weights are for another backbone, do not exist (vit-tiny), or cannot be downloaded.
    """
    backbone = model.config.backbone
    if path is None:
        if backbone not in FOUNDATIONS:
            raise InputError(
                f"There are no DINOv2 weights for {backbone}, only for {', '.join(FOUNDATIONS)}. Train it from "
                "scratch with --train_backbone."
            )
        entry = FOUNDATIONS[backbone]
        source = Source([entry.url], "--foundation_model_path", _max_download(model.backbone), entry.sha256)
        return download(source, lambda checkpoint, path: _load_foundation(model, checkpoint, path))
    _load_foundation(model, read_checkpoint(path), path)
    return Path(path)


def _load_foundation(model: GeoLocalizationNet, checkpoint: dict, path: str | Path) -> None:
    state = model_state(checkpoint, path)
    actual, expected = _dimensions(state), _dimensions(model.backbone.state_dict())
    if actual != expected:
        found, needed = (f"width {w}" + f" with {r} registers" * (r > 0) for w, r in (actual, expected))
        content = f"weights of {found}" if actual[0] else "no DINOv2 weights (no entry 'cls_token')"
        raise InputError(
            f"{path} contains {content}. --backbone={model.config.backbone} needs DINOv2 weights of {needed}."
        )
    adapters = {
        name: value
        for name, value in model.backbone.state_dict().items()
        if model.branch_of(f"backbone.{name}") != "backbone"
    }
    load_state(model.backbone, {**state, **adapters}, path)


def load_float_branch(model: GeoLocalizationNet, state: dict[str, Tensor], source: str | Path) -> None:
    """Loads a float model into a two-branch model, with its adapters also in the binary branch (section III-C).

    The binary head stays at the start of training. Raises InputError if the entries are not those of such a float
    model.
    """
    adapters = {
        name.replace("backbone.adapters.", "backbone.adapters_hashing."): value
        for name, value in state.items()
        if name.startswith("backbone.adapters.")
    }
    binary_head = {
        name: value
        for name, value in model.state_dict().items()
        if model.branch_of(name) == "binary" and not name.startswith("backbone.")
    }
    load_state(model, {**binary_head, **adapters, **state}, source, description=describe(state))


def _max_download(model: torch.nn.Module) -> int:
    """Bytes of a checkpoint file of a model at most: training states of the same size may lie beside its entries."""
    return 2 * sum(value.nbytes for value in model.state_dict().values()) + (1 << 20)


def _entry_problem(name: object, value: object) -> str | None:
    """Why this cannot be an entry of a state dict; None if it can."""
    if not isinstance(name, str):
        return f"has a key of type {type(name).__name__}"
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}"
    if value.is_meta:
        return "is a meta tensor, which has no values"
    if value.is_quantized:
        return "is a quantised tensor"
    return "is a sparse or nested tensor" if value.layout is not torch.strided or value.is_nested else None


def _dimensions(state: dict[str, Tensor], prefix: str = "") -> tuple[int, int]:
    """Width and number of registers of a backbone; 0 if the entry is absent or has another number of axes."""
    entries = (state.get(f"{prefix}{name}") for name in ("cls_token", "register_tokens"))
    cls_token, registers = (entry.shape if entry is not None and entry.ndim == 3 else (0, 0, 0) for entry in entries)
    return cls_token[2], registers[1]


def _count(state: dict[str, Tensor], prefix: str) -> int:
    """The length of the module list with this prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _aggregation_entries(aggregation: str, dim: int) -> set[str]:
    with torch.device("meta"):
        return set(AGGREGATIONS[aggregation](dim).state_dict())


def _is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. The sum tells in one pass, unless finite values overflow it."""
    if not tensor.is_floating_point():
        return True
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
