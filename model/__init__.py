"""SelaVPR++ models. Needs torch and the standard library alone."""
from model.errors import InputError
from model.network import AGGREGATIONS, CODE_BITS, GeoLocalizationNet, HashingOutput, TwoBranchOutput
from model.vision_transformer import TRUNKS

__all__ = ["AGGREGATIONS", "BACKBONES", "CODE_BITS", "GeoLocalizationNet", "HashingOutput", "InputError", "TwoBranchOutput", "build_model"]

BACKBONES = tuple(TRUNKS)


def build_model(backbone: str, aggregation: str = "gem", hashing: bool = False, rerank: bool = False) -> GeoLocalizationNet:
    """A model with start-of-training parameters, in training mode; the trunk's are random: see model.weights.

    backbone: one of BACKBONES; aggregation: of the float branch, one of AGGREGATIONS; hashing alone: the binary model; hashing and rerank:
    the two-branch model; neither: the float model. Raises InputError for any other name and for rerank without hashing.
    """
    for what, value, allowed in (("backbone", backbone, BACKBONES), ("aggregation", aggregation, AGGREGATIONS)):
        if value not in allowed:
            raise InputError(f"unknown {what} {value!r}; there are: {', '.join(allowed)}")
    if rerank and not hashing:
        raise InputError("rerank=True needs hashing=True: re-ranking orders what a search by binary codes has found first")
    if hashing and not rerank and aggregation != "gem":
        raise InputError(f"aggregation {aggregation!r} is of the float branch, which hashing alone has not: its head is gem")
    return GeoLocalizationNet(TRUNKS[backbone], aggregation, hashing, rerank)
