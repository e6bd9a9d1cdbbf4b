"""Where weights come from: DINOv2's, published checkpoints, our checkpoints, bare state dicts. Loading is strict."""
import http.client
import logging
import os
import re
import urllib.error
from pathlib import Path

import torch
from torch import Tensor

from model.errors import InputError
from model.network import GeoLocalizationNet
from model.vision_transformer import TRUNKS

DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_{0}/dinov2_{0}_pretrain.pth"
DINOV2_NAMES = {"dinov2-small": "vits14", "dinov2-base": "vitb14", "dinov2-large": "vitl14"}
PUBLISHED_URLS = (
    "https://github.com/Lu-Feng/SelaVPRplusplus/releases/download/SelaVPR%2B%2B/{}",
    "https://huggingface.co/fenglu96/SelaVPRplusplus/resolve/main/{}",
)
PUBLISHED = {  # (backbone, aggregation, hashing, rerank) -> file
    ("dinov2-base", "gem", False, False): "SelaVPRplusplus_base.pth",
    ("dinov2-large", "gem", False, False): "SelaVPRplusplus_large.pth",
    ("dinov2-base", "gem", True, True): "SelaVPRplusplus_base_rerank.pth",
    ("dinov2-large", "gem", True, True): "SelaVPRplusplus_large_rerank.pth",
}


class _NumPyStandIn:
    """Takes the place of the NumPy objects in a published checkpoint (its recalls), which nobody reads here.

    No NumPy code runs on what a file says, and NumPy need not be installed, in version 1 or 2.
    """

    def __init__(self, *arguments) -> None:
        self.arguments = arguments

    def __setstate__(self, state) -> None:
        self.state = state


_NUMPY_NAMES = ["numpy.dtype", "numpy.ndarray"] + [
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")
]


def read_checkpoint(path: str | Path) -> dict:
    """The dict that a checkpoint file holds, its tensors on the CPU. Runs no code that the file may hold.

    Raises InputError where the file is missing, no checkpoint, truncated, or holds pickled code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}: {'that is a folder' if path.is_dir() else 'the file does not exist'}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        with torch.serialization.safe_globals([(_NumPyStandIn, name) for name in _NUMPY_NAMES]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise InputError(f"{path} holds pickled code ({code[1]}) and was not loaded: a checkpoint needs tensors and numbers only") from error
        raise InputError(f"{path} is not a checkpoint, or is truncated: torch.load cannot read it ({path.stat().st_size} bytes)") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds a {type(checkpoint).__name__}; a checkpoint is a dict of tensors, or has one as 'model_state_dict'")
    return checkpoint


def model_state(checkpoint: dict, source: str | Path) -> dict[str, Tensor]:
    """The model's entries in a checkpoint, ours, a published one or a bare state dict, without DataParallel's `module.`.

    Raises InputError where it holds none; `source` is the file that the message names.
    """
    state = checkpoint.get("model_state_dict", checkpoint)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        names = ", ".join(map(str, list(checkpoint)[:5]))
        raise InputError(f"{source} holds no model: its entries are {names or 'none'}; expected 'model_state_dict' or tensors by name")
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_weights(model: GeoLocalizationNet, path: str | Path) -> None:
    """Loads a checkpoint file into the model, strictly. Raises InputError where entries or shapes differ, naming a few."""
    load_state(model, model_state(read_checkpoint(path), path), path)


def load_state(model: torch.nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Loads entries into the model; nothing is loaded where one is missing, unexpected or of another shape (InputError)."""
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {_shape(value)} instead of {_shape(own[name])}"
        for name, value in state.items() if name in own and value.shape != own[name].shape
    ]
    parts = [f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
             for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)) if names]
    if parts:
        raise InputError(f"{source} does not fit the model: entries {'; '.join(parts)}.\nThe file {describe(state)}.")
    model.load_state_dict(state)


def guess_config(state: dict[str, Tensor]) -> tuple[str, str, bool, bool] | None:
    """(backbone, aggregation, hashing, rerank) of the model whose entries these are; None where they are no model of ours."""
    cls_token = state.get("backbone.cls_token")
    backbone = {trunk.embed_dim: name for name, trunk in TRUNKS.items()}.get(cls_token.shape[-1]) if cls_token is not None else None
    float_branch, hashing = (any(name.startswith(prefix) for name in state) for prefix in ("backbone.adapters.", "backbone.adapters_hashing."))
    if backbone is None or not (float_branch or hashing):
        return None
    aggregation = "boq" if "aggregation.fc.weight" in state else "salad" if "aggregation.dust_bin" in state else "gem"
    return backbone, aggregation, hashing, hashing and float_branch


