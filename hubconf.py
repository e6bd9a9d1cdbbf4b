"""torch.hub entries: SelaVPRplusplus(...) builds any model; each of the others is one published checkpoint."""

import sys
from pathlib import Path as _Path

_other = sys.modules.get("model")
_origin = getattr(_other, "__file__", None) or str(list(getattr(_other, "__path__", ["an unknown location"])))
if _other is not None and _Path(_origin).resolve().parent != _Path(__file__).resolve().parent / "model":
    raise ImportError(
        f"SelaVPR++ contains a package named 'model', but another module of that name is already imported: {_other} "
        f"from {_origin}. "
        "Load SelaVPR++ in a separate process, or before the other module."
    )

from model import GeoLocalizationNet as _GeoLocalizationNet  # noqa: E402
from model import InputError as _InputError  # noqa: E402
from model import ModelConfig as _ModelConfig  # noqa: E402
from model.versions import check_torch_version as _check_torch_version  # noqa: E402
from model.weights import load_published as _load_published  # noqa: E402

_check_torch_version()

dependencies = ["torch"]


def SelaVPRplusplus(
    backbone: str = "dinov2-large",
    aggregation: str = "gem",
    hashing: bool = True,
    rerank: bool = True,
    pretrained: bool = True,
) -> _GeoLocalizationNet:
    """SelaVPR++ (Lu et al., T-PAMI 2026): any model, a plain torch.nn.Module in eval mode on the CPU.

    model = torch.hub.load("<owner>/SelaVPRplusplus", "SelaVPRplusplus", backbone="dinov2-large", aggregation="gem",
                           hashing=True, rerank=True)

    Takes images [B, 3, H, W], normalised with the ImageNet mean and standard deviation, H and W multiples of 14 (322
    in the paper). Returns float32 tensors, as named tuples:

    - two-branch model (hashing and rerank): (logits [B, 512], code [B, 512] of -1 and +1, descriptor [B, dim]);
    - hashing-only model: (logits, code);
    - float model (neither): descriptor [B, dim], L2-normalised. dim is `model.descriptor_dim`.

    backbone: dinov2-base, dinov2-large, dinov2-small, vit-tiny or vit-nano. aggregation: gem, boq or salad. pretrained:
    download the published weights (once). They exist for gem with dinov2-base and dinov2-large, float and two-branch.
    pretrained=False downloads nothing and returns the model at the start of training. Raises model.InputError (a
    ValueError) for other names, and if the weights are not published or cannot be downloaded.
    """
    network = _GeoLocalizationNet(
        _ModelConfig(backbone=backbone, aggregation=aggregation, hashing=hashing, rerank=rerank)
    )
    if pretrained:
        try:
            _load_published(network)
        except _InputError as error:
            raise _InputError(
                f"{error}\nWith pretrained=False, the model is returned at the start of training."
            ) from error
    return network.eval()


def SelaVPRplusplus_base(pretrained: bool = True) -> _GeoLocalizationNet:
    """Float model, ViT-B/14, 97.9 M parameters: one descriptor per image.

    model = torch.hub.load("<owner>/SelaVPRplusplus", "SelaVPRplusplus_base")
    images = torch.rand(2, 3, 322, 322)  # RGB, normalised with the ImageNet mean and standard deviation
    descriptor = model(images)  # [2, 2048]
    """
    return SelaVPRplusplus("dinov2-base", hashing=False, rerank=False, pretrained=pretrained)


def SelaVPRplusplus_large(pretrained: bool = True) -> _GeoLocalizationNet:
    """Float model, ViT-L/14, 331.3 M parameters: one descriptor per image.

    model = torch.hub.load("<owner>/SelaVPRplusplus", "SelaVPRplusplus_large")
    images = torch.rand(2, 3, 322, 322)  # RGB, normalised with the ImageNet mean and standard deviation
    descriptor = model(images)  # [2, 4096]
    """
    return SelaVPRplusplus("dinov2-large", hashing=False, rerank=False, pretrained=pretrained)


def SelaVPRplusplus_base_rerank(pretrained: bool = True) -> _GeoLocalizationNet:
    """Two-branch model, ViT-B/14, 108.0 M parameters: 512-bit codes to search, descriptors to re-rank.

    model = torch.hub.load("<owner>/SelaVPRplusplus", "SelaVPRplusplus_base_rerank")
    images = torch.rand(2, 3, 322, 322)  # RGB, normalised with the ImageNet mean and standard deviation
    logits, code, descriptor = model(images)  # [2, 512], [2, 512] of -1 and +1, [2, 2048]
    """
    return SelaVPRplusplus("dinov2-base", hashing=True, rerank=True, pretrained=pretrained)


def SelaVPRplusplus_large_rerank(pretrained: bool = True) -> _GeoLocalizationNet:
    """Two-branch model, ViT-L/14, 354.5 M parameters: 512-bit codes to search, descriptors to re-rank.

    model = torch.hub.load("<owner>/SelaVPRplusplus", "SelaVPRplusplus_large_rerank")
    images = torch.rand(2, 3, 322, 322)  # RGB, normalised with the ImageNet mean and standard deviation
    logits, code, descriptor = model(images)  # [2, 512], [2, 512] of -1 and +1, [2, 4096]
    """
    return SelaVPRplusplus("dinov2-large", hashing=True, rerank=True, pretrained=pretrained)
