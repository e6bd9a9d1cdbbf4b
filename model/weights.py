"""Loading weights: DINOv2's, published checkpoints, our own checkpoints and bare state dicts. Loading is strict."""

import http.client
import logging
import os
import re
import urllib.error
from pathlib import Path

import torch
from torch import Tensor

from model.aggregation import AGGREGATIONS
from model.config import BACKBONES, ModelConfig
from model.errors import InputError
from model.network import GeoLocalizationNet
from model.zoo import DINOV2_NAMES, DINOV2_URL, MODEL_ZOO, find_published


class _NumPyPlaceholder:
    """Placeholder for the NumPy objects in published checkpoints (saved recalls), which are not used here.

    With it, loading runs no NumPy code on the file's content, and neither NumPy 1 nor 2 needs to be installed.
    """

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


_NUMPY_NAMES = ["numpy.dtype", "numpy.ndarray"] + [
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")
]


def read_checkpoint(path: str | Path) -> dict:
    """The dict in a checkpoint file, with tensors on the CPU. Code in the file is never run.

    Raises InputError if the file is missing, is not a checkpoint, is truncated, or contains pickled code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"No checkpoint at {path}: {'this is a folder' if path.is_dir() else 'the file does not exist'}."
        )
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        with torch.serialization.safe_globals([(_NumPyPlaceholder, name) for name in _NUMPY_NAMES]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise InputError(
                f"{path} contains pickled code ({code[1]}) and was not loaded. A checkpoint may hold only tensors "
                "and plain values."
            ) from error
        raise InputError(
            f"{path} is not a checkpoint, or is truncated: torch.load cannot read it ({path.stat().st_size} bytes)."
        ) from error
    if not isinstance(checkpoint, dict):
        raise InputError(
            f"{path} contains a {type(checkpoint).__name__}. Expected a dict of tensors, or one under "
            "'model_state_dict'."
        )
    return checkpoint


def model_state(checkpoint: dict, source: str | Path) -> dict[str, Tensor]:
    """The model's entries in a checkpoint of any kind, without DataParallel's `module.` prefix.

    Raises InputError, which names the file `source`, if there are none.
    """
    state = checkpoint.get("model_state_dict", checkpoint)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        names = ", ".join(map(str, list(checkpoint)[:5]))
        raise InputError(
            f"{source} contains no model. Its entries are: {names or 'none'}. Expected 'model_state_dict', or "
            "tensors by name."
        )
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_model(config: ModelConfig, path: str | Path | None, *, device: str = "cpu") -> GeoLocalizationNet:
    """The model with the weights of a file, or (path None) the published ones, in eval mode on the device.

    Raises InputError if the weights are missing or another model's.
    """
    model = GeoLocalizationNet(config)
    load_trained(model, path)
    return model.eval().to(device)


def load_trained(model: GeoLocalizationNet, path: str | Path | None) -> None:
    """Loads a file into the model, or (path None) the published weights. Raises InputError as for both."""
    if path is None:
        load_published(model)
    else:
        load_weights(model, path)


def load_any_model(source: str) -> GeoLocalizationNet:
    """The model of a checkpoint, in eval mode: a published one by its name in MODEL_ZOO, or a file of any model.

    Raises InputError if it is neither, or cannot be downloaded.
    """
    published = {entry.name: entry.config for entry in MODEL_ZOO}
    if source in published:
        return load_model(published[source], None)
    if not Path(source).exists():
        raise InputError(f"{source} is neither a file nor a published model. Choose from: {', '.join(published)}.")
    state = model_state(read_checkpoint(source), source)
    config = guess_config(state)
    if config is None:
        raise InputError(f"{source} {describe(state)}.")
    model = GeoLocalizationNet(config)
    load_state(model, state, source)
    return model.eval()


def load_weights(model: GeoLocalizationNet, path: str | Path) -> None:
    """Loads a checkpoint file into the model. Raises InputError, which names some, if entries or shapes differ."""
    load_state(model, model_state(read_checkpoint(path), path), path)


def load_state(model: torch.nn.Module, state: dict[str, Tensor], source: str | Path, *, description: str = "") -> None:
    """Loads all entries, or none and raises InputError if one is missing, unexpected or of the wrong shape.

    description: what the file looks like, if `state` is not its content.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {_shape(value)} instead of {_shape(expected[name])}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise InputError(
            f"{source} does not fit the model. State-dict entries: {'; '.join(problems)}.\n"
            f"The file {description or describe(state)}."
        )
    model.load_state_dict(state)


