"""torch.hub entry: torch.hub.load("<owner>/<repository>", "SelaVPRplusplus", backbone="dinov2-large", aggregation="gem", ...)."""
import sys
from pathlib import Path

_loaded = sys.modules.get("model")
_place = getattr(_loaded, "__file__", None) or str(list(getattr(_loaded, "__path__", ["an unknown place"])))
if _loaded is not None and Path(_place).resolve().parent != Path(__file__).resolve().parent / "model":
    raise ImportError(
        f"SelaVPR++ has a package named 'model', and another module of that name is imported already: {_loaded} of {_place}. "
        "Load SelaVPR++ in a process of its own, or before the other one."
    )

import model as _model  # noqa: E402
import model.weights as _weights  # noqa: E402

dependencies = ["torch"]


def SelaVPRplusplus(backbone: str = "dinov2-large", aggregation: str = "gem", hashing: bool = True, rerank: bool = True,
                    pretrained: bool = True) -> _model.GeoLocalizationNet:
    """SelaVPR++ (Lu et al., T-PAMI 2025), a plain module in eval mode on the CPU.

    Takes images [B, 3, H, W], normalised by ImageNet's mean and deviation, H and W multiples of 14 (322 in the paper). Returns, as
    named tuples and tensors of float32: two-branch (hashing and rerank): (logits [B, 512], code [B, 512] of -1 and +1, descriptor [B, dim]);
    hashing alone: (logits, code); neither: descriptor [B, dim], L2-normalised. dim: `model.descriptor_dim`.

    backbone: dinov2-base, dinov2-large, dinov2-small or vit-tiny. aggregation: gem, boq or salad. pretrained: published weights, downloaded
    once; they exist for gem with dinov2-base and dinov2-large, float and two-branch. pretrained=False gives start-of-training weights
    and downloads nothing. Raises model.InputError (a ValueError) for other names, and where no weights are published or reachable.
    """
    network = _model.build_model(backbone, aggregation, hashing, rerank)
    if pretrained:
        try:
            _weights.load_published(network, backbone, aggregation, hashing, rerank)
        except _model.InputError as error:
            raise _model.InputError(f"{error}\npretrained=False gives the model with start-of-training weights.") from error
    return network.eval()
