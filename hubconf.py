"""torch.hub entries: SelaVPRplusplus(...) builds any model; each of the others is one published checkpoint.

PlaceRecognizer(model, ...) describes, remembers and finds images; prepare_for_inference(model, ...) returns a faster
copy of a model.
"""

import hashlib
import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec as _ModuleSpec
from pathlib import Path as _Path
from typing import Any as _Any

import torch

dependencies = ["torch", "numpy"]

# model/ is loaded under a name that no program uses, so that a program keeps its own `model`, `utils` and `datasets`.
# The name depends on the content alone: two versions stay apart, and pickles find the classes in another clone.
_FOLDER = _Path(__file__).resolve().parent / "model"
_CONTENT = b"".join(path.read_bytes() for path in sorted(_FOLDER.glob("*.py")))
_NAME = f"selavprplusplus_{hashlib.sha256(_CONTENT).hexdigest()[:16]}"


class _Finder:
    """Finds model/ under its private name. Python's lock then makes the import safe in several threads."""

    @staticmethod
    def find_spec(name: str, *_: _Any) -> _ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, _FOLDER / "__init__.py") if name == _NAME else None


if _NAME not in sys.modules:
    sys.meta_path.append(_Finder)
_model = importlib.import_module(_NAME)
_load_published = importlib.import_module(f"{_NAME}.weights").load_published
prepare_for_inference = _model.prepare_for_inference
PlaceRecognizer = _model.PlaceRecognizer


def SelaVPRplusplus(
    backbone: str = "dinov2-large",
    aggregation: str = "gem",
    hashing: bool = True,
    rerank: bool = True,
    pretrained: bool = True,
) -> torch.nn.Module:
    """SelaVPR++ (Lu et al., T-PAMI 2026): any model, a plain torch.nn.Module in eval mode on the CPU.

    model = torch.hub.load("<owner>/SelaVPRplusplus", "SelaVPRplusplus", backbone="dinov2-large", aggregation="gem",
                           hashing=True, rerank=True)

    Takes images [B, 3, H, W], normalised with the ImageNet mean and standard deviation, H and W multiples of 14 (322
    in the paper). Returns float32 tensors, as named tuples:

    - two-branch model (hashing and rerank): (logits [B, 512], code [B, 512] of -1 and +1, descriptor [B, dim]);
    - hashing-only model: (logits, code);
    - float model (neither): descriptor [B, dim], L2-normalised. dim is `model.descriptor_dim`.

    backbone: dinov2-base, dinov2-large, dinov2-small, dinov2-base-reg or dinov2-large-reg (with registers), vit-tiny,
    vit-nano or vit-pico. aggregation: gem, boq or salad. pretrained: download the published weights (once). They exist
    for gem with dinov2-base and dinov2-large, float and two-branch. pretrained=False downloads nothing and returns the
    model at the start of training. Raises InputError (a ValueError) for other names, and if the weights are not
    published or cannot be downloaded.
    """
    config = _model.ModelConfig(backbone=backbone, aggregation=aggregation, hashing=hashing, rerank=rerank)
    network = _model.GeoLocalizationNet(config)
    if pretrained:
        try:
            _load_published(network)
        except _model.InputError as error:
            raise _model.InputError(
                f"{error}\nWith pretrained=False, the model is returned at the start of training."
            ) from error
    return network.eval()


def SelaVPRplusplus_base(pretrained: bool = True) -> torch.nn.Module:
    """Float model, ViT-B/14, 97.9 M parameters: one descriptor per image.

    model = torch.hub.load("<owner>/SelaVPRplusplus", "SelaVPRplusplus_base")
    images = torch.rand(2, 3, 322, 322)  # RGB, normalised with the ImageNet mean and standard deviation
    descriptor = model(images)  # [2, 2048]
    """
    return SelaVPRplusplus("dinov2-base", hashing=False, rerank=False, pretrained=pretrained)


def SelaVPRplusplus_large(pretrained: bool = True) -> torch.nn.Module:
    """Float model, ViT-L/14, 331.3 M parameters: one descriptor per image.

    model = torch.hub.load("<owner>/SelaVPRplusplus", "SelaVPRplusplus_large")
    images = torch.rand(2, 3, 322, 322)  # RGB, normalised with the ImageNet mean and standard deviation
    descriptor = model(images)  # [2, 4096]
    """
    return SelaVPRplusplus("dinov2-large", hashing=False, rerank=False, pretrained=pretrained)


def SelaVPRplusplus_base_rerank(pretrained: bool = True) -> torch.nn.Module:
    """Two-branch model, ViT-B/14, 108.0 M parameters: 512-bit codes to search, descriptors to re-rank.

    model = torch.hub.load("<owner>/SelaVPRplusplus", "SelaVPRplusplus_base_rerank")
    images = torch.rand(2, 3, 322, 322)  # RGB, normalised with the ImageNet mean and standard deviation
    logits, code, descriptor = model(images)  # [2, 512], [2, 512] of -1 and +1, [2, 2048]
    """
    return SelaVPRplusplus("dinov2-base", hashing=True, rerank=True, pretrained=pretrained)


def SelaVPRplusplus_large_rerank(pretrained: bool = True) -> torch.nn.Module:
    """Two-branch model, ViT-L/14, 354.5 M parameters: 512-bit codes to search, descriptors to re-rank.

    model = torch.hub.load("<owner>/SelaVPRplusplus", "SelaVPRplusplus_large_rerank")
    images = torch.rand(2, 3, 322, 322)  # RGB, normalised with the ImageNet mean and standard deviation
    logits, code, descriptor = model(images)  # [2, 512], [2, 512] of -1 and +1, [2, 4096]
    """
    return SelaVPRplusplus("dinov2-large", hashing=True, rerank=True, pretrained=pretrained)