def describe(state: dict[str, Tensor]) -> str:
    """What a file with these entries most likely is, in words and flags."""
    if "cls_token" in state:
        return "looks like DINOv2 weights: training scripts take it as --foundation_model_path"
    config = guess_config(state)
    if config is None:
        return "does not look like a SelaVPR++ model"
    backbone, aggregation, hashing, rerank = config
    flags = f"--backbone={backbone} --aggregation={aggregation}" + " --hashing" * hashing + " --rerank" * rerank
    script = "eval_rerank.py" if rerank else "eval_hashing.py" if hashing else "eval.py"
    return f"looks like a model for {flags} (evaluate it with {script})"


def load_published(model: GeoLocalizationNet, backbone: str, aggregation: str, hashing: bool, rerank: bool) -> Path:
    """Loads the published checkpoint for these names, downloading it if need be, and returns its file.

    Raises InputError where none is published, or where it cannot be downloaded.
    """
    name = PUBLISHED.get((backbone, aggregation, hashing, rerank))
    if name is None:
        listed = "; ".join(f"{b} {a} {'two-branch (hashing and rerank)' if h else 'float'}" for b, a, h, _ in PUBLISHED)
        wanted = "two-branch (hashing and rerank)" if rerank else "hashing" if hashing else "float"
        raise InputError(f"no weights are published for {backbone} {aggregation} {wanted}. Published: {listed}")
    path = download([url.format(name) for url in PUBLISHED_URLS], "--resume")
    load_weights(model, path)
    return path


def load_foundation(model: GeoLocalizationNet, backbone: str, path: str | Path | None = None) -> Path:
    """Loads DINOv2's weights into the trunk, strictly, from a file or (path None) downloaded, and returns the file.

    Raises InputError where the weights are another trunk's, where none exist (vit-tiny), or where they cannot be downloaded.
    """
    if path is None:
        if backbone not in DINOV2_NAMES:
            raise InputError(f"no DINOv2 weights exist for {backbone}; they exist for {', '.join(DINOV2_NAMES)}. "
                             "Train it from scratch with --train_backbone")
        path = download([DINOV2_URL.format(DINOV2_NAMES[backbone])], "--foundation_model_path")
    state = model_state(read_checkpoint(path), path)
    cls_token = state.get("cls_token")
    width = model.backbone.embed_dim
    if cls_token is None or cls_token.shape[-1] != width:
        came = f"weights of width {cls_token.shape[-1]}" if cls_token is not None else "no DINOv2 weights (there is no 'cls_token')"
        raise InputError(f"{path} holds {came}; --backbone={backbone} needs DINOv2 weights of width {width}")
    beside = {f"{branch}.{name}": value for branch in ("adapters", "adapters_hashing")
              for name, value in (getattr(model.backbone, branch) or torch.nn.Module()).state_dict().items()}
    load_state(model.backbone, {**state, **beside}, path)
    return Path(path)


def load_float_branch(model: GeoLocalizationNet, state: dict[str, Tensor], source: str | Path) -> None:
    """Loads a float model's entries into a two-branch model; its binary adapters start as a copy of the float ones (paper, section III-C).

    The binary head keeps its start of training. Raises InputError where the entries are not those of such a float model.
    """
    binary_head = {name: value for name, value in model.state_dict().items() if name.startswith(("aggregation_hashing.", "linear3.", "linear4."))}
    copies = {name.replace(".adapters.", ".adapters_hashing."): value for name, value in state.items() if name.startswith("backbone.adapters.")}
    load_state(model, {**binary_head, **copies, **state}, source)


def download(urls: list[str], flag: str) -> Path:
    """The file that the first reachable of the addresses gives, in torch.hub's cache; downloaded only where it is not there.

    It is moved into place when it is whole and readable. Raises InputError, which names the addresses, the file and `flag`, the flag
    that takes a local file.
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
            reasons.append(f"{url} (what came is not a whole checkpoint)")
        finally:
            partial.unlink(missing_ok=True)
    raise InputError(f"cannot download {' nor '.join(reasons)}.\nOffline? Fetch it elsewhere and save it as {path}, or give its place with {flag}.")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