def guess_config(state: dict[str, Tensor]) -> ModelConfig | None:
    """The model that these entries belong to, judged by their names and widths; None if it is not a SelaVPR++ model."""
    cls_token = state.get("backbone.cls_token")
    widths = {vit.embed_dim: name for name, vit in BACKBONES.items()}
    backbone = widths.get(cls_token.shape[-1]) if cls_token is not None else None
    has_float, has_binary = (
        any(n.startswith(f"backbone.{a}.") for n in state) for a in ("adapters", "adapters_hashing")
    )
    if cls_token is None or backbone is None or not (has_float or has_binary):
        return None
    if not has_float:
        return ModelConfig(backbone=backbone, hashing=True)
    present = {name.removeprefix("aggregation.") for name in state if name.startswith("aggregation.")}
    aggregation = max(AGGREGATIONS, key=lambda name: -len(present ^ _aggregation_entries(name, cls_token.shape[-1])))
    return ModelConfig(backbone=backbone, aggregation=aggregation, hashing=has_binary, rerank=has_binary)


def describe(state: dict[str, Tensor]) -> str:
    """What a file with these entries most likely is, with the flags that load it."""
    if "cls_token" in state:
        return "looks like DINOv2 weights, which training scripts take as --foundation_model_path"
    config = guess_config(state)
    if config is None:
        return "does not look like a SelaVPR++ model"
    script = {"float": "eval.py", "hashing": "eval_hashing.py", "two-branch": "eval_rerank.py"}[config.kind]
    return f"looks like a model for {config.flags} (evaluate it with {script})"


def load_published(model: GeoLocalizationNet) -> Path:
    """Loads the published weights for the model's configuration, downloading them if needed, and returns the file.

    Raises InputError if none are published, or if they cannot be downloaded.
    """
    path = download(find_published(model.config).urls, flag="--resume (in the examples, --model)")
    load_weights(model, path)
    return path


def load_foundation(model: GeoLocalizationNet, path: str | Path | None = None) -> Path:
    """Loads DINOv2's weights into the backbone, strictly, from a file or (path None) by download, and returns the file.

    Raises InputError if the weights are for another backbone, do not exist (vit-tiny), or cannot be downloaded.
    """
    backbone = model.config.backbone
    if path is None:
        if backbone not in DINOV2_NAMES:
            raise InputError(
                f"There are no DINOv2 weights for {backbone}, only for {', '.join(DINOV2_NAMES)}. Train it from "
                "scratch with --train_backbone."
            )
        path = download([DINOV2_URL.format(DINOV2_NAMES[backbone])], flag="--foundation_model_path")
    state = model_state(read_checkpoint(path), path)
    cls_token = state.get("cls_token")
    width = model.backbone.embed_dim
    if cls_token is None or cls_token.shape[-1] != width:
        actual = (
            f"weights of width {cls_token.shape[-1]}"
            if cls_token is not None
            else "no DINOv2 weights (no entry 'cls_token')"
        )
        raise InputError(f"{path} contains {actual}. --backbone={backbone} needs DINOv2 weights of width {width}.")
    adapters = {
        name: value
        for name, value in model.backbone.state_dict().items()
        if model.branch_of(f"backbone.{name}") != "backbone"
    }
    load_state(model.backbone, {**state, **adapters}, path)
    return Path(path)


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


def download(urls: list[str], *, flag: str) -> Path:
    """The file in torch.hub's cache, downloaded from the first reachable address if it is not there yet.

    It is moved into place only once it is complete and readable. Raises InputError, which names the addresses, the
    file and the flag that takes a local file.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / urls[0].rsplit("/", 1)[-1]
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    reasons = []
    for url in urls:
        try:
            logging.info("Downloading %s", url)
            torch.hub.download_url_to_file(url, str(partial))
            read_checkpoint(partial)
            os.replace(partial, path)
            return path
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reasons.append(f"{url} ({error or type(error).__name__})")
        except InputError:
            reasons.append(f"{url} (the download is not a complete checkpoint)")
        finally:
            partial.unlink(missing_ok=True)
    raise InputError(
        f"Cannot download {' or '.join(reasons)}.\n"
        f"If you are offline, fetch the file on another machine and save it as {path}, or pass its path with {flag}."
    )


def _aggregation_entries(aggregation: str, dim: int) -> set[str]:
    with torch.device("meta"):
        return set(AGGREGATIONS[aggregation](dim).state_dict())


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
