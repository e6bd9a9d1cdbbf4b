"""SelaVPR++ models. Needs only torch and the standard library."""

from model.aggregation import AGGREGATIONS
from model.config import BACKBONES, ModelChoice, ModelConfig
from model.errors import InputError
from model.inference import InferenceModel, prepare_for_inference
from model.network import CODE_BITS, GeoLocalizationNet, HashingOutput, TwoBranchOutput

__all__ = [
    "AGGREGATIONS",
    "BACKBONES",
    "CODE_BITS",
    "GeoLocalizationNet",
    "HashingOutput",
    "InferenceModel",
    "InputError",
    "ModelChoice",
    "ModelConfig",
    "TwoBranchOutput",
    "prepare_for_inference",
]
